"""Grouping of alarms, with counts and clocks one can follow by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.gateway.alerting import grouping
from gradsense.gateway.alerting.alert import Alert
from gradsense.gateway.alerting.grouping import GROUP, LogClock
from tests.support.sample_alarms import alarm, grouper


def told(messages: list[Alert]) -> list[tuple[str, str, int]]:
    return [(message.label, message.state, message.flows) for message in messages]


def test_a_flood_is_one_alert_that_counts() -> None:
    group = grouper()
    flood = [alarm(0.01 * i, line=i + 1, port=80 if i % 4 else 443) for i in range(14_394)]
    messages = group.add(flood) + group.tick(1000.0)
    assert told(messages) == [
        ("DDoS", "open", 1),
        ("DDoS", "update", 10),
        ("DDoS", "update", 100),
        ("DDoS", "update", 1000),
        ("DDoS", "update", 10_000),
        ("DDoS", "closed", 14_394),
    ]
    assert len({message.id for message in messages}) == 1
    assert [message.revision for message in messages] == list(range(6))
    last = messages[-1]
    assert last.ports == ((80, 10_795), (443, 3599))
    assert (last.first_ts, last.last_ts, last.peers) == (0.0, pytest.approx(143.93), 1)
    assert last.example.line == 1
    assert last.why == ("0001",)


def test_devices_and_labels_are_apart() -> None:
    messages = grouper().add(
        [alarm(0), alarm(1, device="10.0.0.2"), alarm(2, label="C&C"), alarm(3)]
    )
    assert told(messages) == [("DDoS", "open", 1), ("DDoS", "open", 1), ("C&C", "open", 1)]
    assert len({message.id for message in messages}) == 3


def test_quiet_closes_and_the_next_flow_opens_another() -> None:
    group = grouper(window_s=300)
    first = group.add([alarm(0)])
    assert group.tick(300.0) == []
    assert told(group.add([alarm(300.0, line=2)])) == []
    again = group.add([alarm(600.5, line=3)])
    assert told(again) == [("DDoS", "closed", 2), ("DDoS", "open", 1)]
    assert again[0].id == first[0].id
    assert again[1].id != first[0].id


def test_an_endless_alert_is_told_hourly_and_ends_after_max_s() -> None:
    group = grouper(window_s=3000, max_s=7500)
    messages = group.add([alarm(1800.0 * i, line=i + 1) for i in range(6)])
    assert told(messages) == [
        ("DDoS", "open", 1),
        ("DDoS", "update", 4),  # 5400 s: more than an hour after the first word
        ("DDoS", "closed", 5),  # 9000 s: too long in all
        ("DDoS", "open", 1),
    ]


def test_too_many_open_alerts_close_the_one_quiet_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "MAX_OPEN", 2)
    group = grouper()
    messages = group.add([alarm(i, device=f"10.0.0.{i}") for i in (1, 2, 1, 3)])
    assert [(m.device, m.state) for m in messages] == [
        ("10.0.0.1", "open"),
        ("10.0.0.2", "open"),
        ("10.0.0.3", "open"),
        ("10.0.0.2", "closed"),
    ]
    assert len(group) == 2


def test_what_an_alert_remembers_is_bounded() -> None:
    group = grouper()
    group.add([alarm(i, peer=f"p{i}", port=i, prompt=i.to_bytes(2, "big")) for i in range(1000)])
    (memory,) = group.changed()
    assert len(memory.peers) == grouping.MAX_PEERS
    assert len(memory.ports) == grouping.MAX_PORTS
    assert len(memory.prompts) == grouping.MAX_PROMPTS
    assert memory.flows == 1000


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 400), st.sampled_from(["10.0.0.1", "10.0.0.2"]), st.sampled_from("ab")
        ),
        max_size=60,
    ),
    st.integers(0, 60),
)
def test_a_restart_changes_nothing(steps: list[tuple[float, str, str]], cut: int) -> None:
    clock, flows = 0.0, []
    for line, (pause, device, label) in enumerate(steps, 1):
        clock += pause
        flows.append(alarm(clock, line=line, label=label, device=device))
    through = grouper()
    expected = through.add(flows) + through.close_all()
    before, after = grouper(), grouper()
    messages = before.add(flows[:cut])
    memories = {g.id: g for g in before.changed()}
    closed = {message.id for message in messages if message.state == "closed"}
    after.restore(
        GROUP.validate_json(GROUP.dump_json(g)) for g in memories.values() if g.id not in closed
    )
    messages += after.add(flows[cut:]) + after.close_all()
    assert messages == expected
    assert sum(m.flows for m in messages if m.state == "closed") == len(flows)


def test_the_clock_never_falls_and_runs_on_in_silence() -> None:
    clock = LogClock()
    assert clock.run_on(50.0) == 0.0  # no flow yet: there is no log time
    assert clock.advance(1000.0) == 1000.0
    assert clock.advance(900.0) == 1000.0
    assert clock.run_on(51.0) == 1001.0
    assert clock.run_on(50.5) == 1001.0
    assert clock.run_on(60.5) == 1011.0


def test_a_group_of_an_earlier_version_is_read() -> None:
    one = grouper()
    one.add([alarm(0)])
    (group,) = one.changed()
    old = GROUP.dump_json(group).replace(b'"reported"', b'"told"')
    assert b'"told"' in old
    assert GROUP.validate_json(old) == group
