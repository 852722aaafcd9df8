"""How far a site contradicts what all the others agree on, from sufficient statistics alone.

Least squares over all sites misses by some squared error, and by less over all but one. What that
one adds is how far its flows cannot be had together with those of the others (the test of Chow
1960, whether two sets of observations follow one line). A kind of flow that only this site has
adds nothing, for the head is free there: it is news, and no contradiction. Where both have n flows
alike and call them differently, it adds as much as n/2 flows called wrongly; where the others have
many more, as much as n.

With X and Y a site's rows of R, P = (G + Λ)⁻¹ and W = P X_allᵀ Y_all over all sites, this one's
included, the rise is tr(Eᵀ (I - X P Xᵀ)⁻¹ E), E = Y - X W: leave-one-out regression by blocks
(Cook and Weisberg 1982, §2.2). So one inverse serves all sites.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from gradsense.learning.learner import Array
from gradsense.learning.statistics import penalised_gram

#: Of directions that only one site has, nothing is left without it: far above rounding.
_ALONE = 1e-9

_Floats = NDArray[np.float64]


def contradictions(
    factor_of: Callable[[str], Array],
    weights: Mapping[str, float],
    classes: int,
    regularisation: float,
) -> dict[str, float]:
    """How far each site contradicts all the others: 0 not at all, 1 in every flow, for certain.

    The rise of the squared error by the site's flows, over 2 for each of them: a flow that is
    called something else for certain misses by 1 in two places.

    Args:
        factor_of: a site's R, [rows, d + 1 + classes]. Asked twice for each and let go.
        weights: site to what its S counts for in the sum.
        classes: how many of the last columns are labels.
        regularisation: λ of ``statistics.solve``.
    """
    if len(weights) < 2:
        return dict.fromkeys(weights, 0.0)
    total: _Floats = np.zeros((1, 1))
    for site, weight in weights.items():
        rows = _weighted(factor_of(site), weight)
        total = total + rows.T @ rows
    features = len(total) - classes
    inverse: _Floats = np.asarray(
        np.linalg.inv(penalised_gram(total[:features, :features], regularisation)), np.float64
    )
    head = inverse @ total[:features, features:]
    return {
        site: _contradiction(_weighted(factor_of(site), weight), inverse, head)
        for site, weight in weights.items()
    }


def _weighted(factor: Array, weight: float) -> _Floats:
    return math.sqrt(weight) * factor.astype(np.float64)


def _contradiction(rows: _Floats, inverse: _Floats, head: _Floats) -> float:
    """Of one site's weighted R, given P and W of all."""
    known, labels = rows[:, : len(inverse)], rows[:, len(inverse) :]
    missed = labels - known @ head
    left = (1 + _ALONE) * np.eye(len(rows)) - known @ inverse @ known.T
    rise = float((missed * np.linalg.solve(left, missed)).sum())
    flows = float(np.square(labels).sum())
    return min(1.0, max(0.0, rise / (2 * flows))) if flows else 0.0
