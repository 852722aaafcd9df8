"""Time order of logs: told from whatever is read, and restored before anything is counted."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.data.datasets import order as module
from gradsense.data.datasets.captures import load
from gradsense.data.datasets.order import TimeOrder, in_time_order, warnings, written_at
from gradsense.data.flows import FLOW_SCHEMA
from gradsense.errors import InputError

PATH = Path("conn.log")


def flows(*rows: tuple[float, float | None, str, str]) -> pl.DataFrame:
    """Flows of (start, duration, protocol, state)."""
    columns = [
        dict(zip(("ts", "duration", "proto", "conn_state"), row, strict=True)) for row in rows
    ]
    return pl.DataFrame([dict.fromkeys(FLOW_SCHEMA) | one for one in columns], schema=FLOW_SCHEMA)


def at(*starts: float, duration: float = 0.0) -> pl.DataFrame:
    return flows(*((start, duration, "tcp", "SF") for start in starts))


def judged(*blocks: pl.DataFrame) -> TimeOrder:
    order = TimeOrder()
    for block in blocks:
        order.add(block)
    return order


def test_when_zeek_would_have_written_by_hand() -> None:
    frame = flows(
        (100.0, 3.0, "tcp", "S0"),  # an attempt is given up after 5 s
        (100.0, 3.0, "tcp", "S1"),  # an open connection after 5 min of silence
        (100.0, None, "udp", "S0"),  # UDP after 1 min
        (100.0, 2.0, "tcp", "REJ"),  # a reset at once
        (100.0, -1.0, "icmp", "OTH"),  # no end lies before its start
    )
    assert frame.select(written_at())["ts"].to_list() == [108.0, 403.0, 160.0, 102.1, 160.0]


def test_zeeks_own_order_and_what_is_none() -> None:
    # A day of one flow a minute; each ends a minute after the next began.
    day = [60.0 * minute for minute in range(1440)]
    assert judged(at(*day, duration=120.0)).state == "written"
    # The same in two blocks, as if sorted by class.
    blocks = judged(at(*day[::2]), at(*day[1::2]))
    assert (blocks.state, blocks.rows) == ("disordered", 1440)
    # The second block's 720 rows are late until 330 s before the latest: 86,280 - 330 s.
    assert blocks.late == sum(one < day[1438] - 330 for one in day[1::2]) == 716
    assert blocks.share == 716 / 1440
    # By start, with one connection that lasts all day on top: Zeek would have written that last.
    resorted = judged(flows((0.0, 86_400.0, "tcp", "SF")), at(*day))
    assert (resorted.state, resorted.late) == ("sorted", 0)
    assert judged(flows((0.0, 86_400.0, "tcp", "SF")), at(*day[-5:])).state == "written"
    assert (judged().state, judged().share) == ("written", 0.0)


def test_a_minute_cannot_be_out_of_order() -> None:
    assert judged(at(*range(60)), at(*range(60))).state == "written"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 5000), st.floats(0, 900)), max_size=60),
    st.lists(st.integers(0, 60), max_size=4),
)
def test_blocks_do_not_change_the_verdict(rows: list[tuple[float, float]], cuts: list[int]) -> None:
    frame = flows(*((start, length, "tcp", "SF") for start, length in rows))
    edges = [0, *sorted(min(cut, len(frame)) for cut in cuts), len(frame)]
    pieces = [frame[a:b] for a, b in pairwise(edges)]
    assert judged(*pieces) == judged(frame)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1000), max_size=40), st.randoms(use_true_random=False))
def test_any_permutation_is_read_alike(starts: list[float], draw: object) -> None:
    frame = at(*starts).with_columns(uid=pl.Series([f"C{i}" for i in range(len(starts))]))
    mixed = frame.sample(fraction=1, shuffle=True, seed=draw.randrange(99))  # type: ignore[attr-defined]
    one, other = (pl.concat([*in_time_order([each], PATH), frame[:0]]) for each in (frame, mixed))
    assert one.equals(other)
    assert one["ts"].is_sorted()


def test_a_long_log_is_sorted_as_it_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_ROWS", 8)
    starts = [float(i) for i in range(40)]
    swapped = [starts[i ^ 3] for i in range(40)]  # fours, each backwards
    blocks = [at(*swapped[i : i + 4]) for i in range(0, 40, 4)]
    assert pl.concat(in_time_order(blocks, PATH))["ts"].to_list() == starts


def test_a_long_log_in_blocks_by_class_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_ROWS", 8)
    block = at(*range(10))
    with pytest.raises(InputError, match="out of time order") as caught:
        list(in_time_order([block] * 4, PATH))
    assert caught.value.hint is not None


def test_warnings_name_the_captures() -> None:
    bad, fine = judged(at(*range(0, 9000, 90)), at(*range(0, 9000, 90))), judged(at(1.0))
    (only,) = warnings({"a": fine, **dict.fromkeys("bcdef", bad)})
    assert only.startswith("rows not in time order: b, c, d and 2 more (up to 48% of"), only
    assert warnings({"a": fine}) == ()


def test_real_captures(iot23: Path) -> None:
    """Whole captures are in Zeek's order; excerpts were sorted, and one must not be told from the
    other where order says nothing."""
    states = {name: one.state for name, one in load(iot23, seed=0, cap=1).orders.items()}
    whole = [f"CTU-IoT-Malware-Capture-{number}-1" for number in (20, 21, 34, 8, 42)]
    whole += [f"CTU-Honeypot-Capture-{number}-1" for number in (4, 5, 7)]
    assert {states[name] for name in whole} == {"written"}
    assert "disordered" not in states.values()
