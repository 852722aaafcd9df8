"""How far a site contradicts what all the others agree on, from sufficient statistics alone.

Take a site's part out of the sum, S - S_k, and solve for the head W of the others. What W says of
the mean flow that the site calls c, W S_xc / n_c, has one entry a class: where that of another
class is larger than that of c, the others would have called these flows something else. That
counts as far as they know such flows at all: h = x̄ᵀ (G + Λ)⁻¹ x̄, the leverage of the mean flow x̄,
is about 1/n where the others have n flows like it, and large where they have none. So a class that
only this site has seen is news, and no contradiction.

The head without a site follows from that with all by a low-rank update: with K = X P Xᵀ, where X
is the site's rows of R and P = (G + Λ)⁻¹, leaving them out multiplies by (I - K)⁻¹, as in
leave-one-out regression (Cook and Weisberg 1982, §2.2). So one inverse serves all sites.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from gradsense.learning.learner import Array
from gradsense.learning.statistics import penalised_gram

#: The others know a flow well that they have so many like it of.
_KNOWN_FLOWS = 5.0

#: A class of fewer flows is rounding.
_LEAST_FLOWS = 0.25

_Floats = NDArray[np.float64]


def contradictions(
    factors: Mapping[str, Array], weights: Mapping[str, float], classes: int, regularisation: float
) -> dict[str, float]:
    """How far each site contradicts all the others: 0 not at all, 1 in every flow, for certain.

    Σ_c n_c/n · (largest other output - output of c, from 0 to 1) · min(1, 1 / (5 h)), over classes.

    Args:
        factors: site to R, [rows, d + 1 + classes]. Each is read twice and let go.
        weights: what each site's S counts for in the sum; 0 leaves it out.
        classes: how many of the last columns are labels.
        regularisation: λ of ``statistics.solve``.
    """
    sites = [site for site in factors if weights[site] > 0]
    if len(sites) < 2:
        return dict.fromkeys(sites, 0.0)
    total: _Floats = np.zeros((1, 1))
    for site in sites:
        rows = _weighted(factors[site], weights[site])
        total = total + rows.T @ rows
    features = len(total) - classes
    inverse: _Floats = np.asarray(
        np.linalg.inv(penalised_gram(total[:features, :features], regularisation)), np.float64
    )
    head = inverse @ total[:features, features:]
    scores = {}
    for site in sites:
        rows, least = _weighted(factors[site], weights[site]), _LEAST_FLOWS * weights[site]
        scores[site] = _contradiction(rows, least, inverse, head)
    return scores


def screened(
    factors: Mapping[str, Array],
    weights: Mapping[str, float],
    classes: int,
    regularisation: float,
    *,
    above: float = 0.1,
    most: float = 0.4,
) -> dict[str, float]:
    """The sites to leave out, each with the contradiction that it was left out for.

    The worst go first, and the others are asked again without them, until none is above. This
    is for fleets in which several sites see the same: where a site is alone with what it sees,
    nobody can say whether it lies. It is for a person to order: liars who outweigh the honest turn
    it against them.

    Args:
        above: contradictions that are too much.
        most: share of the sites that is left out at most; more are no minority.
    """
    left, out = dict(weights), dict[str, float]()
    while True:
        scores = contradictions(factors, left, classes, regularisation)
        worst = max(scores.values(), default=0.0)
        room = int(most * len(weights)) - len(out)
        # Half as bad as the worst goes with it: what is less may only look so beside the worst.
        bad = [site for site in scores if scores[site] > max(above, worst / 2)]
        bad = sorted(bad, key=lambda site: -scores[site])[:room]
        if not bad:
            return out
        out |= {site: scores[site] for site in bad}
        left |= dict.fromkeys(bad, 0.0)


def _weighted(factor: Array, weight: float) -> _Floats:
    return math.sqrt(weight) * factor.astype(np.float64)


def _contradiction(rows: _Floats, least: float, inverse: _Floats, head: _Floats) -> float:
    """Of one site's weighted R, given P and the head of all; classes below ``least`` are none."""
    known, labels = rows[:, : len(inverse)], rows[:, len(inverse) :]
    own = known @ inverse @ known.T  # K
    rest = np.eye(len(own)) - own
    outputs = np.linalg.solve(rest, known @ head - own @ labels)  # what the others say, by row
    leverage = np.linalg.solve(rest, own)
    counts = np.square(labels).sum(axis=0)
    score = 0.0
    for label in np.flatnonzero(counts > least):
        share = labels[:, label] / counts[label]  # makes means of sums over this class's flows
        output = share @ outputs
        against = float(np.delete(output, label).max() - output[label])
        far = max(float(share @ leverage @ share), 1e-12)
        known_to_others = min(1.0, 1 / (_KNOWN_FLOWS * far))
        score += counts[label] / counts.sum() * min(1.0, max(0.0, against)) * known_to_others
    return float(score)
