"""The context window against a slow reference that reads like its definition."""

from __future__ import annotations

from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from gradsense.data import flows as context
from gradsense.data.flows import CONTEXT_SCHEMA, FAILED_STATES, WINDOW, ContextWindow

COLUMNS = {
    "ts": pl.Float64,
    "orig_h": pl.String,
    "resp_h": pl.String,
    "resp_p": pl.Int64,
    "conn_state": pl.String,
}


def flows(*rows: tuple[float, str, str, int, str]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")


def reference(frame: pl.DataFrame) -> pl.DataFrame:
    rows = list(frame.iter_rows(named=True))
    recent_of: list[list[int]] = []
    fresh: list[bool] = []
    out = []
    for i, row in enumerate(rows):
        recent = [
            j for j in range(max(0, i - context.HORIZON), i) if rows[j]["orig_h"] == row["orig_h"]
        ][-WINDOW:]
        recent_of.append(recent)
        fresh.append(all(rows[j]["resp_h"] != row["resp_h"] for j in recent))
        n = len(recent)
        span = row["ts"] - rows[recent[0]]["ts"] if n >= 2 else 0.0
        out.append(
            {
                "ctx_flows": n,
                "ctx_rate": n / span if span > 0 else None,
                "ctx_failed": sum(rows[j]["conn_state"] in FAILED_STATES for j in recent) / n
                if n
                else None,
                "ctx_fresh": sum(fresh[j] for j in recent) / n if n else None,
                "ctx_same_port": sum(rows[j]["resp_p"] == row["resp_p"] for j in recent) / n
                if n
                else None,
            }
        )
    return frame.hstack(pl.DataFrame(out, schema=CONTEXT_SCHEMA))


def in_blocks(frame: pl.DataFrame, cuts: list[int]) -> pl.DataFrame:
    window = ContextWindow()
    edges = [0, *sorted(min(cut, frame.height) for cut in cuts), frame.height]
    return pl.concat([window.add(frame[start:stop]) for start, stop in pairwise(edges)])


logs = st.lists(
    st.tuples(
        st.floats(0, 1000),
        st.sampled_from(["h1", "h2", "h3"]),
        st.sampled_from(["d1", "d2", "d3", "d4"]),
        st.sampled_from([22, 23, 80]),
        st.sampled_from(["S0", "SF", "REJ", "S1", "OTH"]),
    ),
    min_size=1,
    max_size=150,
).map(lambda rows: flows(*rows))


@settings(max_examples=60, deadline=None)
@given(logs, st.lists(st.integers(0, 150), max_size=6))
def test_equals_the_definition_however_the_log_is_cut(frame: pl.DataFrame, cuts: list[int]) -> None:
    assert_frame_equal(in_blocks(frame, cuts), reference(frame), check_exact=True)


@settings(max_examples=40, deadline=None)
@given(logs, st.lists(st.integers(0, 150), max_size=6))
def test_a_short_horizon_forgets_the_same_rows_however_the_log_is_cut(
    frame: pl.DataFrame, cuts: list[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "HORIZON", 20)
        assert_frame_equal(in_blocks(frame, cuts), reference(frame), check_exact=True)


def test_four_flows_by_hand() -> None:
    frame = flows(
        (0.0, "a", "x", 23, "S0"),
        (1.0, "a", "y", 23, "S0"),
        (2.0, "a", "x", 80, "SF"),
        (4.0, "a", "z", 23, "S0"),
    )
    last = ContextWindow().add(frame).row(3, named=True)
    assert last["ctx_flows"] == 3
    assert last["ctx_rate"] == 3 / 4.0
    assert last["ctx_failed"] == 2 / 3
    assert last["ctx_fresh"] == 2 / 3  # the third flow went to x again
    assert last["ctx_same_port"] == 2 / 3


def test_first_flow_of_a_host_has_nothing_to_rest_on() -> None:
    first = ContextWindow().add(flows((5.0, "a", "x", 23, "S0"))).row(0, named=True)
    assert [first[name] for name in CONTEXT_SCHEMA] == [0, None, None, None, None]


def test_missing_values_do_no_harm() -> None:
    frame = pl.DataFrame({name: [None] * 3 for name in COLUMNS}, schema=COLUMNS)
    out = ContextWindow().add(frame)
    assert out["ctx_flows"].to_list() == [0, 1, 2]
    assert out["ctx_rate"].null_count() == 3


def test_an_empty_block_gets_the_columns() -> None:
    out = ContextWindow().add(pl.DataFrame(schema=COLUMNS))
    assert out.schema == pl.Schema(COLUMNS | CONTEXT_SCHEMA)
    assert out.height == 0


def test_memory_is_bounded() -> None:
    window = ContextWindow()
    for block in range(4):
        many = pl.DataFrame(
            {"ts": [1.0] * 100, "orig_h": [f"h{block % 2}"] * 100, "resp_p": [1] * 100}
        ).with_columns(resp_h=pl.lit("x"), conn_state=pl.lit("SF"))
        window.add(many)
    assert len(window) == 2 * WINDOW
