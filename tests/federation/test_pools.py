"""When the cloud aggregates."""

from __future__ import annotations

import pytest

from gradsense.federation.pools import AllInvited, Count, Quorum
from tests.support.toys import entry


def test_all_invited_waits_for_the_last() -> None:
    pool = AllInvited()
    assert not pool.ready([], ["a"])
    assert not pool.ready([entry("a", 1.0)], ["a", "b"])
    assert pool.ready([entry("a", 1.0), entry("b", 1.0)], ["a", "b"])
    assert pool.ready([entry("a", 1.0)], [])  # everybody else has left


@pytest.mark.parametrize(
    ("fleet", "needed"), [(1, 1), (2, 2), (3, 2), (5, 3), (10, 6), (18, 11), (20, 12)]
)
def test_eq12_sixty_percent_of_distinct_clients(fleet: int, needed: int) -> None:
    names = [f"c{i}" for i in range(fleet)]
    entries = [entry(name, 1.0) for name in names[:needed]]
    assert Quorum(0.6).ready(entries, names)
    assert not Quorum(0.6).ready(entries[:-1], names)


def test_eq12_repeats_do_not_count() -> None:
    assert not Quorum(0.6).ready([entry("a", 1.0)] * 9, ["a", "b", "c"])


def test_eq12_counts_all_clients_or_those_connected() -> None:
    """Of ten clients five are there: 60 % of all are six, 60 % of the connected three."""
    everybody, there = [f"c{i}" for i in range(10)], [f"c{i}" for i in range(5)]
    three = [entry(name, 1.0) for name in there[:3]]
    for among, closed in (("all", False), ("connected", True)):
        pool = Quorum(0.6, among)
        assert pool.ready(three, pool.voters(there, everybody)) is closed
    six = [entry(name, 1.0) for name in everybody[:6]]
    assert Quorum(0.6, "all").ready(six, everybody)


def test_fedbuff_counts_updates_whoever_sent_them() -> None:
    names = [f"c{i}" for i in range(20)]
    assert Count(3).ready([entry("a", 1.0)] * 3, names)
    assert not Count(3).ready([entry("a", 1.0)] * 2, names)
    assert Count(10).ready([entry("a", 1.0)] * 2, ["a", "b"])  # a small fleet
