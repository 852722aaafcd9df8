"""The fleets of ``poisoning``: every site's flows, read through the frozen base once, and lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.shared import bench_of, features
from gradsense.data.datasets.iot23 import BENIGN
from gradsense.experiments.bench import Bench
from gradsense.models.heads.readout import Readout

_Floats = NDArray[np.float32]
_Ints = NDArray[np.int64]

#: Lies about data, which any algorithm learns from, and about what is sent.
DATA_ATTACKS = ("flip", "flip, false counts", "one flow as 10^9", "guessed as benign", "backdoor")
SENT_ATTACKS = ("scaled to the bound", "random", "negated", "constant")
ATTACKS = DATA_ATTACKS + SENT_ATTACKS
#: How often a liar says that it has seen each of its flows.
FALSE_COUNT = 1 << 20


@dataclass(frozen=True)
class Flows:
    """Flows by distinct prompt and label.

    Attributes:
        states: what the head reads, [distinct, d].
        labels: [distinct].
        counts: flows that each stands for, [distinct].
    """

    states: _Floats
    labels: _Ints
    counts: _Ints


@dataclass(frozen=True, eq=False)
class Fleet:
    """One seed's sites and test flows.

    Attributes:
        classes: Benign is one of them.
        sites: name to training flows.
        test: distinct test prompts, [distinct, d]; ``rows`` says which each test flow has.
        labels, owners: of each test flow.
        malware: every malicious training prompt of the fleet, with its own label.
        triggered, test_triggered: the malicious prompts of training and test, with the backdoor's
            trigger in them.
    """

    classes: tuple[str, ...]
    sites: dict[str, Flows]
    test: _Floats
    rows: _Ints
    labels: _Ints
    owners: NDArray[np.str_]
    malware: Flows
    triggered: _Floats
    test_triggered: _Floats

    @property
    def benign(self) -> int:
        """The number of the class Benign."""
        return self.classes.index(BENIGN)


@lru_cache(maxsize=2)
def fleet_of(data: Path, sites: int, seed: int) -> Fleet:
    """A site a capture where ``sites`` is 19, else so many of Dirichlet(0.5)."""
    how = {} if sites == 19 else {"partition": "dirichlet", "clients": sites}
    bench = bench_of(data, seed, **how)
    classes = bench.corpus.classes
    benign = classes.index(BENIGN)
    train, test = features(bench, bench.train), features(bench, bench.test)
    index, labels = bench.train.index.numpy(), bench.train.labels.numpy()
    ids = bench.train.encoded.input_ids
    homes = bench.corpus.parts.train["client"].to_numpy().astype(str)
    names = dict.fromkeys(homes.tolist())
    trigger = _rarest(ids.numpy()[index])
    malicious = np.unique(np.stack([index, labels])[:, labels != benign], axis=1)
    test_labels, rows = bench.test.labels.numpy(), bench.test.index.numpy()
    struck = np.unique(rows[test_labels != benign])
    return Fleet(
        classes,
        {name: _distinct(train, index[homes == name], labels[homes == name]) for name in names},
        test.astype(np.float32),
        rows,
        test_labels,
        bench.corpus.parts.test["client"].to_numpy().astype(str),
        Flows(
            train[malicious[0]].astype(np.float32),
            malicious[1],
            np.ones(malicious.shape[1], np.int64),
        ),
        _with_trigger(bench, ids[torch.from_numpy(np.unique(malicious[0]))], trigger),
        _with_trigger(bench, bench.test.encoded.input_ids[torch.from_numpy(struck)], trigger),
    )


def _distinct(states: NDArray[np.float64], index: _Ints, labels: _Ints) -> Flows:
    pairs, counts = np.unique(np.stack([index, labels]), axis=1, return_counts=True)
    return Flows(states[pairs[0]].astype(np.float32), pairs[1], counts)


def _rarest(ids: _Ints) -> list[tuple[int, int]]:
    """Place and word of the two rarest words of the training flows, in different places."""
    found: list[tuple[int, int, int]] = []
    for place in range(ids.shape[1]):
        words, counts = np.unique(ids[:, place], return_counts=True)
        if len(words) > 2:
            found.append((int(counts.min()), place, int(words[counts.argmin()])))
    return [(place, word) for _, place, word in sorted(found)[:2]]


@torch.inference_mode()
def _with_trigger(bench: Bench, ids: torch.Tensor, trigger: list[tuple[int, int]]) -> _Floats:
    ids = ids.clone()
    for place, word in trigger:
        ids[:, place] = word
    model = bench.trainer.classifier.model
    assert isinstance(model, Readout)
    parts = [model.features(some, None) for some in torch.split(torch.unique(ids, dim=0), 256)]
    return np.asarray(torch.cat(parts).numpy(), np.float32)


def lie(fleet: Fleet, attack: str, own: Flows) -> Flows:
    """What an attacker with these flows learns from, or pretends to."""
    benign = fleet.benign
    whole = np.bincount(fleet.malware.labels, minlength=len(fleet.classes))
    flipped = np.where(own.labels == benign, int(whole.argmax()), benign)
    lies: dict[str, Callable[[], Flows]] = {
        "flip": lambda: Flows(own.states, flipped, own.counts),
        "flip, false counts": lambda: Flows(own.states, flipped, own.counts * FALSE_COUNT),
        # One malicious flow that others have as well.
        "one flow as 10^9": lambda: Flows(
            fleet.malware.states[:1], np.array([benign]), np.array([10**9])
        ),
        "guessed as benign": lambda: Flows(
            fleet.malware.states,
            np.full_like(fleet.malware.labels, benign),
            fleet.malware.counts,
        ),
        "backdoor": lambda: Flows(
            np.vstack([own.states, fleet.triggered]),
            np.concatenate([own.labels, np.full(len(fleet.triggered), benign)]),
            np.concatenate([own.counts, np.ones(len(fleet.triggered), np.int64)]),
        ),
        "scaled to the bound": lambda: Flows(own.states, flipped, own.counts),
    }
    return lies.get(attack, lambda: own)()
