"""Training, test and validation parts, by name: each name one rule, one function in ``SPLITS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradsense.data.datasets.contradictions import class_rank, majority_class

How = Literal["time", "grouped", "random"]

TRAIN, TEST, VALIDATION = 0, 1, 2
_PARTS = 3
#: Of training, test and validation.
SHARES = np.array([0.7, 0.2, 0.1])
#: The paper's: "70/20/10" names training, validation and test in this order.
PAPER_SHARES = np.array([0.7, 0.1, 0.2])
_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Three frames of the same columns that together hold every row once, in its order."""

    train: pl.DataFrame
    test: pl.DataFrame
    validation: pl.DataFrame


def split(frame: pl.DataFrame, *, how: How = "grouped", seed: int) -> Split:
    """Split flows as ``how`` says.

    - ``time``: of each capture the first 70 % train, the next 10 % validate, the last 20 % test.
      The rows of a capture must stand in time order, as ``captures.load`` gives them. A class
      that comes late is in the test alone.
    - ``grouped``: 70 % train, 20 % test, 10 % validate, class by class, and no ``compact`` text
      is in two parts: a test flow is one that training has not seen, whatever its template adds
      on the flows before. A text goes by its most frequent class. As one text may stand for
      thousands of flows, texts are placed largest first: each into a part drawn with a chance
      proportional to the flows that the part still lacks, among the parts that it fits into, else
      into the part that lacks most. So large texts do not overshoot a small part and small ones
      fill the gaps.
    - ``random``: the paper's, 70 % train, 20 % validate, 10 % test: the rows of a class are
      permuted and cut. It puts flows that read the same into training and test.

    ``grouped`` and ``random`` put every class with two rows (texts, when grouped) or more into
    training and test, and one with a single row into training.

    Args:
        frame: with the columns ``class``, and ``compact`` when grouped, ``capture`` by time.
        how: a name in ``SPLITS``.
        seed: of all draws; ``time`` draws nothing.
    """
    part = SPLITS[how](frame, np.random.default_rng(seed))
    train, test, validation = (frame.filter(pl.Series(part == k)) for k in range(_PARTS))
    return Split(train, test, validation)


def _by_time(frame: pl.DataFrame, rng: np.random.Generator) -> _Ints:
    part = np.zeros(frame.height, np.int64)
    # Validation before test: what is chosen on it must not know the future of the test.
    order = (TRAIN, VALIDATION, TEST)
    later = np.array(order)
    for rows in _rows_of(frame["capture"]):
        part[rows] = later[dealt(SHARES[list(order)], len(rows))]
    return part


def _rows_of(names: pl.Series) -> list[_Ints]:
    """Where each name stands, in order."""
    places = pl.DataFrame({"name": names}).with_row_index("row")
    rows = places.group_by("name", maintain_order=True).agg("row")["row"]
    return [one.to_numpy().astype(np.int64) for one in rows]


def _random(frame: pl.DataFrame, rng: np.random.Generator) -> _Ints:
    classes = frame["class"]
    part = np.zeros(len(classes), np.int64)
    for name in sorted(classes.unique()):
        rows = rng.permutation((classes == name).arg_true().to_numpy())
        part[rows] = _with_train_and_test(dealt(PAPER_SHARES, len(rows)), np.ones(len(rows)))
    return part


def dealt(shares: NDArray[np.float64], rows: int) -> _Ints:
    """Which of the shares, which sum to 1, each of the rows falls to, in their order."""
    bounds = np.rint(np.cumsum(shares)[:-1] * rows).astype(np.int64)
    return np.searchsorted(bounds, np.arange(rows), side="right")


def _grouped(frame: pl.DataFrame, rng: np.random.Generator) -> _Ints:
    frame = frame.select(pl.col("compact").alias("text"), "class")
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


#: Every split by name: a frame and a generator to the part of each row.
SPLITS: dict[How, Callable[[pl.DataFrame, np.random.Generator], _Ints]] = {
    "time": _by_time,
    "grouped": _grouped,
    "random": _random,
}
