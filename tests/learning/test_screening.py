"""Who contradicts the others: by hand, against leaving each out for real, and with liars."""

from __future__ import annotations

import numpy as np
import pytest

from gradsense.learning.screening import contradictions, screened
from gradsense.learning.statistics import penalised_gram

#: One flow of x = 0 and class 0, one of x = 1 and class 1.
HONEST = np.array([[0, 1, 1, 0], [1, 1, 0, 1]], np.float32)
LIAR = HONEST[:, [0, 1, 3, 2]]
SMALL = 1e-9


def ones(sites: dict[str, np.ndarray]) -> dict[str, float]:
    return dict.fromkeys(sites, 1.0)


def test_a_liar_among_three_by_hand() -> None:
    # Without "d" the others say exactly class 0 of x = 0 and class 1 of x = 1: it is against them
    # in every flow, by 1. They have three flows of each kind, so h = 1/3 and 1 / (5 h) = 0.6.
    sites = {"a": HONEST, "b": HONEST, "c": HONEST, "d": LIAR}
    scores = contradictions(sites, ones(sites), 2, SMALL)
    assert scores["d"] == pytest.approx(0.6, abs=1e-6)
    # Without "a" two say so and one does not: 2/3 against 1/3, for the site's own.
    assert [scores[site] for site in "abc"] == pytest.approx([0.0] * 3, abs=1e-6)


def test_one_against_one_are_both_contradicted() -> None:
    # h = 1, so 1 / (5 h) = 0.2.
    sites = {"a": HONEST, "b": LIAR}
    assert contradictions(sites, ones(sites), 2, SMALL) == pytest.approx({"a": 0.2, "b": 0.2})


def test_nobody_contradicts_himself() -> None:
    assert contradictions({"a": HONEST}, {"a": 1.0}, 2, SMALL) == {"a": 0.0}
    assert contradictions({}, {}, 2, SMALL) == {}


def test_weights_count_and_zero_leaves_out() -> None:
    sites = {"a": HONEST, "b": HONEST, "c": LIAR}
    alone = contradictions(sites, {"a": 1.0, "b": 0.0, "c": 1.0}, 2, SMALL)
    assert alone == pytest.approx({"a": 0.2, "c": 0.2})
    # "a" with six flows of each kind outweighs: h = 1/6, 1 / (5 h) = 1.2, at most 1.
    heavy = contradictions(sites, {"a": 6.0, "b": 0.0, "c": 1.0}, 2, SMALL)
    assert heavy["c"] == pytest.approx(1.0)


def test_a_kind_of_flow_that_only_one_has_seen_is_no_contradiction() -> None:
    # A second feature, which nobody else has: the others would say class 0, but know nothing.
    old = np.array([[1, 0, 1, 1, 0], [1, 0, 1, 1, 0]], np.float32)
    new = np.array([[1, 9, 1, 0, 1]] * 50, np.float32)
    sites = {"a": old, "b": old, "c": new}
    assert contradictions(sites, ones(sites), 2, 1e-6)["c"] < 1e-4
    lie = np.array([[1, 0, 1, 0, 1]] * 50, np.float32)
    assert contradictions(sites | {"c": lie}, ones(sites), 2, 1e-6)["c"] > 0.5


def flows(count: int, seed: int, *, wrong: bool = False, classes: int = 3) -> np.ndarray:
    """[x, 1, y] of flows whose class shifts one of their eight features."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    x = 0.3 * rng.normal(size=(count, 8)) + 3 * np.eye(classes, 8)[labels]
    labels = (labels + wrong) % classes
    return np.hstack([x, np.ones((count, 1)), np.eye(classes)[labels]]).astype(np.float32)


def test_leaving_a_site_out_is_what_it_is_computed_as() -> None:
    sites = {f"s{seed}": flows(30, seed, wrong=seed == 0) for seed in range(4)}
    weights = {"s0": 1.0, "s1": 0.5, "s2": 1.0, "s3": 0.2}
    moments = {s: weights[s] * rows.T.astype(float) @ rows for s, rows in sites.items()}
    total = sum(moments.values())
    for site, score in contradictions(sites, weights, 3, 1e-3).items():
        others = total - moments[site]
        # The penalty is that of all together.
        gram = penalised_gram(total[:9, :9], 1e-3) - moments[site][:9, :9]
        inverse, expected = np.linalg.inv(gram), 0.0
        counts = np.diag(moments[site])[9:]
        for label in range(3):
            mean = moments[site][:9, 9 + label] / counts[label]
            said = mean @ inverse @ others[:9, 9:]
            against = np.clip(np.delete(said, label).max() - said[label], 0, 1)
            known = min(1, 0.2 / (mean @ inverse @ mean))
            expected += counts[label] / counts.sum() * against * known
        assert score == pytest.approx(expected, abs=1e-6)


def test_with_redundancy_the_liars_go_and_nobody_else() -> None:
    sites = {f"s{seed}": flows(40, seed, wrong=seed < 6) for seed in range(20)}
    out = screened(sites, ones(sites), 3, 1e-3)
    assert set(out) == {f"s{seed}" for seed in range(6)}
    assert min(out.values()) > 0.1
    assert screened({s: r for s, r in sites.items() if s not in out}, ones(sites), 3, 1e-3) == {}


def test_no_more_than_a_minority_goes() -> None:
    sites = {f"s{seed}": flows(40, seed, wrong=seed % 2 == 0) for seed in range(10)}
    assert len(screened(sites, ones(sites), 3, 1e-3, most=0.2)) == 2
    assert screened(sites, ones(sites), 3, 1e-3, most=0.0) == {}
