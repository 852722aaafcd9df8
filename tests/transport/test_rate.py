"""A cap holds in every interval, and what may pass does pass."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.transport.chunks import Rate
from gradsense.transport.connection_log import Backoff


def test_a_burst_passes_at_once_and_the_rest_by_the_clock() -> None:
    rate = Rate(100.0, 500)
    assert rate.take(500, now=0.0)
    assert not rate.take(200, now=1.0)
    assert rate.wait_s(200, now=1.0) == 1.0
    assert rate.take(200, now=2.0)
    assert rate.wait_s(1, now=2.0) == pytest.approx(0.01)
    assert rate.take(500, now=100.0), "a pause saves up a burst"
    assert not rate.take(1, now=100.0), "and no more"


def test_without_a_cap_everything_passes() -> None:
    rate = Rate(None, 1)
    assert rate.take(10**12, now=0.0)
    assert rate.wait_s(10**12, now=0.0) == 0.0


def test_what_could_never_pass_is_an_error() -> None:
    with pytest.raises(ValueError, match="never pass"):
        Rate(100.0, 500).wait_s(501, now=0.0)
    for wrong in ((0.0, 1), (-1.0, 1), (float("nan"), 1), (1.0, 0)):
        with pytest.raises(ValueError, match="positive"):
            Rate(*wrong)


def test_a_clock_that_falls_brings_no_tokens() -> None:
    rate = Rate(100.0, 100)
    assert rate.take(100, now=10.0)
    assert not rate.take(100, now=5.0)
    assert not rate.take(100, now=10.5)
    assert rate.take(100, now=11.0)


STEPS = st.lists(st.tuples(st.floats(0, 5), st.integers(1, 300)), min_size=1, max_size=40)


@settings(max_examples=100, deadline=None)
@given(rate=st.floats(1, 1000), steps=STEPS)
def test_no_interval_carries_more_than_burst_and_rate(
    rate: float, steps: list[tuple[float, int]]
) -> None:
    bucket, now, passed = Rate(rate, 300), 0.0, [(0.0, 0)]
    for pause, size in steps:
        now += pause
        if bucket.take(size, now):
            passed.append((now, size))
    for first in range(len(passed)):
        carried = 0
        for at, size in passed[first:]:
            carried += size
            assert carried <= 300 + rate * (at - passed[first][0]) + 1e-6


@settings(max_examples=100, deadline=None)
@given(rate=st.floats(1, 1000), steps=STEPS)
def test_after_the_wait_it_passes(rate: float, steps: list[tuple[float, int]]) -> None:
    bucket, now = Rate(rate, 300), 0.0
    for pause, size in steps:
        now += pause
        now += bucket.wait_s(size, now) + 1e-9
        assert bucket.take(size, now)


def test_attempts_come_apart_and_come_back_within_seconds() -> None:
    pauses = Backoff(random.Random(1))
    for top in (1.0, 2.0, 4.0, 8.0, 8.0, 8.0):
        assert 0.1 * top <= pauses.wait_s(0.0) <= top
    assert pauses.wait_s(60.0) <= 1.0, "the connection was good"
    assert pauses.wait_s(0.1) > 0.1
    fleet = [Backoff(random.Random(seed)).wait_s(60.0) for seed in range(1000)]
    tenths = Counter(int(10 * pause) for pause in fleet)
    assert max(tenths.values()) < 200, "a tenth of a second sees no more than a fifth of the fleet"
