"""The aggregator of moments: a sum without order, and the head that follows from it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.federation.algorithms.gsfs import UNIT, RidgeSum
from gradsense.federation.pools import Pooled, PooledUpdate
from gradsense.federation.transforms import codecs
from gradsense.federation.update import exactly
from gradsense.learning.learner import Array, ServerState, Tensors
from gradsense.learning.statistics import STATISTICS, factorise, solve
from tests.support.toys import update

CLASSES, FEATURES, WIDTH = 3, 4, 8
START: dict[str, Array] = {
    "score.weight": np.zeros((CLASSES, FEATURES), np.float32),
    "score.bias": np.zeros(CLASSES, np.float32),
}


def flows(count: int, seed: int, label: int | None = None) -> np.ndarray:
    """[x, 1, one-hot y]; all of one class where ``label`` says so."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count) if label is None else np.full(count, label)
    x = rng.normal(size=(count, FEATURES)) + 2 * np.eye(CLASSES, FEATURES)[labels]
    return np.hstack([x, np.ones((count, 1)), np.eye(CLASSES)[labels]])


def sent(name: str, factor: Array) -> PooledUpdate:
    return PooledUpdate(update(name, delta={STATISTICS: factor}), 0.0, 0)


def aggregate(
    pools: list[list[PooledUpdate]], rule: RidgeSum | None = None
) -> tuple[Tensors, ServerState]:
    rule = rule or RidgeSum()
    tensors: Tensors = START
    state = rule.init(START)
    for pool in pools:
        tensors, state = rule.apply(tensors, Pooled(pool, {}), state)
    return tensors, state


#: Sites of one class each, and two of mixed traffic.
SITES = [flows(20, seed, label) for seed, label in enumerate((0, 1, 2, None, None))]
ENTRIES = [sent(f"s{i}", factorise(rows, 0.0)) for i, rows in enumerate(SITES)]


def test_one_site_by_hand() -> None:
    # x = 0 of class 0 and x = 1 of class 1, λ = 1/2: w = ∓1/2, b = 3/4 and 1/4 (test_moments).
    start = {"score.weight": np.zeros((2, 1), np.float32), "score.bias": np.zeros(2, np.float32)}
    rule = RidgeSum(regularisation=0.5, sharpness=4.0)
    state = rule.init(start)
    assert state[STATISTICS].shape == (4, 4)
    factor = np.array([[0, 1, 1, 0], [1, 1, 0, 1]], np.float32)
    tensors, state = rule.apply(start, Pooled([sent("a", factor)], {}), state)
    assert tensors["score.weight"] == pytest.approx(np.array([[-2.0], [2.0]]))
    assert tensors["score.bias"] == pytest.approx([3.0, 1.0])
    assert np.array_equal(state[STATISTICS], factor.T @ factor / UNIT)


def test_head_is_that_of_pooled_training() -> None:
    tensors, _ = aggregate([ENTRIES])
    rows = np.vstack(SITES)
    weight, bias = solve(rows.T @ rows, CLASSES, RidgeSum().regularisation)
    assert tensors["score.weight"] == pytest.approx(10 * weight, abs=1e-3)
    assert tensors["score.bias"] == pytest.approx(10 * bias, abs=1e-3)


@settings(max_examples=50, deadline=None)
@given(order=st.permutations(range(len(ENTRIES))), cuts=st.sets(st.integers(1, 4)))
def test_neither_order_nor_pools_matter(order: list[int], cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), len(order)]
    pools = [[ENTRIES[i] for i in order[first:last]] for first, last in pairwise(edges)]
    once, state = aggregate([ENTRIES])
    other, other_state = aggregate(pools)
    assert np.array_equal(other_state[STATISTICS], state[STATISTICS])
    for name, tensor in once.items():
        assert np.array_equal(other[name], tensor)


def test_staleness_and_submissions_do_not_matter() -> None:
    rule = RidgeSum()
    late = [PooledUpdate(entry.update, 99.0, staleness=7) for entry in ENTRIES]
    once, _ = rule.apply(START, Pooled(ENTRIES, {}), rule.init(START))
    other, _ = rule.apply(START, Pooled(late, {"s0": 50}), rule.init(START))
    for name, tensor in once.items():
        assert np.array_equal(other[name], tensor)


def test_sharpness_scales_the_logits_and_changes_no_verdict() -> None:
    dull, _ = aggregate([ENTRIES], RidgeSum(sharpness=1.0))
    sharp, _ = aggregate([ENTRIES], RidgeSum(sharpness=25.0))
    rows = np.vstack(SITES)
    logits = [
        rows[:, :FEATURES] @ one["score.weight"].T + one["score.bias"] for one in (dull, sharp)
    ]
    assert logits[1] == pytest.approx(25 * logits[0], abs=1e-4)
    assert np.array_equal(logits[0].argmax(axis=1), logits[1].argmax(axis=1))


def test_sum_is_kept_in_whole_numbers_and_the_head_in_float32() -> None:
    tensors, state = aggregate([ENTRIES[:2], ENTRIES[2:]])
    assert state[STATISTICS].dtype == np.int64
    assert RidgeSum().init(START)[STATISTICS].dtype == np.int64
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in START.items()
    }
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}
    # A site of one flow still counts where a float32 sum of 2^26 flows would swallow it.
    big = np.zeros((1, WIDTH), np.float32)
    big[0, FEATURES] = 2.0**13
    one = np.zeros((1, WIDTH), np.float32)
    one[0, FEATURES] = 1.0
    rule = RidgeSum(cap=None)
    whole = [sent("a", big), *ENTRIES]
    _, before = rule.apply(START, Pooled(whole, {}), rule.init(START))
    _, after = rule.apply(START, Pooled([sent("b", one)], {}), before)
    added = after[STATISTICS][FEATURES, FEATURES] - before[STATISTICS][FEATURES, FEATURES]
    assert added * UNIT == 1.0


def test_arguments_stay_as_they_are() -> None:
    rule = RidgeSum()
    tensors, state = aggregate([ENTRIES[:3]])
    kept = [value.copy() for value in (*tensors.values(), *state.values())]
    factors = [entry.update.delta[STATISTICS].copy() for entry in ENTRIES]
    rule.apply(tensors, Pooled(ENTRIES, {}), state)
    for value, before in zip((*tensors.values(), *state.values()), kept, strict=True):
        assert np.array_equal(value, before)
    for entry, before in zip(ENTRIES, factors, strict=True):
        assert np.array_equal(entry.update.delta[STATISTICS], before)


def test_tensors_beside_the_head_are_passed_on() -> None:
    rule = RidgeSum()
    more = {**START, "base.weight": np.ones(3, np.float32)}
    tensors, _ = rule.apply(more, Pooled(ENTRIES, {}), rule.init(more))
    assert np.array_equal(tensors["base.weight"], np.ones(3))


def test_factor_rounded_to_8_bits_gives_nearly_the_same_head() -> None:
    codec = codecs()["int8"]
    rounded = [
        sent(
            entry.update.client,
            codec.unpack(codec.pack(entry.update.delta), exactly(entry.update.delta))[STATISTICS],
        )
        for entry in ENTRIES
    ]
    exact, _ = aggregate([ENTRIES])
    near, state = aggregate([rounded])
    off = np.linalg.norm(near["score.weight"] - exact["score.weight"])
    assert 0 < off < 0.02 * np.linalg.norm(exact["score.weight"])
    assert np.linalg.eigvalsh(state[STATISTICS])[0] > -1e-9, "never indefinite"
    rows = np.vstack(SITES)[:, :FEATURES]
    verdicts = [
        (rows @ one["score.weight"].T + one["score.bias"]).argmax(axis=1) for one in (exact, near)
    ]
    assert (verdicts[0] == verdicts[1]).mean() > 0.98
