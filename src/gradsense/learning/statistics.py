"""Sufficient statistics of least squares: second moments of a site's features and labels.

With features x (d values and a constant 1) and a one-hot label y, the matrix S = Σ [x; y][x; y]ᵀ
over flows fixes the ridge classifier, and S of two sites together is the sum of theirs. A fleet
that adds up its sites' S therefore gets the head of pooled training, whatever each site has seen
and in whatever order they send (Fed3R: Fanì et al. 2024, arXiv 2406.01116; AFL: He et al. 2025).

What travels is a factor R of few rows with RᵀR ≈ S. Rounding R keeps features and labels
consistent with each other, and RᵀR is never indefinite; rounding S itself by as much ruins the
solution, whose small eigenvalues matter. numpy only, so that a coordinator needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradsense.learning.learner import Array, Observed

#: Far below any real penalty, far above zero.
_LEAST_PENALTY = 1e-12

#: The one tensor of an update that carries sufficient statistics.
STATISTICS = "statistics"
#: The head's own names, [classes, d] and [classes].
HEAD_WEIGHT, HEAD_BIAS = "score.weight", "score.bias"


@dataclass(frozen=True)
class FleetStatistics:
    """The sufficient statistics that a fleet has added up, and how its head follows from them.

    Attributes:
        matrix: S, float64 [d + 1 + classes, d + 1 + classes].
        regularisation, sharpness: of ``federation.algorithms.gsfs.RidgeSum``.
    """

    matrix: NDArray[np.float64]
    regularisation: float
    sharpness: float


def factorise(rows: NDArray[np.float64], tolerance: float) -> Array:
    """R of S = rowsᵀ rows, largest direction first.

    Args:
        rows: [flows, d + 1 + classes], each flow's [x; y].
        tolerance: directions whose singular value is below this share of the largest are left
            out. S is then off by at most tolerance² of its largest eigenvalue.
    """
    width = rows.shape[1]
    if len(rows) > 2 * width:
        # Many flows, block by block: QR keeps RᵀR, and memory stays that of two blocks.
        blocks, rows = np.array_split(rows, len(rows) // width), rows[:0]
        for block in blocks:
            rows = np.asarray(np.linalg.qr(np.vstack([rows, block]), mode="r"))
    _, values, directions = np.linalg.svd(rows, full_matrices=False)
    kept = values > tolerance * values[0]
    factor: Array = (values[kept, None] * directions[kept]).astype(np.float32)
    return factor


def joined(factor: Array, other: Array) -> Array:
    """R of two sums of statistics together, in no more rows than columns.

    Args:
        factor, other: float32 [rows, width] each, with RᵀR the statistics.
    """
    rows: Array = np.vstack([factor, other])
    if len(rows) > rows.shape[1]:  # QR keeps RᵀR
        rows = np.asarray(np.linalg.qr(rows.astype(np.float64), mode="r"), dtype=np.float32)
    return rows


def relative_gradients(
    features: NDArray[np.float64],
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> dict[int, float]:
    """Class to ‖g_c‖ / ‖g_c(0)‖; see ``learner.Observed``.

    g_c = Σ w x (p − y)ᵀ over the flows of class c; for an untrained head p is 1/classes.

    Args:
        features: [flows, d + 1], the constant included.
        probabilities: [flows, classes] by the head in question.
        labels, weights: of each flow, [flows].
    """
    classes = probabilities.shape[1]
    ratios = {}
    for label in np.unique(labels):
        own = labels == label
        weighted = features[own] * weights[own, None]
        missed = probabilities[own] - np.eye(classes)[label]
        untrained = np.linalg.norm(weighted.sum(axis=0)) * np.sqrt(1 - 1 / classes)
        ratios[int(label)] = float(np.linalg.norm(weighted.T @ missed) / untrained)
    return ratios


def observed(
    features: NDArray[np.floating[Any]],
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    weights: NDArray[np.int64],
    *,
    classes: Sequence[str],
    tolerance: float,
) -> Observed:
    """What a site reports of flows that it has read.

    Args:
        features: [distinct, d], without the constant.
        probabilities: [distinct, classes] by the head in question.
        labels: [distinct].
        weights: how many flows each stands for, [distinct].
        classes: their names.
        tolerance: of ``factorise``.
    """
    known = np.hstack([features.astype(np.float64), np.ones((len(labels), 1))])
    counts = weights.astype(np.float64)
    norms = relative_gradients(known, probabilities, labels, counts)
    both = np.hstack([known, np.eye(len(classes))[labels]])
    return Observed(
        factorise(np.sqrt(counts)[:, None] * both, tolerance),
        {classes[label]: norm for label, norm in norms.items()},
        int(weights.sum()),
    )


def penalised_gram(gram: NDArray[np.float64], regularisation: float) -> NDArray[np.float64]:
    """G + Λ, the part of S that no label enters with ridge's penalty on its diagonal.

    Λ is λ m for every feature, with m their mean square sum, and nothing for the constant.

    Args:
        gram: G, [d + 1, d + 1].
        regularisation: λ.
    """
    features = len(gram) - 1
    penalty = np.full(features + 1, regularisation * np.trace(gram[:-1, :-1]) / max(1, features))
    penalty[-1] = 0.0
    # What remains keeps the system solvable whatever a site sends: all zeros, say.
    return gram + np.diag(np.maximum(penalty, _LEAST_PENALTY))


def solve(
    matrix: NDArray[np.float64], classes: int, regularisation: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ridge classifier: argmin Σ ‖W x + b − y‖² + λ m ‖W‖², m the features' mean square sum.

    Args:
        matrix: S, [d + 1 + classes, d + 1 + classes], of at least one flow.
        classes: how many of its last rows and columns are labels.
        regularisation: λ > 0. Relative to m, so that it means the same for any number of flows.

    Returns:
        W [classes, d] and b [classes].
    """
    width = len(matrix) - classes
    cross = matrix[:width, width:]
    head = np.linalg.solve(penalised_gram(matrix[:width, :width], regularisation), cross).astype(
        np.float64
    )
    return head[:-1].T, head[-1]
