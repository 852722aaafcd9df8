"""The bounded memory of verdicts."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.detection.detector import Cache


def test_what_was_used_lately_stays() -> None:
    cache: Cache[int] = Cache(4)
    for number in range(4):
        cache.put(bytes([number]), number)
    # 0 comes back into the young generation, which makes 2 and 3 the old one: 1 is gone.
    assert [cache.get(bytes([n])) for n in (0, 1, 2, 3)] == [0, None, 2, 3]
    assert len(cache) <= 4


def test_size_nothing_keeps_nothing() -> None:
    cache: Cache[int] = Cache(0)
    cache.put(b"a", 1)
    assert cache.get(b"a") is None
    assert len(cache) == 0


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(0, 30), max_size=200))
def test_never_wrong_never_larger_and_keeps_the_latest_half(size: int, keys: list[int]) -> None:
    cache: Cache[int] = Cache(size)
    for place, key in enumerate(keys):
        found = cache.get(bytes([key]))
        assert found in {None, key + 1}
        if found is None:
            cache.put(bytes([key]), key + 1)
        assert len(cache) <= max(2, size)
        latest = list(dict.fromkeys(reversed(keys[: place + 1])))[: max(1, size // 2)]
        assert all(cache.get(bytes([one])) == one + 1 for one in latest)
