"""Reads a site's flows through the edge bundle's graph: the learner of a device without torch.

Only for algorithms that read and do not train: they ask for features, which the graph gives, and
for what the head of the global model makes of them, which is two arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from gradsense.detection.head import Head
from gradsense.detection.session import Opened, PhraseIds, open_bundle
from gradsense.errors import GradsenseError
from gradsense.learning.calibration import softmax
from gradsense.learning.learner import Array, Observed, Tensors
from gradsense.learning.statistics import observed

Numbers = npt.NDArray[np.int64]
#: Phrases uint16 [n, fields], class numbers int64 [n], and how many flows each row stands for,
#: int64 [n].
Rows = tuple[PhraseIds, Numbers, Numbers]


class Batches(Protocol):
    """Labelled flows in the order in which they came; a batch never changes once it is there."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Rows: ...


class Reader:
    """A ``learning.learner.Learner`` whose steps are the batches of a device's memory.

    Args:
        bundle: an edge bundle whose graph says features. Its head and thresholds do not matter.
        batches: the site's labelled flows; more may come at any time.
        between: called between two blocks of prompts. It may wait, or raise to give up: nothing
            is kept of an interrupted call, and the same call again gives the same result.

    Raises:
        InputError: no bundle, a damaged one, or one that an older gradsense exported.
    """

    #: It takes no validation score, so no flows are held back for one.
    validation_samples = 0

    def __init__(
        self, bundle: Path, batches: Batches, *, between: Callable[[], None] = lambda: None
    ) -> None:
        self._opened: Opened = open_bundle(bundle, threads=1)
        if "features" not in self._opened.outputs:
            raise GradsenseError(
                f"{bundle}: its graph says no features, so this device cannot learn without "
                "torch; export the run's model again with this version of gradsense"
            )
        self._batches, self._between = batches, between
        self._labels = self._opened.manifest.labels
        self._flows: list[int] = []  # of each batch

    @property
    def samples(self) -> int:
        """|D_k| by now."""
        for number in range(len(self._flows), len(self._batches)):
            self._flows.append(int(self._batches[number][2].sum()))
        return sum(self._flows)

    @property
    def distinct(self) -> int:
        """How many of them differ in prompt or label; reads them all."""
        return len(self._read(0, len(self._batches))[1]) if len(self._batches) else 0

    @property
    def steps_per_epoch(self) -> int:
        """Batches by now."""
        return len(self._batches)

    def observe(
        self, tensors: Tensors, *, first_step: int, steps: int, tolerance: float
    ) -> Observed:
        """The sufficient statistics of ``steps`` batches from ``first_step`` on.

        They, and how well the head explains the batches, equal what ``learning.trainer`` finds.

        Features of all distinct rows are in memory at once, 4 d bytes each here and some five
        times as much while they are factorised.

        Args:
            tensors: ``score.weight`` and ``score.bias``.
            tolerance: see ``statistics.factorise``.

        Raises:
            GradsenseError: they are no head of this graph.
            IndexError: there are not so many batches.
        """
        if steps < 1 or first_step + steps > len(self._batches):
            raise IndexError(f"batches {first_step} to {first_step + steps - 1}")
        try:
            head = Head.of(tensors, len(self._labels))
        except ValueError as error:
            raise GradsenseError(f"the global model is of another run: {error}") from error
        phrase_ids, labels, weights = self._read(first_step, steps)
        blocks: list[Array] = []
        self._between()
        for (block,) in self._opened.blocks(["features"], phrase_ids):
            blocks.append(block)
            self._between()
        features = np.concatenate(blocks)
        if features.shape[1] != head.weight.shape[1]:
            raise GradsenseError(
                f"the global model's head reads {head.weight.shape[1]} features, this device's "
                f"graph has {features.shape[1]}"
            )
        return observed(
            features,
            softmax(head.logits(features)),
            labels,
            weights,
            classes=self._labels,
            tolerance=tolerance,
        )

    def train(self, *arguments: Any, **settings: Any) -> NoReturn:
        """Raises ``GradsenseError``: it never trains."""
        raise GradsenseError(
            "this device has no torch model, and the run's algorithm trains weights; "
            "install gradsense[train] and take the run's start with its model/ folder"
        )

    score = train

    def _read(self, first: int, count: int) -> Rows:
        """The distinct rows of these batches, with all their flows."""
        rows = [self._batches[number] for number in range(first, first + count)]
        return distinct_rows(*(np.concatenate(parts) for parts in zip(*rows, strict=True)))


def distinct_rows(phrase_ids: PhraseIds, labels: Numbers, weights: Numbers) -> Rows:
    """Each distinct (prompt, label) once, sorted, with the sum of its weights."""
    if not len(labels):
        return phrase_ids, labels, weights
    # Class numbers fit: a bundle has at most 1,000.
    table = np.column_stack([phrase_ids, labels.astype(np.uint16)])
    rows, places = np.unique(table, axis=0, return_inverse=True)
    sums = np.zeros(len(rows), np.int64)
    np.add.at(sums, places.reshape(-1), weights)
    return rows[:, :-1], rows[:, -1].astype(np.int64), sums
