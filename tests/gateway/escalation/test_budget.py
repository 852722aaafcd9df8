"""The byte budget."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.gateway.escalation.escalate import ByteBudget


def test_a_full_bucket_grants_a_minute_at_once_and_refills_evenly() -> None:
    budget = ByteBudget(600)  # 10 bytes a second
    assert budget.take(600, now=100.0)
    assert not budget.take(1, now=100.0)
    assert budget.left(now=103.0) == 30
    assert not budget.take(31, now=103.0), "nothing is spent where it does not suffice"
    assert budget.take(30, now=103.0)
    assert budget.left(now=10_000.0) == 600, "it never holds more than a minute's worth"


def test_a_clock_that_goes_back_refills_nothing() -> None:
    budget = ByteBudget(60)
    assert budget.take(60, now=50.0)
    assert budget.left(now=10.0) == 0
    assert budget.left(now=50.0) == 0
    assert budget.left(now=51.0) == 1


@settings(max_examples=100, deadline=None)
@given(
    per_minute=st.integers(0, 10_000),
    asks=st.lists(st.tuples(st.floats(-5, 100), st.integers(0, 5_000)), max_size=40),
)
def test_no_span_grants_more_than_the_bucket_and_its_refill(
    per_minute: int, asks: list[tuple[float, int]]
) -> None:
    budget, now, latest = ByteBudget(per_minute), 0.0, -math.inf
    granted: list[tuple[float, int]] = []  # with the time as the bucket saw it: never back
    for step, size in asks:
        now += step
        latest = max(latest, now)
        if budget.take(size, now):
            granted.append((latest, size))
    for first, (begin, _) in enumerate(granted):
        spent = 0
        for end, size in granted[first:]:
            spent += size
            assert spent <= per_minute * (1 + (end - begin) / 60) + 1e-6
