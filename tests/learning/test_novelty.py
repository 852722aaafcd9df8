"""Novelty scores against numbers done by hand, and the identities that their docstrings claim."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.learning.answers import fleet_score
from gradsense.learning.statistics import FleetStatistics, solve
from gradsense.models.heads.influence import SketchedInfluence
from tests.support.exact_novelty import influence, leverage

#: So small that only exact collinearity would notice it.
TINY = 1e-9


def moments(features: np.ndarray, labels: list[int], classes: int) -> np.ndarray:
    rows = np.hstack([features, np.ones((len(features), 1)), np.eye(classes)[labels]])
    return rows.T @ rows


def test_leverage_of_one_feature_by_hand() -> None:
    # Flows at -1 and 1: G = diag(2, 2), and the penalty is 0.5 times the mean square sum of 2.
    known = moments(np.array([[-1.0], [1.0]]), [0, 1], 2)
    scores = leverage(np.array([[0.0], [3.0]]), known, regularisation=0.5)
    assert scores == pytest.approx([1 / 2, 9 / 3 + 1 / 2])


def test_a_flow_seen_k_times_has_leverage_of_at_most_one_in_k() -> None:
    flows = np.array([[1.0, 0.0]] * 4 + [[0.0, 1.0]])
    scores = leverage(flows, moments(flows, [0] * 4 + [1], 2), TINY)
    assert scores == pytest.approx([1 / 4] * 4 + [1.0])


def test_an_unseen_direction_is_more_novel_than_a_longer_seen_one() -> None:
    flows = np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    seen, unseen = leverage(np.array([[6.0, 0.0], [2.0, 0.5]]), moments(flows, [0, 1, 0], 2))
    assert unseen > 10 * seen


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1.0))
def test_leverage_is_the_regularised_mahalanobis_distance(seed: int, strength: float) -> None:
    rng = np.random.default_rng(seed)
    flows, new = rng.normal(size=(30, 4)) * [1, 2, 3, 4] + 1, rng.normal(size=(6, 4))
    number, mean = len(flows), flows.mean(axis=0)
    penalty = strength * (flows**2).sum() / 4
    covariance = np.cov(flows.T, bias=True) + penalty / number * np.eye(4)
    away = new - mean
    squared = np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away)
    known = moments(flows, [0] * number, 1)
    assert leverage(new, known, strength) == pytest.approx((1 + squared) / number)


def test_statistics_of_two_sites_add_up() -> None:
    rng = np.random.default_rng(0)
    one, two, new = rng.normal(size=(9, 3)), rng.normal(size=(7, 3)), rng.normal(size=(4, 3))
    both = moments(np.vstack([one, two]), [0, 1] * 8, 2)
    summed = moments(one, [0, 1] * 4 + [0], 2) + moments(two, [1, 0] * 3 + [1], 2)
    assert leverage(new, summed) == pytest.approx(leverage(new, both))
    assert influence(new, summed) == pytest.approx(influence(new, both))


def test_influence_by_hand() -> None:
    # Flows at -1 (class 0) and 1 (class 1): outputs (1 - x) / 2 and (1 + x) / 2 without penalty.
    known = moments(np.array([[-1.0], [1.0]]), [0, 1], 2)
    scores = influence(np.array([[1.0], [0.5], [3.0]]), known, TINY)
    # At 0.5 they are 1/4 and 3/4, off by 1/4 each.
    # Leverage is x²/2 + 1/2; at 3 they are -1 and 2.
    squares, span = np.array([0.0, 2 / 16, 2.0]), np.array([1.0, 0.625, 5.0])
    assert scores == pytest.approx((squares + 1e-3) * span, abs=1e-6)


def test_influence_is_the_gradient_in_the_metric_of_the_curvature() -> None:
    rng = np.random.default_rng(1)
    flows, labels = rng.normal(size=(40, 3)), (np.arange(40) % 3).tolist()
    known, new = moments(flows, labels, 3), rng.normal(size=3)
    weight, bias = solve(known, 3, 0.01)
    output = weight @ new + bias
    x = np.append(new, 1.0)
    gradient = np.outer(x, output - np.eye(3)[output.argmax()])
    penalty = 0.01 * np.trace(known[:3, :3]) / 3
    curvature = known[:4, :4] + np.diag([penalty] * 3 + [0.0])
    metric = np.linalg.inv(curvature)
    expected = np.trace(gradient.T @ metric @ gradient) + 1e-3 * x @ metric @ x
    assert influence(new[None], known, 0.01) == pytest.approx([expected])


def test_with_one_class_influence_orders_as_leverage_does() -> None:
    rng = np.random.default_rng(2)
    known, new = moments(rng.normal(size=(20, 3)), [0] * 20, 2), rng.normal(size=(9, 3))
    assert influence(new, known) == pytest.approx(1e-3 * leverage(new, known))


def test_a_fleet_that_saw_only_zeros_still_gives_finite_scores() -> None:
    known = moments(np.zeros((3, 2)), [0, 1, 0], 2)
    scores = leverage(np.array([[0.0, 0.0], [1.0, 0.0]]), known)
    assert scores[0] == pytest.approx(1 / 3)
    assert scores[0] < scores[1] < np.inf


def test_statistics_of_other_features_are_refused() -> None:
    with pytest.raises(ValueError, match="statistics of 3 rows for 5 features"):
        leverage(np.zeros((1, 5)), np.eye(3))


def sketch(
    known: np.ndarray, classes: int, *, seed: int, regularisation: float = 1e-4, rows: int = 128
) -> SketchedInfluence:
    score = fleet_score(FleetStatistics(known, regularisation, 10.0), classes, seed=seed, rows=rows)
    assert score is not None
    return score


def features_of(
    classes: int = 3, flows: int = 400, width: int = 30
) -> tuple[np.ndarray, list[int]]:
    """Flows whose labels and spread follow a few directions, as real ones do."""
    rng = np.random.default_rng(3)
    labels = rng.integers(classes, size=flows)
    centres = rng.normal(size=(classes, width))
    return centres[labels] + rng.normal(size=(flows, width)) * np.geomspace(1, 0.01, width), (
        labels.tolist()
    )


def sketched(new: np.ndarray, known: np.ndarray, classes: int, **options: Any) -> np.ndarray:
    """The sketch's scores as a gateway has them, from float32 features and a sharpened head."""
    weight, bias = solve(known, classes, 1e-4)
    score = sketch(known, classes, seed=0, **options)
    logits = 10 * (new @ weight.T + bias)
    return score(torch.tensor(new).float(), torch.tensor(logits).float()).numpy()


def test_a_sketch_of_one_feature_by_hand() -> None:
    # As in test_influence_by_hand; G + Λ is diagonal, so each row of P is ±1/√r of (x, 1) / √2,
    # and with one row, h is (x ± 1)²/2.
    known = moments(np.array([[-1.0], [1.0]]), [0, 1], 2)
    score = sketch(known, 2, regularisation=TINY, rows=1, seed=0)
    signs = torch.sign(torch.cat([score.projection.weight[0], score.projection.bias]))
    x = np.array([[1.0], [0.5], [3.0]])
    outputs = np.hstack([(1 - x) / 2, (1 + x) / 2])
    found = score(torch.tensor(x).float(), torch.tensor(10 * outputs).float())
    span = (float(signs[0]) * x[:, 0] + float(signs[1])) ** 2 / 2
    squares = np.array([0.0, 2 / 16, 2.0])
    expected = np.log10(np.maximum((squares + 1e-3) * span, 1e-12))
    assert found.numpy() == pytest.approx(expected, abs=1e-4)


def test_a_sketch_is_the_influence_within_its_error() -> None:
    flows, labels = features_of()
    known, new = moments(flows, labels, 3), features_of(flows=900)[0]
    apart = sketched(new, known, 3) - np.log10(influence(new, known))
    # Each h is off by a factor with a standard deviation of √(2/128), 0.054 in decades.
    assert np.abs(apart).max() < 4.5 * 0.054
    assert np.abs(sketched(new, known, 3, rows=8192) - np.log10(influence(new, known))).max() < 0.04


def test_a_sketch_tells_what_lies_outside_the_span() -> None:
    flows, labels = features_of()
    away = flows[:50].copy()
    away[:, -1] += 1.0  # where the known flows hardly vary
    known = moments(flows, labels, 3)
    assert sketched(away, known, 3).min() > np.quantile(sketched(flows, known, 3), 0.995)


def test_a_sketch_depends_on_its_seed_alone() -> None:
    flows, labels = features_of()
    known = moments(flows, labels, 3)
    one, same, other = (sketch(known, 3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.projection.weight, same.projection.weight)
    assert not torch.equal(one.projection.weight, other.projection.weight)
    assert one.projection.weight.shape == (128, 30)


@pytest.mark.parametrize("size", [0.0, 1e18])
def test_a_sketched_score_is_always_finite(size: float) -> None:
    score = SketchedInfluence.of(np.zeros((4, 3)) + size, 10.0)
    found = score(torch.full((2, 2), size), torch.full((2, 5), size))
    assert found.isfinite().all()
    assert found.tolist() == [12.0 if size else -12.0] * 2
