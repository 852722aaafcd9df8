"""Rules that a few hostile clients cannot lead: numbers done by hand, and what they share."""

from __future__ import annotations

import numpy as np
import pytest

from gradsense.federation.pools import Pooled, PooledUpdate
from gradsense.federation.rules.clipped_mean import ClippedMean
from gradsense.federation.rules.krum import MultiKrum, squared_distances
from gradsense.federation.rules.median import CoordinateMedian
from gradsense.federation.rules.rule import DeltaRule, by_client
from gradsense.federation.rules.trimmed_mean import TrimmedMean
from tests.support.toys import entry, tensor, update

ROBUST = [CoordinateMedian(), TrimmedMean(), MultiKrum(), ClippedMean()]
each = pytest.mark.parametrize("rule", ROBUST, ids=lambda rule: rule.name)


def moved(rule: DeltaRule, entries: list[PooledUpdate], start: float = 0.0) -> np.ndarray:
    width = len(entries[0].update.delta["w"])
    return rule.apply({"w": np.full(width, start, np.float32)}, Pooled(entries, {}), {})[0]["w"]


def pool(*deltas: float) -> list[PooledUpdate]:
    return [entry(f"c{number}", delta) for number, delta in enumerate(deltas)]


# By hand ------------------------------------------------------------------------------------


def test_trimmed_mean_leaves_out_a_fifth_at_each_end() -> None:
    # Of five, one at each end: (2 + 3 + 4) / 3; of six ⌈1.2⌉ = 2: (3 + 4) / 2.
    assert moved(TrimmedMean(), pool(100, 3, 2, 4, -7), 1.0) == pytest.approx([4.0])
    assert moved(TrimmedMean(), pool(100, 3, 2, 4, -7, 9)) == pytest.approx([3.5])
    assert moved(TrimmedMean(trimmed=0.0), pool(1, 2, 6)) == pytest.approx([3.0])


def test_trimmed_mean_of_few_is_the_median_then_the_mean() -> None:
    assert moved(TrimmedMean(), pool(1, 50, 2)) == pytest.approx([2.0])
    assert moved(TrimmedMean(), pool(1, 5)) == pytest.approx([3.0])
    assert moved(TrimmedMean(trimmed=0.5), pool(1, 2, 4, 90)) == pytest.approx([3.0])


def test_trimmed_mean_sorts_every_value_by_itself() -> None:
    entries = [entry("a", 1.0, 9.0), entry("b", 2.0, 2.0), entry("c", 9.0, 1.0)]
    assert moved(TrimmedMean(), entries) == pytest.approx([2.0, 2.0])


def test_krum_by_hand() -> None:
    # n = 5, f = 1: each score is of the two nearest others. At 0, 1, 2, 3 and 10 they are
    # 1 + 4, 1 + 1, 1 + 1, 1 + 4 and 49 + 64, so 10 is left out: (0 + 1 + 2 + 3) / 4.
    assert moved(MultiKrum(), pool(0, 1, 10, 2, 3), 1.0) == pytest.approx([2.5])


def test_krum_takes_all_where_its_proof_has_no_room() -> None:
    assert moved(MultiKrum(), pool(0, 1, 2, 9)) == pytest.approx([3.0])


def test_krum_leaves_out_the_last_of_equals() -> None:
    # n = 6, f = 1: three at 0 and three at 1 all score 0 + 0 + 1; the sixth goes.
    assert moved(MultiKrum(hostile=0.1), pool(0, 0, 0, 1, 1, 1)) == pytest.approx([0.4])


def test_krum_measures_over_all_tensors() -> None:
    zeros = {"w": tensor(0.0), "u": tensor(0.0, 0.0)}
    movements = [{"w": tensor(3.0)}, {"u": tensor(4.0, 0.0)}, {"w": tensor(3.0), "u": tensor(0, 4)}]
    off = squared_distances(movements, zeros)
    assert off == pytest.approx(np.array([[-1, 25, 16], [25, -1, 41], [16, 41, -1]]))


def test_clipped_mean_by_hand() -> None:
    # Norms 5, 1 and 10, of which 5 is the middle: (3, 4), (1, 0) and (0, 10) cut to (0, 5).
    entries = [entry("a", 3.0, 4.0), entry("b", 1.0, 0.0), entry("c", 0.0, 10.0)]
    assert moved(ClippedMean(), entries) == pytest.approx([4 / 3, 3.0])


def test_clipped_mean_takes_the_norm_over_all_tensors() -> None:
    both = {"w": tensor(30.0), "u": tensor(40.0)}  # norm 50, where the others have 5
    entries = [PooledUpdate(update("a", delta=both), 0.0, 0), entry("b", 5.0), entry("c", -5.0)]
    tensors = {"w": tensor(0.0), "u": tensor(1.0)}
    step, _ = ClippedMean().apply(tensors, Pooled(entries, {}), {})
    assert (step["w"], step["u"]) == (pytest.approx([1.0]), pytest.approx([1 + 4 / 3]))


# What they share ----------------------------------------------------------------------------


@each
@pytest.mark.parametrize("loud", [1e4, -1e4, 3e38])
def test_three_of_nineteen_cannot_lead(rule: DeltaRule, loud: float) -> None:
    honest = np.linspace(0.9, 1.1, 16).tolist()
    assert 0.6 <= moved(rule, pool(*honest[:8], *[loud] * 3, *honest[8:]))[0] <= 1.2


@each
def test_what_a_client_says_of_its_samples_does_not_weigh(rule: DeltaRule) -> None:
    modest = pool(1, 2, 3, 4, 9)
    liar = [*modest[:-1], entry("c4", 9.0, samples=1 << 53)]
    assert np.array_equal(moved(rule, modest), moved(rule, liar))


@each
def test_a_client_that_speaks_often_counts_once(rule: DeltaRule) -> None:
    quiet = pool(1, 2, 3, 4, 9)
    chatty = [*quiet[:-1], *[entry("c4", 1.0) for _ in range(9)]]
    assert moved(rule, chatty) == pytest.approx(moved(rule, quiet))


@each
def test_the_order_of_arrival_changes_nothing(rule: DeltaRule) -> None:
    entries = pool(1, 2, 3.5, 4, 9, -3, 2.5)
    assert moved(rule, entries) == pytest.approx(moved(rule, entries[::-1]))


@each
def test_a_tensor_that_nobody_moves_is_passed_on(rule: DeltaRule) -> None:
    tensors = {"w": tensor(1.0), "u": tensor(7.0)}
    assert rule.apply(tensors, Pooled(pool(1, 2, 3), {}), {})[0]["u"] is tensors["u"]


def test_a_clients_pieces_add_up() -> None:
    entries = [entry("a", 1.0), entry("b", 8.0), entry("a", 3.0)]
    assert [own["w"].tolist() for own in by_client(Pooled(entries, {}))] == [[4.0], [8.0]]
