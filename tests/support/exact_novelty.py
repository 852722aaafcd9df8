"""Exact novelty scores, the oracle of the sketch that a gateway computes.

Both are larger for what is more novel to the fleet whose summed statistics they are given.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradsense.learning.statistics import penalised_gram, solve
from gradsense.models.heads.influence import LEAST_RESIDUAL


def leverage(
    features: NDArray[np.float64], statistics: NDArray[np.float64], regularisation: float = 1e-4
) -> NDArray[np.float64]:
    """h = xᵀ (G + Λ)⁻¹ x: how little the flows behind the statistics span this one, [n].

    G is the part of S that no label enters, Λ the penalty of ``statistics.solve``, which leaves the
    constant alone. Three readings of the same number:

    - With Λ = 0 the diagonal of the hat matrix; a flow seen k times before has h ≤ 1/k.
    - With N flows of mean μ and scatter N Σ, h = (1 + (x − μ)ᵀ (Σ + Λ/N)⁻¹ (x − μ)) / N: the
      squared Mahalanobis distance to the fleet's mean, regularised.
    - σ² h is the predictive variance of Bayesian ridge regression with noise σ², so h is how
      unsure the head must be of its own output.

    Args:
        features: what the head reads, [n, d], without the constant.
        statistics: S, [d + 1 + classes, d + 1 + classes], of at least one flow.
        regularisation: λ > 0, as in ``statistics.solve``.

    Raises:
        ValueError: the statistics are of other features.
    """
    known, penalised = _system(features, statistics, regularisation)
    scores: NDArray[np.float64] = (known.T * np.linalg.solve(penalised, known.T)).sum(axis=0)
    return scores


def influence(
    features: NDArray[np.float64], statistics: NDArray[np.float64], regularisation: float = 1e-4
) -> NDArray[np.float64]:
    """(‖y − Wx − b‖² + ε) h: how a flow pulls at the head, its own verdict y taken as true, [n].

    The residual sees flows between the classes, which may lie well within the span of what was
    seen; leverage sees flows outside that span, however sure the head is of them. Without ε the
    product is the squared norm of the flow's gradient x (Wx + b − y)ᵀ in the metric of the loss's
    own curvature G + Λ: sensing (eq 9-11), flow by flow. To first order in h it is Cook's distance
    (Cook 1977) of a flow that is not yet in the regression, up to a constant; kin to GradNorm
    (Huang et al. 2021, arXiv 2110.00218). ε only matters where the residual says nothing: a head
    that has seen one class answers the same to everything, and the order is then leverage's.

    Args:
        features, statistics, regularisation: as for ``leverage``; every flow behind S has a label.

    Raises:
        ValueError: the statistics are of other features.
    """
    classes = len(statistics) - features.shape[1] - 1
    pull = leverage(features, statistics, regularisation)
    weight, bias = solve(statistics, classes, regularisation)
    outputs = features @ weight.T + bias
    missed: NDArray[np.float64] = np.eye(classes)[outputs.argmax(axis=1)] - outputs
    scores: NDArray[np.float64] = ((missed**2).sum(axis=1) + LEAST_RESIDUAL) * pull
    return scores


def _system(
    features: NDArray[np.float64], statistics: NDArray[np.float64], regularisation: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[x; 1] of each flow, [n, d + 1], and G + Λ."""
    width = features.shape[1] + 1
    if len(statistics) < width:
        raise ValueError(
            f"statistics of {len(statistics)} rows for {width - 1} features and a constant"
        )
    gram = statistics[:width, :width]
    known = np.hstack([features, np.ones((len(features), 1))])
    return known, penalised_gram(gram, regularisation)
