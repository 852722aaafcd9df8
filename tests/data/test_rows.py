"""The short way for few lines: what it accepts is what the block parsers give, to the type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gradsense.data.flows import FLOW_SCHEMA
from gradsense.data.sources.lines import Row, Tally
from gradsense.data.sources.stream import read_log
from gradsense.data.sources.zeek_json import json_row
from gradsense.data.sources.zeek_tsv import Header, tsv_rows, zeek_name
from tests.support.flow_rows import ROW as WRITTEN

ROW: Row = {**WRITTEN, "line": 7}
PLAIN = [name for name in FLOW_SCHEMA if name not in {"label", "detail", "line"}]
COMPOUND = "tunnel_parents   label   detailed-label"


def header(*more: str) -> Header:
    return Header(fields=(*map(zeek_name, PLAIN), *more))


def cells(row: dict[str, Any]) -> list[str]:
    return ["-" if row[name] is None else str(row[name]) for name in PLAIN]


def tsv(row: dict[str, Any], last: str = "(empty)   Malicious   C&C") -> bytes:
    return "\t".join([*cells(row), last]).encode()


def as_json(row: dict[str, Any]) -> bytes:
    held = {zeek_name(n): v for n, v in row.items() if n != "line" and v is not None}
    return json.dumps(held, ensure_ascii=False).encode()


def by_block(path: Path, lines: bytes) -> Row | None:
    """What the block parser gives for the last line."""
    path.write_bytes(lines)
    rows = [row for frame in read_log(path, tally=Tally()) for row in frame.to_dicts()]
    return rows[-1] if rows else None


def same(row: Row, other: Row | None) -> bool:
    return other is not None and [(k, type(v), v) for k, v in row.items()] == [
        (k, type(v), v) for k, v in other.items()
    ]


def test_iot23_line() -> None:
    parse = tsv_rows(header(COMPOUND))
    assert parse is not None
    assert parse(tsv(ROW), 7) == ROW
    assert list(parse(tsv(ROW), 7) or {}) == list(FLOW_SCHEMA)


def test_json_line() -> None:
    assert json_row(as_json(ROW), 7) == ROW
    iso = as_json(ROW).replace(b"1545403816.962094", b'"2018-12-21T14:50:16.962094Z"')
    assert json_row(iso, 7) == ROW


def test_labels_in_their_own_columns() -> None:
    parse = tsv_rows(header("label", "detailedlabel"))
    assert parse is not None
    row = parse(tsv(ROW, "Benign\t-"), 1)
    assert row is not None
    assert (row["label"], row["detail"]) == ("Benign", "-")  # as written


ODD_CELLS = [
    (name, text)
    for name, texts in {
        "orig_p": [" 1", "+1", "-1", "65536", "1_0", "1.0", "٣", ""],
        "orig_bytes": ["-5", "1" * 19, "0x1", "(empty)"],
        "ts": ["-", "", "nan", "inf", "1e5", "-0.5", "1.", ".5", "1" * 16, "1.0123456789"],
        "duration": ["nan", "Infinity", "1,5"],
        "proto": ["-", "(empty)", ""],
        "uid": [r"a\x09b", "a\0", "a\r", ""],
    }.items()
    for text in texts
]


@pytest.mark.parametrize(("name", "text"), ODD_CELLS)
def test_odd_cells_are_left_to_the_block_parser(name: str, text: str) -> None:
    parse = tsv_rows(header(COMPOUND))
    assert parse is not None
    assert parse(tsv({**ROW, name: text}), 1) is None


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"#close\t2026",
        b"too\tfew",
        tsv(ROW) + b"\tmore",
        tsv(ROW, "-   Benign"),
        tsv(ROW, "-      Benign"),
        tsv(ROW, "-   Benign   -   more"),
        tsv(ROW).replace(b"CrDn", b"\xff"),
    ],
)
def test_odd_lines_are_left_to_the_block_parser(line: bytes) -> None:
    parse = tsv_rows(header(COMPOUND))
    assert parse is not None
    assert parse(line, 1) is None


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"7",
        b"{",
        as_json(ROW)[:-1] + b', "ts": 2}',
        as_json(ROW)[:-1] + b', "detailed-label": "x"}',
        as_json(ROW) + b"{}",
        *(
            as_json({**ROW, name: value})
            for name, value in [
                ("ts", None),
                ("ts", True),
                ("ts", "yesterday"),
                ("ts", float("inf")),
                ("ts", -1.0),
                ("resp_p", 65536),
                ("resp_p", 80.0),
                ("resp_p", "80"),
                ("orig_bytes", 10**18),
                ("orig_bytes", -1),
                ("duration", [1]),
                ("proto", ""),
                ("proto", 6),
                ("uid", "a\\b"),
            ]
        ),
        b'{"ts":' + b"[" * 50_000,
    ],
)
def test_odd_json_is_left_to_the_block_parser(line: bytes) -> None:
    assert json_row(line, 1) is None


def test_headers_without_flows() -> None:
    assert tsv_rows(Header()) is None
    assert tsv_rows(Header(fields=("ts", "uid"))) is None


odd_text = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["-", "(empty)", "0", "007", "00.5", "1.5", "65535", " 5", "5 ", "1e3", "-0.0", "é", '"', "a b"]
)
number = st.integers(0, 2**62) | st.floats(0, 1e14).map(lambda x: f"{x:.6f}")


odd_cell = st.sampled_from(["-", "007", "00.5", " 5", "5 ", "1e3", "-0.0"]) | number
odd_value = st.none() | st.booleans() | st.integers() | st.floats() | odd_text


def fitting(name: str) -> st.SearchStrategy[Any]:
    """What a column mostly holds: were nothing accepted, the tests below would compare nothing."""
    kind = FLOW_SCHEMA[name]
    if kind == pl.String:
        return odd_text
    return st.floats(0, 1e14) if kind.is_float() else st.integers(0, 65535)


def changed(odd: st.SearchStrategy[Any]) -> st.SearchStrategy[list[tuple[str, Any]]]:
    """Up to three columns and their new values."""
    one = st.sampled_from(PLAIN).flatmap(lambda name: st.tuples(st.just(name), fitting(name) | odd))
    return st.lists(one, max_size=3)


@settings(max_examples=100, deadline=None)
@given(
    changes=changed(odd_cell),
    last=st.sampled_from(["-   Benign   -", "(empty)      -", "-   a   b", "-    a   b", "-   "]),
)
def test_an_accepted_tsv_line_is_the_block_parsers(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, Any]], last: str
) -> None:
    line = tsv({**ROW, **dict(changes)}, last)
    parse = tsv_rows(header(COMPOUND))
    assert parse is not None
    row = None if b"\n" in line else parse(line, 2)
    assume(row is not None)
    head = "\t".join(["#fields", *header(COMPOUND).fields]).encode()
    path = tmp_path_factory.getbasetemp() / "tsv.log"
    assert same(row, by_block(path, head + b"\n" + line + b"\n"))


@settings(max_examples=100, deadline=None)
@given(changes=changed(odd_value), label=st.just("Benign") | odd_text)
def test_an_accepted_json_line_is_the_block_parsers(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, Any]], label: str
) -> None:
    line = as_json({**ROW, **dict(changes), "label": label})
    row = json_row(line, 1)
    assume(row is not None)
    path = tmp_path_factory.getbasetemp() / "json.log"
    assert same(row, by_block(path, line + b"\n"))


@pytest.mark.parametrize("seconds", [0.0, 1e-7, 3e-5, 0.1 + 0.2, 1e14 + 0.3, 123456789.123456789])
def test_floats_are_the_same_to_the_last_bit(tmp_path: Path, seconds: float) -> None:
    line = as_json({**ROW, "duration": seconds})
    row = json_row(line, 1)
    assert row is not None
    assert same(row, by_block(tmp_path / "json.log", line + b"\n"))


def accepted(path: Path) -> tuple[list[Row], int]:
    """The rows of a real log that are accepted, and how many lines it has."""
    head, rows, lines = Header(), [], 0
    parse = json_row
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.startswith(b"#"):
            head = head.read(line.decode(), path, number)
            parse = tsv_rows(head) or json_row
            continue
        lines += 1
        row = parse(line, number)
        if row is not None:
            rows.append(row)
    return rows, lines


def check_all_accepted(path: Path) -> None:
    rows, lines = accepted(path)
    assert len(rows) == lines > 0
    assert rows == [r for frame in read_log(path, tally=Tally()) for r in frame.to_dicts()]


@pytest.mark.slow
def test_all_of_iot23_is_accepted(iot23: Path) -> None:
    for path in sorted(iot23.glob("*/bro/conn.log.labeled")):
        check_all_accepted(path)


@pytest.mark.slow
def test_all_of_other_networks_is_accepted(zeek_logs: Path) -> None:
    for path in sorted(zeek_logs.glob("*conn*")):
        check_all_accepted(path)
