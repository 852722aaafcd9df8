"""Who contradicts the others: by hand, against leaving each out for real, and with liars."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsense.learning.screening import contradictions
from gradsense.learning.statistics import penalised_gram

#: One flow of x = 0 and class 0, one of x = 1 and class 1.
HONEST = np.array([[0, 1, 1, 0], [1, 1, 0, 1]], np.float32)
LIAR = HONEST[:, [0, 1, 3, 2]]
SMALL = 1e-9


def scored(
    sites: dict[str, np.ndarray], penalty: float = SMALL, **weights: float
) -> dict[str, float]:
    classes = 3 if sites and next(iter(sites.values())).shape[1] > 5 else 2
    weights = {site: weights.get(site, 1.0) for site in sites}
    return contradictions(sites.__getitem__, weights, classes, penalty)


def test_a_liar_among_three_by_hand() -> None:
    # Of each kind, three say one class and "d" the other. The head says 3/4 and 1/4, and misses
    # by 3 (1/16 + 1/16) + (9/16 + 9/16) = 3/2, where it missed by nothing without "d": 3/2 of 2.
    scores = scored({"a": HONEST, "b": HONEST, "c": HONEST, "d": LIAR})
    assert scores["d"] == pytest.approx(3 / 4, abs=1e-6)
    # Without "a" it says 2/3 and 1/3, and misses by 4/3: "a" adds 1/6.
    assert [scores[site] for site in "abc"] == pytest.approx([1 / 12] * 3, abs=1e-6)


def test_one_against_one_are_both_contradicted() -> None:
    assert scored({"a": HONEST, "b": LIAR}) == pytest.approx({"a": 0.5, "b": 0.5})


def test_nobody_contradicts_himself() -> None:
    assert scored({"a": HONEST}) == {"a": 0.0}
    assert scored({}) == {}
    assert scored({"a": HONEST, "b": HONEST}) == pytest.approx({"a": 0, "b": 0}, abs=1e-6)


def test_weights_count() -> None:
    # Six against one: 6/7 of what it adds where all others are certain.
    assert scored({"a": HONEST, "c": LIAR}, a=6.0)["c"] == pytest.approx(6 / 7)


def test_a_kind_of_flow_that_only_one_has_seen_is_no_contradiction() -> None:
    # A second feature, which nobody else has: the others would say class 0, but know nothing.
    old = np.array([[1, 0, 1, 1, 0], [1, 0, 1, 1, 0]], np.float32)
    new = np.array([[1, 9, 1, 0, 1]] * 50, np.float32)
    sites = {"a": old, "b": old, "c": new}
    assert scored(sites, 1e-6)["c"] < 1e-4
    lie = np.array([[1, 0, 1, 0, 1]] * 2, np.float32)
    assert scored(sites | {"c": lie}, 1e-6)["c"] == pytest.approx(2 / 3, abs=1e-3)


def flows(count: int, seed: int, *, wrong: bool = False, classes: int = 3) -> np.ndarray:
    """[x, 1, y] of flows whose class shifts one of their eight features."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    x = 0.3 * rng.normal(size=(count, 8)) + 3 * np.eye(classes, 8)[labels]
    labels = (labels + wrong) % classes
    return np.hstack([x, np.ones((count, 1)), np.eye(classes)[labels]]).astype(np.float32)


def missed(rows: list[np.ndarray], penalty: np.ndarray) -> float:
    """What least squares over these rows misses by, the penalty included."""
    x, y = np.vstack(rows)[:, :-3].astype(float), np.vstack(rows)[:, -3:].astype(float)
    head = np.linalg.solve(x.T @ x + penalty, x.T @ y)
    return float(np.square(y - x @ head).sum() + (head * (penalty @ head)).sum())


def test_leaving_a_site_out_is_what_it_is_computed_as() -> None:
    sites = {f"s{seed}": flows(30, seed, wrong=seed == 0) for seed in range(4)}
    weights = {"s0": 1.0, "s1": 0.5, "s2": 1.0, "s3": 0.2}
    rows = {site: np.sqrt(weights[site]) * own for site, own in sites.items()}
    gram = np.vstack(list(rows.values())).astype(float)[:, :9]
    gram = gram.T @ gram
    penalty = penalised_gram(gram, 1e-3) - gram  # that of all together
    for site, score in scored(sites, 1e-3, **weights).items():
        others = [own for name, own in rows.items() if name != site]
        rise = missed(list(rows.values()), penalty) - missed(others, penalty)
        assert score == pytest.approx(rise / (2 * 30 * weights[site]), rel=1e-4)


@given(seed=st.integers(0, 999), liars=st.integers(1, 6), alike=st.sampled_from([20, 40]))
def test_with_redundancy_the_liars_are_first(seed: int, liars: int, alike: int) -> None:
    sites = {f"s{n}": flows(alike * 3, 20 * seed + n, wrong=n < liars) for n in range(20)}
    scores = scored(sites, 1e-3)
    first = sorted(scores, key=scores.__getitem__, reverse=True)[:liars]
    assert set(first) == {f"s{n}" for n in range(liars)}
