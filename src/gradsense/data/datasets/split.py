"""Training, test and validation parts: at random, or with no text in two parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradsense.data.datasets.contradictions import class_rank, majority_class

How = Literal["grouped", "random"]

TRAIN, TEST, VALIDATION = 0, 1, 2
_PARTS = 3
#: Of training, test and validation (the paper's).
SHARES = np.array([0.7, 0.2, 0.1])
_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Three frames of the same columns that together hold every row once, in its order."""

    train: pl.DataFrame
    test: pl.DataFrame
    validation: pl.DataFrame


def split(frame: pl.DataFrame, *, how: How = "grouped", seed: int) -> Split:
    """Split flows with a ``class`` (and, when grouped, a ``text``) column, class by class.

    ``random`` permutes the rows of a class and cuts them; this is the paper's split, and puts
    flows that read the same into training and test. ``grouped`` gives every text to one part
    only. A text goes by its most frequent class. As one text may stand for thousands of flows,
    texts are placed largest first: each into a part drawn with a chance proportional to the
    flows that the part still lacks, among the parts that it fits into, else into the part that
    lacks most. So large texts do not overshoot a small part and small ones fill the gaps.

    Both ways every class with two rows (texts, when grouped) or more is in training and test,
    and with one is in training.
    """
    rng = np.random.default_rng(seed)
    part = _random(frame["class"], rng) if how == "random" else _grouped(frame, rng)
    train, test, validation = (frame.filter(pl.Series(part == k)) for k in range(_PARTS))
    return Split(train, test, validation)


def _random(classes: pl.Series, rng: np.random.Generator) -> _Ints:
    part = np.zeros(len(classes), np.int64)
    for name in sorted(classes.unique()):
        rows = rng.permutation((classes == name).arg_true().to_numpy())
        part[rows] = _with_train_and_test(dealt(SHARES, len(rows)), np.ones(len(rows)))
    return part


def dealt(shares: NDArray[np.float64], rows: int) -> _Ints:
    """Which of the shares, which sum to 1, each of the rows falls to, in their order."""
    bounds = np.rint(np.cumsum(shares)[:-1] * rows).astype(np.int64)
    return np.searchsorted(bounds, np.arange(rows), side="right")


def _grouped(frame: pl.DataFrame, rng: np.random.Generator) -> _Ints:
    sizes = frame.group_by("text").agg(pl.len().alias("flows"))
    groups = (
        majority_class(frame)
        .join(sizes, on="text", how="left", maintain_order="left")
        .with_columns(rank=class_rank())
        .sort("rank", "class", "text")
    )
    part = np.zeros(groups.height, np.int64)
    classes = groups["class"]
    flows = groups["flows"].to_numpy().astype(np.float64)
    for name in classes.unique(maintain_order=True):
        rows = rng.permutation((classes == name).arg_true().to_numpy())
        rows = rows[np.argsort(-flows[rows], kind="stable")]
        part[rows] = _with_train_and_test(_fill(flows[rows], rng), flows[rows])
    placed = groups.select("text", pl.Series("part", part))
    return frame.join(placed, on="text", how="left", maintain_order="left")["part"].to_numpy()


def _fill(flows: NDArray[np.float64], rng: np.random.Generator) -> _Ints:
    """A part for each group, given sizes in falling order."""
    lacking = (SHARES * flows.sum()).tolist()
    draws = rng.random(len(flows)).tolist()
    placed = np.zeros(len(flows), np.int64)
    for group, (size, draw) in enumerate(zip(flows.tolist(), draws, strict=True)):
        room = [lack if lack >= size else 0.0 for lack in lacking]
        target = draw * sum(room)
        if target > 0:
            part = TRAIN if target < room[0] else TEST if target < room[0] + room[1] else VALIDATION
        else:
            part = max(range(_PARTS), key=lacking.__getitem__)
        placed[group] = part
        lacking[part] -= size
    return placed


def _with_train_and_test(placed: _Ints, sizes: NDArray[np.float64]) -> _Ints:
    """Move single groups so that training, then test, holds one where there are enough."""
    placed = placed.copy()
    for part in (TRAIN, TEST)[: len(placed)]:
        if (placed == part).any():
            continue
        # Validation gives first: only training and test are promised a row of every class.
        counts = np.bincount(placed, minlength=_PARTS)
        giver = VALIDATION if counts[VALIDATION] else int(counts.argmax())
        candidates = np.flatnonzero(placed == giver)
        pick = sizes[candidates].argmax() if part == TRAIN else sizes[candidates].argmin()
        placed[candidates[pick]] = part
    return placed
