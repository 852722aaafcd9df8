"""Every aggregation equation, with numbers done by hand."""

from __future__ import annotations

import numpy as np
import pytest

from gradsense.federation.algorithms.fedbuff import StalenessMean
from gradsense.federation.algorithms.fedopt import ServerOptimizer
from gradsense.federation.algorithms.gsfs_paper import FrequencyMean
from gradsense.federation.pools import Pooled, PooledUpdate
from gradsense.federation.rules.rule import WeightedMean, weighted_sum
from tests.support.toys import entry, tensor, update


def test_eq2_fedavg_weights_by_samples() -> None:
    # θ = 1; a has 3 samples and moves +4, b has 1 and moves -4: 1 + (3*4 - 1*4) / 4 = 3
    entries = [entry("a", 4.0, samples=3), entry("b", -4.0, samples=1)]
    moved, _ = WeightedMean().apply({"w": tensor(1.0)}, Pooled(entries, {"a": 1, "b": 1}), {})
    assert moved["w"] == pytest.approx([3.0])


def test_eq2_is_the_mean_of_models_on_a_common_base() -> None:
    base, a, b = 2.0, 5.0, -1.0
    entries = [entry("a", a - base, samples=2), entry("b", b - base, samples=6)]
    moved, _ = WeightedMean().apply({"w": tensor(base)}, Pooled(entries, {}), {})
    assert moved["w"] == pytest.approx([(2 * a + 6 * b) / 8])


def test_eq3_to_6_adam_two_rounds() -> None:
    adam = ServerOptimizer("adam", lr=0.5, beta1=0.5, beta2=0.75, epsilon=0.1)
    state = adam.init({"w": tensor(0.0)})
    assert state["v:w"] == pytest.approx([0.01])
    # g = -(2 + 4) / 2 = -3 (eq 3: unweighted, so samples do not matter)
    entries = [entry("a", 2.0, samples=99), entry("b", 4.0)]
    moved, state = adam.apply({"w": tensor(0.0)}, Pooled(entries, {}), state)
    # m = 0.5*-3 = -1.5; v = 0.75*0.01 + 0.25*9 = 2.2575; θ = 0.5*1.5 / (√2.2575 + 0.1)
    assert state["m:w"] == pytest.approx([-1.5])
    assert state["v:w"] == pytest.approx([2.2575])
    assert moved["w"] == pytest.approx([0.75 / (2.2575**0.5 + 0.1)])
    second, state = adam.apply(moved, Pooled([entry("a", 1.0)], {}), state)
    # g = -1; m = -0.75 - 0.5 = -1.25; v = 0.75*2.2575 + 0.25 = 1.943125
    assert state["m:w"] == pytest.approx([-1.25])
    assert state["v:w"] == pytest.approx([1.943125])
    assert second["w"] == pytest.approx(moved["w"] + 0.625 / (1.943125**0.5 + 0.1))


def test_eq3_divides_by_all_clients_or_by_those_that_sent() -> None:
    """Four clients; a moves 2 + 4 in two updates, b moves 2: g is -8 / 4, or -8 / 2."""
    entries = [entry("a", 2.0), entry("b", 2.0), entry("a", 4.0)]
    for over, g in (("all", -2.0), ("senders", -4.0)):
        rule = ServerOptimizer("adam", beta1=0.0, over=over)
        pooled = Pooled(entries, {}, clients=4)
        _, state = rule.apply({"w": tensor(0.0)}, pooled, rule.init({"w": tensor(0.0)}))
        assert state["m:w"] == pytest.approx([g])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("yogi", 0.01 - 0.25 * 9 * -1),  # v - (1-β₂) g² sign(v - g²): 0.01 < 9, so v grows
        ("adagrad", 0.01 + 9),
    ],
)
def test_eq5_second_moments(kind: str, expected: float) -> None:
    rule = ServerOptimizer(kind, lr=1.0, beta1=0.0, beta2=0.75, epsilon=0.1)
    moved, state = rule.apply(
        {"w": tensor(0.0)}, Pooled([entry("a", 3.0)], {}), rule.init({"w": tensor(0.0)})
    )
    assert state["v:w"] == pytest.approx([expected])
    assert moved["w"] == pytest.approx([3 / (expected**0.5 + 0.1)])


def test_server_moments_decay_for_a_tensor_that_nobody_sent() -> None:
    adam = ServerOptimizer("adam", beta1=0.5)
    tensors = {"w": tensor(0.0), "u": tensor(0.0)}
    state = adam.init(tensors) | {"m:u": tensor(2.0)}
    moved, state = adam.apply(tensors, Pooled([entry("a", 1.0)], {}), state)
    assert state["m:u"] == pytest.approx([1.0])
    assert moved["u"][0] < 0  # momentum carries it on


def test_fedavgm_two_rounds() -> None:
    rule = WeightedMean(momentum=0.5)
    state = rule.init({"w": tensor(0.0)})
    # v = (3*4 + 1*0) / 4 = 3, θ = 3; then v = 1.5 + 1 = 2.5, θ = 5.5
    first = [entry("a", 4.0, samples=3), entry("b", 0.0)]
    moved, state = rule.apply({"w": tensor(0.0)}, Pooled(first, {}), state)
    assert moved["w"] == pytest.approx([3.0])
    moved, state = rule.apply(moved, Pooled([entry("a", 1.0)], {}), state)
    assert moved["w"] == pytest.approx([5.5])
    assert state["v:w"] == pytest.approx([2.5])


def test_fedbuff_discounts_stale_news() -> None:
    # staleness 3 counts (1+3)^-0.5 = 1/2: (4 * 1 + 4 * 1/2) / 2 = 3
    entries = [entry("a", 4.0), entry("b", 4.0, staleness=3)]
    moved, _ = StalenessMean(exponent=0.5).apply({"w": tensor(0.0)}, Pooled(entries, {}), {})
    assert moved["w"] == pytest.approx([3.0])


def test_eq13_14_frequency_weights() -> None:
    # a has submitted 3 times, b once: α = 3/4 and 1/4, so 3/4 * 4 + 1/4 * 8 = 5
    entries = [entry("a", 4.0), entry("b", 8.0)]
    moved, _ = FrequencyMean().apply({"w": tensor(0.0)}, Pooled(entries, {"a": 3, "b": 1}), {})
    assert moved["w"] == pytest.approx([5.0])


def test_eq13_pieces_of_one_movement_add_up() -> None:
    # a spoke twice in this pool: its pieces 1 and 3 are one movement of 4, weighted once
    entries = [entry("a", 1.0), entry("b", 8.0), entry("a", 3.0)]
    moved, _ = FrequencyMean().apply({"w": tensor(0.0)}, Pooled(entries, {"a": 2, "b": 2}), {})
    assert moved["w"] == pytest.approx([0.5 * 4 + 0.5 * 8])


def test_a_chatty_client_is_bounded() -> None:
    entries = [entry("a", 1.0), entry("b", 1.0)]
    submissions = {"a": 100, "b": 1}
    assert FrequencyMean().weights(Pooled(entries, submissions)) == pytest.approx(
        [100 / 101, 1 / 101]
    )
    bounded = FrequencyMean(frequency_bound=2.0).weights(Pooled(entries, submissions))
    assert bounded == pytest.approx([2 / 3, 1 / 3])


def test_sample_power_and_staleness() -> None:
    entries = [entry("a", 1.0, samples=9), entry("b", 1.0, samples=1, staleness=3)]
    rule = FrequencyMean(samples_power=0.5, frequency_power=0.0, staleness_exponent=0.5)
    # √9 : √1 = 3/4 : 1/4, and b counts half
    assert rule.weights(Pooled(entries, {"a": 1, "b": 5})) == pytest.approx([0.75, 0.125])


def test_a_pool_of_few_takes_a_small_step() -> None:
    rule = FrequencyMean(full_step_share=0.5)
    heard = {"a": 1, "b": 1, "c": 1, "d": 1}
    assert rule.weights(Pooled([entry("a", 1.0)], heard)) == pytest.approx([0.5])  # 1/4 of 1/2
    assert sum(rule.weights(Pooled([entry("a", 1.0), entry("b", 1.0)], heard))) == pytest.approx(
        1.0
    )


def test_a_partial_update_leaves_the_rest_alone() -> None:
    tensors = {"w": tensor(1.0), "u": tensor(7.0)}
    half = PooledUpdate(update("b", delta={"u": tensor(2.0)}), 0.0, 0)
    moved, _ = FrequencyMean().apply(tensors, Pooled([entry("a", 4.0), half], {"a": 1, "b": 1}), {})
    assert moved["w"] == pytest.approx([3.0])  # b is silent on w: counts as zero movement
    assert moved["u"] == pytest.approx([8.0])
    unsent, _ = FrequencyMean().apply(tensors, Pooled([entry("a", 4.0)], {"a": 1}), {})
    assert unsent["u"] is tensors["u"]


def test_sums_are_taken_in_double_precision() -> None:
    entries = [entry("a", 1e8), entry("b", 1.0), entry("c", -1e8)]
    assert weighted_sum(Pooled(entries, {}), [1.0, 1.0, 1.0])["w"].tolist() == [1.0]
    assert weighted_sum(Pooled(entries, {}), [1.0] * 3)["w"].dtype == np.float32
