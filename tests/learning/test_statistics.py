"""Moments: factored, added up and solved, against numbers done by hand and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.linear_model import Ridge

from gradsense.learning.statistics import factorise, relative_gradients, solve

CLASSES = 3

matrices = st.tuples(st.integers(1, 8), st.integers(2, 6)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(-10, 10, width=32))
)


def flows(count: int, seed: int, *, features: int = 4) -> np.ndarray:
    """[x, 1, one-hot y] of random flows whose class shifts one of their features."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count)
    x = rng.normal(size=(count, features)) + 2 * np.eye(CLASSES, features)[labels]
    return np.hstack([x, np.ones((count, 1)), np.eye(CLASSES)[labels]])


# The factor ---------------------------------------------------------------------------------


def test_factor_gives_the_moments_back() -> None:
    rows = flows(50, 0)
    factor = factorise(rows, tolerance=0.0)
    assert factor.dtype == np.float32
    # Seven rows for eight columns: the constant is the sum of the one-hot labels.
    assert np.linalg.matrix_rank(rows) == 7
    kept = factorise(rows, tolerance=1e-6)
    assert kept.shape == (7, 8)
    for one in (factor, kept):
        assert one.T @ one == pytest.approx(rows.T @ rows, abs=1e-3)


def test_factor_leaves_out_what_is_below_the_tolerance_by_hand() -> None:
    # Singular values 4, 2 and 1, along the axes.
    rows = np.diag([2.0, 4.0, 1.0])
    assert np.abs(factorise(rows, 0.2)) == pytest.approx(np.diag([4.0, 2.0, 1.0])[:, [1, 0, 2]])
    assert np.abs(factorise(rows, 0.3)) == pytest.approx(np.array([[0, 4, 0], [2, 0, 0]]))
    assert np.abs(factorise(rows, 0.5)) == pytest.approx(np.array([[0, 4, 0]])), "2 is not above"


def test_flows_that_say_the_same_take_one_row() -> None:
    factor = factorise(np.tile([[3.0, 1.0, 0.0, 1.0]], (9, 1)), tolerance=0.005)
    assert np.abs(factor) == pytest.approx(np.array([[9.0, 3.0, 0.0, 3.0]]))  # √9 times the row


@settings(max_examples=100, deadline=None)
@given(rows=matrices, tolerance=st.floats(0, 0.9))
def test_statistics_are_off_by_no_more_than_tolerance_squared(
    rows: np.ndarray, tolerance: float
) -> None:
    moments = rows.T @ rows
    factor = factorise(rows, tolerance).astype(np.float64)
    largest = np.linalg.eigvalsh(moments)[-1]
    assert len(factor) <= min(rows.shape)
    off = np.linalg.norm(moments - factor.T @ factor, ord=2)
    # The second part is float32's rounding of the factor.
    assert off <= (tolerance**2 + 1e-6) * largest + 1e-30
    norms = np.linalg.norm(factor, axis=1)
    assert (np.diff(norms) <= 1e-6 * norms[:-1]).all(), "largest direction first"


# The head -----------------------------------------------------------------------------------

#: x = 0 of class 0 and x = 1 of class 1.
TWO_POINTS = np.array([[0.0, 1, 1, 0], [1.0, 1, 0, 1]])


def test_two_points_by_hand() -> None:
    # For class 1: (b)² + (w + b - 1)² + λ w² is least where b = (1 - w) / 2 and, put in,
    # w (1/2 + λ) = 1/2. The mean square sum of the one feature is 1, so λ counts as it is.
    weight, bias = solve(TWO_POINTS.T @ TWO_POINTS, 2, regularisation=0.5)
    assert weight == pytest.approx(np.array([[-0.5], [0.5]]))
    assert bias == pytest.approx([0.75, 0.25])
    weight, bias = solve(TWO_POINTS.T @ TWO_POINTS, 2, regularisation=1e-12)
    assert weight == pytest.approx(np.array([[-1.0], [1.0]]))
    assert bias == pytest.approx([1.0, 0.0], abs=1e-9)


@pytest.mark.parametrize("regularisation", [1e-4, 1e-2, 1.0])
def test_head_is_that_of_scikit_learn(regularisation: float) -> None:
    rows = flows(80, 1)
    x, y = rows[:, :4], rows[:, 5:]
    penalty = regularisation * np.square(x).sum() / 4
    reference = Ridge(alpha=penalty).fit(x, y)
    weight, bias = solve(rows.T @ rows, CLASSES, regularisation)
    assert weight == pytest.approx(reference.coef_)
    assert bias == pytest.approx(reference.intercept_)


def test_regularisation_is_relative_to_the_flows() -> None:
    rows = flows(30, 2)
    once = solve(rows.T @ rows, CLASSES, 0.1)
    twice = np.vstack([rows, rows])
    for one, two in zip(once, solve(twice.T @ twice, CLASSES, 0.1), strict=True):
        assert two == pytest.approx(one)


def test_bias_is_not_shrunk() -> None:
    rows = flows(40, 3)
    weight, bias = solve(rows.T @ rows, CLASSES, 1e9)
    assert np.abs(weight).max() < 1e-6
    # Nothing but the bias is left: the share of each class.
    assert bias == pytest.approx(rows[:, 5:].mean(axis=0), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(cut=st.integers(0, 60), seed=st.integers(0, 99))
def test_sites_together_find_the_head_of_pooled_training(cut: int, seed: int) -> None:
    """However the flows are dealt out, one class to a site included."""
    rows = flows(60, seed)
    rows = rows[np.argsort(rows[:, 5:].argmax(axis=1), kind="stable")]
    pooled = solve(rows.T @ rows, CLASSES, 1e-2)
    parts = [part for part in (rows[:cut], rows[cut:]) if len(part)]
    exact = sum(part.T @ part for part in parts)
    factors = [factorise(part, 0.0).astype(np.float64) for part in parts]
    sent = sum(factor.T @ factor for factor in factors)
    for moments, within in ((exact, 1e-9), (sent, 1e-4)):
        for one, two in zip(pooled, solve(moments, CLASSES, 1e-2), strict=True):
            assert two == pytest.approx(one, abs=within)


# How loud ----------------------------------------------------------------------------------

X = np.array([[3.0, 1.0], [-1.0, 1.0], [0.5, 1.0], [2.0, 1.0]])
LABELS = np.array([0, 2, 2, 1])
WEIGHTS = np.array([1.0, 2.0, 1.0, 5.0])


def test_untrained_head_is_at_one_and_perfect_head_at_zero() -> None:
    uniform = np.full((4, CLASSES), 1 / CLASSES)
    assert relative_gradients(X, uniform, LABELS, WEIGHTS) == pytest.approx({0: 1, 1: 1, 2: 1})
    perfect = np.eye(CLASSES)[LABELS]
    assert relative_gradients(X, perfect, LABELS, WEIGHTS) == {0: 0.0, 1: 0.0, 2: 0.0}


def test_relative_gradient_by_hand() -> None:
    # Two classes, flows (x, 1) = (1, 1) and (3, 1) of class 0. Half sure of the first, sure of
    # the second: g = (1, 1) × (-1/2, 1/2), of length √2 × √½ = 1.
    # Untrained: ((1, 1) + (3, 1)) × (-1/2, 1/2), of length √20 × √½ = √10.
    x, labels = np.array([[1.0, 1.0], [3.0, 1.0]]), np.array([0, 0])
    p = np.array([[0.5, 0.5], [1.0, 0.0]])
    ratio = relative_gradients(x, p, labels, np.ones(2))
    assert ratio == {0: pytest.approx(1 / np.sqrt(10))}


def test_a_flow_that_counts_twice_is_two_flows() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(CLASSES), size=4)
    times = WEIGHTS.astype(int)
    copies = relative_gradients(
        X.repeat(times, axis=0), p.repeat(times, axis=0), LABELS.repeat(times), np.ones(9)
    )
    assert relative_gradients(X, p, LABELS, WEIGHTS) == pytest.approx(copies)


def test_a_class_that_a_site_lacks_is_not_spoken_of() -> None:
    uniform = np.full((2, CLASSES), 1 / CLASSES)
    assert relative_gradients(X[:2], uniform, LABELS[:2], WEIGHTS[:2]).keys() == {0, 2}


def test_many_flows_are_folded_block_by_block() -> None:
    rows = np.random.default_rng(0).normal(size=(1000, 6))
    factor = factorise(rows, 0.0).astype(np.float64)
    assert factor.shape == (6, 6)
    assert factor.T @ factor == pytest.approx(rows.T @ rows, rel=1e-4, abs=1e-3)
