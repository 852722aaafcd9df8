"""Sensing, with numbers done by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsense.federation.triggers import (
    AnyOf,
    Decision,
    EveryRound,
    Gradient,
    Performance,
    Sensed,
    Silence,
    Unexplained,
)


def seen(score: float | None = None, visits: int = 1, **norms: float) -> Sensed:
    return Sensed(norms, score, visits)


def test_eq7_8_upload_when_the_metric_moved_by_more_than_delta() -> None:
    trigger = Performance(delta=0.5, alpha=0.75)
    state = trigger.reset(trigger.init(), 2.0)
    # |1.5 - 2.0| = 0.5 is not more than δ = 0.5; then δ = 0.75*0.5 + 0.25*0.5 = 0.5
    state, decision = trigger.sense(state, seen(1.5))
    assert decision.reason is None
    assert state == {"delta": pytest.approx(0.5), "reference": 2.0}
    # |1.0 - 2.0| = 1 > 0.5, against the same reference; δ = 0.75*0.5 + 0.25*1 = 0.625
    state, decision = trigger.sense(state, seen(1.0))
    assert decision == Decision("performance")
    assert state["delta"] == pytest.approx(0.625)
    # after the upload the reference is 1.0, so the same score is no news
    state = trigger.reset(state, 1.0)
    assert trigger.sense(state, seen(1.0))[1].reason is None


def test_eq7_worse_is_news_as_well() -> None:
    trigger = Performance(delta=0.5)
    state = trigger.reset(trigger.init(), 1.0)
    assert trigger.sense(state, seen(2.0))[1].reason == "performance"


def test_delta_has_a_floor() -> None:
    trigger = Performance(delta=0.1, alpha=0.0, floor=0.05)
    state = trigger.reset(trigger.init(), 1.0)
    assert trigger.sense(state, seen(1.0))[0]["delta"] == 0.05


def test_performance_needs_scores() -> None:
    trigger = Performance()
    with pytest.raises(ValueError, match="score"):
        trigger.reset(trigger.init(), None)
    with pytest.raises(ValueError, match="score"):
        trigger.sense({"delta": 1.0, "reference": 0.0}, seen(None))


def test_eq9_to_11_two_visits_by_hand() -> None:
    trigger = Gradient(alpha=0.5, beta=0.5)
    # The first visit sets μ = 4, σ = 0.5*0 + 0.5*|4-4| = 0: δ = 4, and 4 > 4 is false
    state, decision = trigger.sense(trigger.init(), seen(a=4.0))
    assert state == {"mu:a": 4.0, "sigma:a": 0.0}
    assert decision.reason is None
    # eq 9: μ = 0.5*4 + 0.5*8 = 6; eq 10: σ = 0 + 0.5*|8-6| = 1; eq 11: δ = 6 + 0.5*1 = 6.5 < 8
    state, decision = trigger.sense(state, seen(a=8.0))
    assert state == {"mu:a": 6.0, "sigma:a": 1.0}
    assert decision == Decision("gradient", ("a",))
    # μ = 6.5, σ = 0.5 + 0.25 = 0.75, δ = 6.875 < 7
    state, decision = trigger.sense(state, seen(a=7.0))
    assert state == {"mu:a": 6.5, "sigma:a": 0.75}
    assert decision.reason == "gradient"


def test_eq9_to_11_step_by_step_by_hand() -> None:
    """4, 8, 7 in one local round: the history is that of three rounds, and 8 and 7 both fire."""
    steps = ({"a": 4.0, "b": 1.0}, {"a": 8.0, "b": 1.0}, {"a": 7.0, "b": 1.0})
    sensed = Sensed({"a": 19 / 3, "b": 1.0}, None, 1, steps)
    each = Gradient(alpha=0.5, beta=0.5, per="step")
    state, decision = each.sense(each.init(), sensed)
    assert state == {"mu:a": 6.5, "sigma:a": 0.75, "mu:b": 1.0, "sigma:b": 0.0}
    assert decision == Decision("gradient", ("a",))
    # a round of 6.4 and 6.0: μ = 6.45, then 6.225; nothing is above it
    state, decision = each.sense(state, Sensed({"a": 6.2}, None, 1, ({"a": 6.4}, {"a": 6.0})))
    assert state["mu:a"] == pytest.approx(6.225)
    assert decision.reason is None
    # once a round, the same first round only sets μ = 19 / 3
    state, decision = Gradient(alpha=0.5, beta=0.5).sense({}, sensed)
    assert state["mu:a"] == 19 / 3
    assert decision.reason is None


@pytest.mark.parametrize(
    ("alpha", "beta", "says"),
    [(0.9, 10, "= 10,"), (0.5, 2, "= 2,"), (0.75, 7.5, "= 4,"), (0.0, 0.0, "alpha must be above")],
)
def test_a_beta_that_can_never_fire_is_refused(alpha: float, beta: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Gradient(alpha=alpha, beta=beta)


@given(st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.99, 1.0]), st.floats(0, 0.99))
def test_any_other_beta_fires_on_a_norm_that_is_large_enough(alpha: float, share: float) -> None:
    beta = 1000.0 if alpha == 1 else share / (1 - alpha)
    trigger = Gradient(alpha=alpha, beta=beta)
    state, _ = trigger.sense(trigger.init(), seen(a=1.0))
    state, _ = trigger.sense(state, seen(a=1.5))
    assert trigger.sense(state, seen(a=1e9))[1].reason == "gradient"


def test_only_the_loud_layers_are_named() -> None:
    trigger = Gradient(alpha=0.5, beta=0.5)
    state, _ = trigger.sense(trigger.init(), seen(a=4.0, b=4.0))
    assert trigger.sense(state, seen(a=8.0, b=4.0))[1].layers == ("a",)


def test_a_constant_gradient_is_no_news() -> None:
    trigger, state = Gradient(), Gradient().init()
    for _ in range(5):
        state, decision = trigger.sense(state, seen(a=3.0))
        assert decision.reason is None


def test_silence_ends_after_so_many_visits() -> None:
    assert Silence(3).sense({}, seen(visits=2))[1].reason is None
    assert Silence(3).sense({}, seen(visits=3))[1].reason == "silence"


def test_any_of_keeps_states_apart_and_joins_layers() -> None:
    both = AnyOf((Gradient(alpha=0.5, beta=0.5), Gradient(alpha=0.5, beta=0.1)))
    state, _ = both.sense(both.init(), seen(a=4.0, b=4.0))
    assert set(state) == {f"{i}/{k}:{n}" for i in (0, 1) for k in ("mu", "sigma") for n in "ab"}
    assert both.sense(state, seen(a=8.0, b=4.0))[1] == Decision("gradient", ("a",))


def test_a_trigger_without_layers_sends_all() -> None:
    both = AnyOf((Gradient(alpha=0.5, beta=0.5), EveryRound()))
    state, decision = both.sense(both.init(), seen(a=4.0))
    assert decision == Decision("round")
    assert both.sense(state, seen(a=8.0))[1] == Decision("gradient", None)


def test_what_the_head_explains_is_no_news() -> None:
    trigger = Unexplained(floor=0.25)
    assert trigger.sense({}, seen(a=0.25, b=0.1))[1].reason is None, "the floor itself is quiet"
    assert trigger.sense({}, seen(a=0.26, b=0.1))[1] == Decision("gradient")
    assert trigger.sense({}, seen())[1].reason is None


def test_the_loudest_class_decides() -> None:
    # Nine explained classes do not drown one that is not.
    norms = dict.fromkeys("abcdefghi", 0.0) | {"rare": 0.11}
    assert Unexplained(floor=0.1).sense({}, seen(**norms))[1].reason == "gradient"


def test_without_a_floor_all_but_the_perfect_is_news() -> None:
    assert Unexplained(floor=0.0).sense({}, seen(a=1e-9))[1].reason == "gradient"
    assert Unexplained(floor=0.0).sense({}, seen(a=0.0))[1].reason is None


def test_unexplained_keeps_no_memory_and_needs_no_scores() -> None:
    trigger = Unexplained()
    assert not trigger.needs_score
    state, _ = trigger.sense(trigger.init(), seen(a=1.0))
    assert state == trigger.reset(state, None) == trigger.init() == {}
    assert trigger.sense(state, seen(a=0.1))[1].reason is None
