"""What is normal for one device."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.gateway.adapt.baseline import DAY_S, BaselineSettings, DeviceBaseline
from gradsense.prompts.templates import Template
from gradsense.tasks.fields import Field


def field(name: str, phrases: int) -> Field:
    words = tuple(f"{name}{number}" for number in range(phrases))
    return Field(name, words, pl.col(name), lambda flow: flow[name])


#: Two fields, of two and of four phrases.
TOY = Template("toy", 1, 2, (field("a", 2), field("b", 4)))
QUICK = BaselineSettings(days=2.0, min_flows=8, margin=0.5, memory=1 << 20, devices=3)
USUAL, ODD = (0, 0), (1, 3)


def changed(**values: float) -> BaselineSettings:
    return BaselineSettings(**{**QUICK.model_dump(), **values})


def see(
    baseline: DeviceBaseline,
    *flows: tuple[int, int],
    device: str | None = "10.0.0.1",
    day: float = 0.0,
    learn: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """The same device sees these flows at once."""
    return baseline.observe(
        [device] * len(flows),
        np.array(flows, dtype=np.uint16),
        np.full(len(flows), day * DAY_S),
        np.full(len(flows), learn),
    )


def learnt(settings_: BaselineSettings = QUICK) -> DeviceBaseline:
    """A device that has only ever done the usual, one flow each quarter of a day."""
    baseline = DeviceBaseline(TOY, settings_)
    for step in range(13):
        see(baseline, USUAL, day=step / 4)
    assert baseline.settled == 1
    return baseline


def test_scores_by_hand() -> None:
    baseline = DeviceBaseline(TOY, QUICK)
    first, _ = see(baseline, USUAL)
    # Nothing seen: (0 + 1/2)/(0 + 1) and (0 + 1/4)/(0 + 1).
    assert first[0] == pytest.approx((math.log(2) + math.log(4)) / 2)
    second, _ = see(baseline, USUAL)
    # One flow seen: (1 + 1/2)/2 and (1 + 1/4)/2.
    assert second[0] == pytest.approx((-math.log(0.75) - math.log(0.625)) / 2)
    odd, _ = see(baseline, ODD)
    # Two flows seen, none of them like this: (0 + 1/2)/3 and (0 + 1/4)/3.
    assert odd[0] == pytest.approx((math.log(6) + math.log(12)) / 2)


def test_probabilities_of_a_field_sum_to_one() -> None:
    baseline = DeviceBaseline(Template("one", 1, 1, (field("b", 4),)), QUICK)
    for pick in (0, 0, 1, 2):
        baseline.observe(["x"], np.array([[pick]], np.uint16), np.zeros(1), np.ones(1, bool))
    rows = np.array([[0], [1], [2], [3]], np.uint16)
    scores, _ = baseline.observe(["x"] * 4, rows, np.zeros(4), np.zeros(4, bool))
    assert np.exp(-scores).sum() == pytest.approx(1.0)


def test_nothing_is_novel_while_learning_and_the_odd_is_afterwards() -> None:
    baseline = DeviceBaseline(TOY, QUICK)
    for step in range(8):
        assert not see(baseline, ODD, USUAL, day=step / 8)[1].any()
    baseline = learnt()
    assert see(baseline, USUAL, ODD, day=4)[1].tolist() == [False, True]


def test_learning_takes_both_the_days_and_the_flows() -> None:
    many = DeviceBaseline(TOY, QUICK)
    see(many, *[USUAL] * 500, day=0)
    see(many, *[USUAL] * 500, day=1.9)
    assert many.settled == 0, "days are missing"
    few = DeviceBaseline(TOY, QUICK)
    see(few, USUAL, day=0)
    see(few, USUAL, day=30)
    assert few.settled == 0, "flows are missing"


def test_the_threshold_is_the_highest_held_score_and_a_margin() -> None:
    baseline = DeviceBaseline(TOY, QUICK)
    held = []
    for step in range(13):
        flow = (0, 1) if step == 9 else USUAL  # rare, but seen in the held half
        score, _ = see(baseline, flow, day=step / 4)
        if step >= 4 and not baseline.settled:  # from half of the flows and half of the days on
            held.append(float(score[0]))
    assert baseline.settled == 1
    state = baseline.dirty()["10.0.0.1"]
    again = DeviceBaseline(TOY, QUICK)
    again.restore({"10.0.0.1": state or b""})
    threshold = float(again._bound[again._rows["10.0.0.1"]])
    assert max(held) < threshold
    assert threshold == pytest.approx(max(held) + QUICK.margin)


def test_alarms_and_novel_flows_do_not_become_normal() -> None:
    baseline = learnt()
    before, _ = see(baseline, USUAL, day=4, learn=False)
    for _ in range(50):
        assert see(baseline, ODD, day=4)[1].all()
        see(baseline, USUAL, day=4, learn=False)
    after, _ = see(baseline, USUAL, day=4, learn=False)
    assert before[0] == after[0]


def test_a_person_makes_one_flow_normal_and_no_other() -> None:
    baseline = learnt()
    baseline.accept("10.0.0.1", np.array(ODD, np.uint16))
    assert see(baseline, ODD, (1, 2), day=4)[1].tolist() == [False, True]
    baseline.dirty()
    for device, prompt in (("unknown", ODD), ("10.0.0.1", (1, 3, 0)), ("10.0.0.1", (1, 4))):
        baseline.accept(device, np.array(prompt, np.uint16))
    assert len(baseline) == 1
    assert baseline.dirty() == {}, "another template's prompts change nothing"


def test_behaviour_that_ended_fades() -> None:
    baseline = learnt(changed(memory=64))
    rare = (0, 1)
    baseline.accept("10.0.0.1", np.array(rare, np.uint16))
    score, novel = see(baseline, rare, day=4, learn=False)
    assert not novel[0]
    for day in range(5, 20):
        see(baseline, *[USUAL] * 32, day=day)
    faded, novel = see(baseline, rare, day=30)
    assert novel[0]
    assert faded[0] > score[0]


def test_devices_do_not_mix_and_the_longest_unseen_leaves() -> None:
    baseline = learnt()
    for number in (2, 3):
        see(baseline, ODD, device=f"10.0.0.{number}", day=4)
    assert see(baseline, USUAL, day=4)[0][0] < 0.2, "the others' flows are not its own"
    see(baseline, ODD, device="10.0.0.4", day=4)
    assert (len(baseline), baseline.evicted) == (3, 1)
    changes = baseline.dirty()
    assert changes["10.0.0.2"] is None, "gone, so that the journal can forget it"
    assert all(changes[f"10.0.0.{number}"] for number in (1, 3, 4))
    assert baseline.dirty() == {}
    unseen, _ = see(baseline, USUAL, device="10.0.0.2", day=4)
    assert unseen[0] == pytest.approx((math.log(2) + math.log(4)) / 2), "its row is clean"


def test_flows_of_no_device_are_left_alone() -> None:
    baseline = DeviceBaseline(TOY, QUICK)
    scores, novel = baseline.observe(
        [None, "x", None], np.zeros((3, 2), np.uint16), np.zeros(3), np.ones(3, bool)
    )
    assert (scores > 0).tolist() == [False, True, False]
    assert not novel.any()
    assert len(baseline) == 1


def test_unknown_times_end_no_learning() -> None:
    baseline = DeviceBaseline(TOY, QUICK)
    for _ in range(30):
        see(baseline, USUAL, day=math.nan)
    assert baseline.settled == 0


FLOWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", None]),
        st.integers(0, 1),
        st.integers(0, 3),
        st.floats(0, 6),
        st.booleans(),
    ),
    max_size=80,
)


def feed(baseline: DeviceBaseline, flows: list, step: int) -> tuple[list[float], list[bool]]:
    scores: list[float] = []
    novel: list[bool] = []
    for start in range(0, len(flows), step):
        part = flows[start : start + step]
        found = baseline.observe(
            [flow[0] for flow in part],
            np.array([flow[1:3] for flow in part], np.uint16),
            np.array([flow[3] for flow in part]) * DAY_S,
            np.array([flow[4] for flow in part]),
        )
        scores += found[0].tolist()
        novel += found[1].tolist()
    return scores, novel


@settings(max_examples=60, deadline=None)
@given(FLOWS, st.integers(1, 80))
def test_a_restart_changes_nothing(flows: list, cut: int) -> None:
    whole = DeviceBaseline(TOY, QUICK)
    expected = feed(whole, flows[:cut], 1)[0] + feed(whole, flows[cut:], 1)[0]
    first = DeviceBaseline(TOY, QUICK)
    scores = feed(first, flows[:cut], 1)[0]
    second = DeviceBaseline(TOY, QUICK)
    second.restore({device: state for device, state in first.dirty().items() if state})
    assert second.dropped == 0
    assert scores + feed(second, flows[cut:], 1)[0] == expected


@settings(max_examples=60, deadline=None)
@given(FLOWS)
def test_counts_are_those_of_plain_counting(flows: list) -> None:
    """Against dictionaries, one flow at a time, where nothing settles or fades."""
    counts: dict[tuple[str, int, int], int] = {}
    seen: dict[str, int] = {}
    expected = []
    for device, a, b, _, learn in flows:
        if device is None:
            expected.append(0.0)
            continue
        n = seen.get(device, 0)
        shares = [
            (counts.get((device, place, pick), 0) + 1 / size) / (n + 1)
            for place, (pick, size) in enumerate(((a, 2), (b, 4)))
        ]
        expected.append(-sum(map(math.log, shares)) / 2)
        if learn:
            seen[device] = n + 1
            for place, pick in enumerate((a, b)):
                counts[device, place, pick] = counts.get((device, place, pick), 0) + 1
    baseline = DeviceBaseline(TOY, changed(days=1000))
    assert feed(baseline, flows, 1)[0] == pytest.approx(expected, rel=1e-5)
    whole = DeviceBaseline(TOY, changed(days=1000))
    feed(whole, flows, 80)
    assert whole.dirty() == baseline.dirty()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_damaged_states_are_counted_and_left(body: bytes) -> None:
    baseline = DeviceBaseline(TOY, QUICK)
    baseline.restore({"x": body})
    assert (len(baseline), baseline.dropped) == (0, 1)


def test_states_of_another_template_or_cut_short_are_left() -> None:
    state = learnt().dirty()["10.0.0.1"]
    assert state is not None
    other = DeviceBaseline(replace(TOY, version=2), QUICK)
    other.restore({"10.0.0.1": state})
    same = DeviceBaseline(TOY, QUICK)
    same.restore({"a": state[:-1], "b": state + b"\0", "c": state})
    assert (len(other), other.dropped) == (0, 1)
    assert (len(same), same.dropped) == (1, 2)


def test_more_states_than_room_keep_the_latest() -> None:
    full = DeviceBaseline(TOY, changed(devices=5))
    for number in range(5):
        see(full, USUAL, device=str(number), day=number)
    small = DeviceBaseline(TOY, QUICK)
    small.restore({name: body for name, body in full.dirty().items() if body})
    assert (sorted(small._rows), small.dropped) == (["2", "3", "4"], 2)


@pytest.mark.parametrize(
    "values",
    [
        {"memory": 8},
        {"devices": 0},
        {"margin": 0.0},
        {"days": -1.0},
        {"min_flows": 1},
    ],
)
def test_settings_that_could_not_work(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        changed(**values)
