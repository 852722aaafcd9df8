"""What several benchmarks on federated moments do alike: arguments, a site's upload, tables."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradsense.config import settings
from gradsense.experiments.bench import Bench, set_up
from gradsense.experiments.corpus import by_client, load_corpus
from gradsense.experiments.run import FederatedRun
from gradsense.federation.algorithm import get_algorithm
from gradsense.federation.algorithms.gsfs import Gsfs
from gradsense.federation.update import exactly
from gradsense.learning.statistics import STATISTICS
from gradsense.learning.trainer import Examples


def parser(text: str) -> argparse.ArgumentParser:
    """``--data`` and ``--seeds``; ``text`` is the script's docstring."""
    made = argparse.ArgumentParser(description=text.splitlines()[0])
    made.add_argument("--data", type=Path, required=True, help="folder of IoT-23 captures")
    made.add_argument("--seeds", type=int, default=3)
    return made


def bench_of(data: Path, seed: int, **values: object) -> Bench:
    """Corpus and model of one seed with the default algorithm."""
    run = settings(data=data, seed=seed, **values)
    return set_up(run, load_corpus(run))


def train_sets(bench: Bench) -> dict[str, Examples]:
    """Each site's training flows."""
    return by_client(bench.corpus.parts.train, bench.train)


def upload(bench: Bench, flows: Examples, rows: NDArray[np.int64]) -> tuple[NDArray[Any], int]:
    """A site's factor of these rows as the cloud decodes it, in float64, and its bytes."""
    algorithm = get_algorithm(bench.settings.algorithm)
    assert isinstance(algorithm, Gsfs)
    codec = algorithm.codec
    seen = bench.trainer.observe(
        flows, bench.initial, torch.from_numpy(rows), tolerance=algorithm.tolerance
    )
    sent = {STATISTICS: seen.factor}
    packed = codec.pack(sent)
    return codec.unpack(packed, exactly(sent))[STATISTICS].astype(np.float64), len(packed)


@torch.inference_mode()
def features(bench: Bench, flows: Examples) -> NDArray[np.float64]:
    """What the head reads of the distinct prompts of ``flows``, [distinct, d]."""
    classifier = bench.trainer.classifier
    classifier.model.eval()
    whole = classifier.features(flows.encoded, torch.arange(len(flows.encoded)))
    return np.asarray(whole.double().numpy())


def finished(bench: Bench) -> FederatedRun:
    """A whole run, without the clients' own scores: they take longer than the run itself."""
    run = FederatedRun(bench)
    run.sample.clear()
    run.start()
    while run.step():
        pass
    return run


def spread(values: Sequence[float], write: Callable[[float], str] = "{:.3f}".format) -> str:
    """``mean ± standard deviation`` over seeds; the mean alone for a single one."""
    mean = write(statistics.fmean(values))
    return f"{mean} ± {write(statistics.stdev(values))}" if len(values) > 1 else mean


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left and the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


class Progress:
    """Lines on standard error, with the seconds since the start."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.began

    def __call__(self, text: str) -> None:
        print(f"[{self.seconds:5.0f} s] {text}", file=sys.stderr, flush=True)
