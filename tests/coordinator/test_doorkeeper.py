"""Messages wait apart by device, and who sends too much is shut out."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.coordinator.doorkeeper import (
    FLOODING,
    QOS_0,
    SHUT_OUT,
    Allowance,
    Doorkeeper,
    device_of,
)

FEW = Allowance(messages_per_s=1.0, burst_messages=5, shut_out_s=60.0, longest_s=200.0)


def test_a_device_is_served_however_many_wait_of_another() -> None:
    door: Doorkeeper[str] = Doorkeeper()
    for number in range(200):
        assert door.arrive("loud", 100, f"loud {number}", 0.0) == ""
    assert door.arrive("quiet", 100, "quiet", 0.0) == ""
    assert [door.take(0.0) for _ in range(3)] == ["loud 0", "quiet", "loud 1"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 400)), max_size=80))
def test_nothing_is_lost_or_doubled_and_each_device_keeps_its_order(
    arrivals: list[tuple[str, int]],
) -> None:
    allowance = Allowance(waiting=10, waiting_bytes=4000)
    door: Doorkeeper[tuple[str, int]] = Doorkeeper(allowance)
    taken, let_in = list[tuple[str, int]](), list[tuple[str, int]]()
    for number, (device, size) in enumerate(arrivals):
        if not door.arrive(device, size, (device, number), 0.0):
            let_in.append((device, number))
        if number % 5 == 4 and (one := door.take(0.0)):
            taken.append(one)
    while one := door.take(0.0):
        taken.append(one)
    assert sorted(taken) == sorted(let_in)
    for device in "abcd":
        assert [one for one in taken if one[0] == device] == [
            one for one in let_in if one[0] == device
        ]
    refused = Counter(sum(own.values()) for own in door.counted().values())
    assert sum(number * times for number, times in refused.items()) == len(arrivals) - len(let_in)


def test_a_flood_is_shut_out_for_longer_each_time() -> None:
    door: Doorkeeper[int] = Doorkeeper(FEW)
    at, lengths = 0.0, []
    for _ in range(4):
        while not door.arrive("loud", 10, 1, at):
            pass
        lengths.append(door.shut_out(at)["loud"])
        assert door.arrive("loud", 10, 1, at + 1) == SHUT_OUT
        at += lengths[-1]
    assert lengths == [60.0, 120.0, 200.0, 200.0]
    assert door.arrive("other", 10, 1, at) == ""
    at += 1000.0  # long calm: it begins anew
    while not door.arrive("loud", 10, 1, at):
        pass
    assert door.shut_out(at) == {"loud": 60.0}
    assert door.counted()["loud"][FLOODING] >= 5


def test_what_is_refused_anyway_counts_as_sent() -> None:
    door: Doorkeeper[int] = Doorkeeper(FEW)
    for _ in range(6):
        door.refuse("loud", 0, QOS_0, 0.0)
    assert door.shut_out(0.0) == {"loud": 60.0}
    assert door.counted() == {"loud": {QOS_0: 6}}


def test_a_message_larger_than_any_is_a_flood() -> None:
    door: Doorkeeper[int] = Doorkeeper()
    assert door.arrive("loud", 1 << 40, 1, 0.0) == FLOODING


@pytest.mark.parametrize(
    ("topic", "device"),
    [
        ("gradsense/v2/porch/up/cam/update", "cam"),
        ("gradsense/v2/porch/up", ""),
        ("", ""),
        ("a/b/c/d/" + "x" * 100, "x" * 64),
    ],
)
def test_whose_topic_it_is(topic: str, device: str) -> None:
    assert device_of(topic) == device
