"""The Zeek reader: every format, every fault, and the same frames whatever the block size."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from gradsense.data.flows import FLOW_SCHEMA
from gradsense.data.sources.lines import EXAMPLE_CHARS, MAX_LINE_BYTES, Tally
from gradsense.data.sources.stream import is_synthetic, read_log
from gradsense.errors import InputError
from tests.support.flow_rows import ROW

NAMES = {
    **{name: name for name in FLOW_SCHEMA if name not in {"line", "label", "detail"}},
    "orig_h": "id.orig_h",
    "orig_p": "id.orig_p",
    "resp_h": "id.resp_h",
    "resp_p": "id.resp_p",
    "label": "label",
    "detail": "detailedlabel",
}
PLAIN = [name for name in ROW if name not in {"label", "detail"}]


def tsv(rows: list[dict[str, Any]], columns: list[str] | None = None, sep: str = "\t") -> str:
    columns = columns or list(ROW)
    escape = sep if sep != "\t" else "\\x09"
    lines = [f"#separator {escape}", f"#unset_field{sep}-", f"#empty_field{sep}(empty)"]
    lines.append(sep.join(["#fields", *(NAMES[name] for name in columns)]))
    for row in rows:
        lines.append(sep.join("-" if row[c] is None else str(row[c]) for c in columns))
    return "\n".join(lines) + "\n"


def json_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(
        json.dumps({NAMES[k]: v for k, v in row.items() if v is not None}) + "\n" for row in rows
    )


def read(path: Path, tally: Tally | None = None, **options: Any) -> pl.DataFrame:
    frames = list(read_log(path, tally=tally if tally is not None else Tally(), **options))
    return pl.concat(frames) if frames else pl.DataFrame(schema=FLOW_SCHEMA)


def write(folder: Path, data: str | bytes, name: str = "conn.log") -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def expected(rows: list[dict[str, Any]], first_line: int) -> pl.DataFrame:
    numbered = [{**row, "line": first_line + i} for i, row in enumerate(rows)]
    return pl.DataFrame(numbered, schema=FLOW_SCHEMA)


# --- formats ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [False, True])
def test_tsv_and_json_agree_with_the_rows(tmp_path: Path, pack: bool) -> None:
    rows = [ROW, {**ROW, "duration": None, "service": "dns"}]
    for text, first in ((tsv(rows), 5), (json_lines(rows), 1)):
        data = gzip.compress(text.encode()) if pack else text.encode()
        path = write(tmp_path, data)  # the name says nothing about gzip
        assert_frame_equal(read(path), expected(rows, first))


def test_iot23_last_column(tmp_path: Path) -> None:
    head = ["#separator \\x09", "\t".join(["#fields", *(NAMES[n] for n in PLAIN)])]
    head[1] += "\ttunnel_parents   label   detailed-label"
    cells = "\t".join("-" if ROW[n] is None else str(ROW[n]) for n in PLAIN)
    body = [f"{cells}\t(empty)   Malicious   C&C", f"{cells}\t-   benign   -", f"{cells}\tbroken"]
    tally = Tally()
    flows = read(write(tmp_path, "\n".join([*head, *body, "#close\tnow"])), tally)
    assert flows.select("label", "detail", "line").rows() == [
        ("Malicious", "C&C", 3),
        ("benign", "-", 4),
    ]
    assert tally.read == 2
    drop = tally.dropped["wrong number of fields"]
    assert (drop.count, drop.line, drop.text) == (1, 5, "broken")


@pytest.mark.parametrize("name", ["detailedlabel", "detailed-label", "detailed_label"])
def test_names_of_the_detailed_label(tmp_path: Path, name: str) -> None:
    for text in (tsv([ROW]), json_lines([ROW])):
        path = write(tmp_path, text.replace("detailedlabel", name))
        assert read(path)["detail"].to_list() == ["C&C"]


def test_declared_separator_and_markers(tmp_path: Path) -> None:
    text = tsv([ROW], sep=",").replace(",-,", ",NIL,").replace("#unset_field,-", "#unset_field,NIL")
    assert_frame_equal(read(write(tmp_path, text)), expected([ROW], 5))
    empty = tsv([{**ROW, "service": "(empty)"}])
    assert read(write(tmp_path, empty))["service"].to_list() == [None]


def test_repeated_headers_change_the_columns(tmp_path: Path) -> None:
    first = tsv([ROW]) + "#close\t2019\n"
    second = tsv([ROW], list(reversed(ROW)), sep=",")
    flows = read(write(tmp_path, first + second))
    assert flows["line"].to_list() == [5, 11]
    assert flows.drop("line").row(0) == flows.drop("line").row(1)


def test_crlf_bom_blank_lines_and_no_last_newline(tmp_path: Path) -> None:
    text = "\ufeff" + tsv([ROW, ROW]).rstrip("\n").replace("\n", "\r\n")
    text = text.replace("\r\n1545", "\r\n\r\n1545", 1)
    tally = Tally()
    assert read(write(tmp_path, text), tally)["line"].to_list() == [6, 7]
    assert not tally.dropped


def test_zeek_escapes_and_quotes(tmp_path: Path) -> None:
    text = tsv([{**ROW, "uid": r"a\x09b", "history": '"S'}, {**ROW, "uid": r"\xff"}])
    flows = read(write(tmp_path, text))
    assert flows["uid"].to_list() == ["a\tb", r"\xff"]
    assert flows["history"][0] == '"S'


def test_iso_times_in_json(tmp_path: Path) -> None:
    path = write(tmp_path, json_lines([{**ROW, "ts": "2018-12-21T14:50:16.962094Z"}, ROW]))
    assert read(path)["ts"].to_list() == pytest.approx([1545403816.962094] * 2, abs=1e-6)


def test_header_without_rows_is_fine(tmp_path: Path) -> None:
    tally = Tally()
    assert read(write(tmp_path, tsv([])), tally).is_empty()
    assert tally == Tally()


def test_synthetic_mark(tmp_path: Path) -> None:
    assert not is_synthetic(write(tmp_path, tsv([ROW])))
    assert is_synthetic(write(tmp_path, "#path\tconn\n#synthetic\tgradsense\n" + tsv([ROW])))


# --- malformed lines -------------------------------------------------------------------------

BAD_CELLS = [
    ("resp_p", 65536, "out of range"),
    ("resp_p", -1, "out of range"),
    ("orig_p", "http", "not a number"),
    ("orig_bytes", -5, "out of range"),
    ("orig_bytes", "NaN", "not a number"),
    ("orig_bytes", 1.5, "not a number"),
    ("duration", "nan", "not a number"),
    ("duration", "inf", "not a number"),
    ("duration", -0.5, "out of range"),
    ("ts", "yesterday", "not a number"),
    ("ts", None, "missing value"),
    ("proto", None, "missing value"),
    ("conn_state", None, "missing value"),
]


@pytest.mark.parametrize(("name", "value", "reason"), BAD_CELLS)
@pytest.mark.parametrize("form", ["tsv", "json"])
def test_bad_cells_are_counted(
    tmp_path: Path, form: str, name: str, value: object, reason: str
) -> None:
    rows = [ROW, {**ROW, name: value}, ROW, {**ROW, name: value}]
    path = write(tmp_path, tsv(rows) if form == "tsv" else json_lines(rows))
    first = 5 if form == "tsv" else 1
    tally = Tally()
    assert read(path, tally)["line"].to_list() == [first, first + 2]
    assert tally.read == 2
    assert list(tally.dropped) == [reason]
    drop = tally.dropped[reason]
    assert (drop.count, drop.line, drop.field) == (2, first + 1, NAMES[name])
    assert drop.text == ("" if value is None else str(value))
    with pytest.raises(InputError, match=f"{path}:{first + 1}: field '{NAMES[name]}'.*strict"):
        read(path, strict=True)


def test_bad_lines_are_counted(tmp_path: Path) -> None:
    good = tsv([ROW]).encode()
    line = good.splitlines()[-1]
    bad = [
        b"too\tfew",
        line + b"\ttoo many",
        line.replace(b"CrDn", b"\xff\xfe"),
        line.replace(b"CrDn", b"\0"),
        line.replace(b"CrDn", b"x" * (MAX_LINE_BYTES + 1)),
    ]
    path = write(tmp_path, good + b"\n".join([*bad, line]) + b"\n")
    for size in (1 << 16, 8 << 20):
        tally = Tally()
        assert read(path, tally, block_bytes=size)["line"].to_list() == [5, 11]
        counts = {reason: (drop.count, drop.line) for reason, drop in tally.dropped.items()}
        assert counts == {
            "wrong number of fields": (2, 6),
            "undecodable bytes": (2, 8),
            "line too long": (1, 10),
        }
        assert all(len(drop.text) <= EXAMPLE_CHARS for drop in tally.dropped.values())


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        "7",
        "null",
        "not json",
        '{"ts": NaN}',
        '{"ts": 1}{"ts": 2}',
        '{"uid": "\\ud800"}',
        '{"ts":' + "[" * 50_000,
    ],
)
def test_bad_json_lines(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, json_lines([ROW]) + line + "\n" + json_lines([ROW]))
    tally = Tally()
    assert read(path, tally)["line"].to_list() == [1, 3]
    assert {reason: drop.line for reason, drop in tally.dropped.items()} == {"invalid JSON": 2}


def test_rows_before_the_header_are_counted(tmp_path: Path) -> None:
    tally = Tally()
    flows = read(write(tmp_path, "1\t2\t3\n" + tsv([ROW])), tally)
    assert flows["line"].to_list() == [6]
    assert tally.dropped["before any #fields header"].count == 1


def test_a_row_with_two_faults_counts_once(tmp_path: Path) -> None:
    tally = Tally()
    assert read(write(tmp_path, tsv([{**ROW, "ts": "x", "resp_p": 70000}])), tally).is_empty()
    assert tally.total_dropped == 1


def test_tally_merges_and_tells() -> None:
    first, second = Tally(read=3), Tally(read=4)
    first.add("out of range", "a.log", 7, "resp_p", "x" * 500)
    second.add("out of range", "b.log", 9, "resp_p", "y", count=2)
    second.add("line too long", "b.log", 1, None, "z")
    first.merge(second)
    assert first.read == 7
    assert first.total_dropped == 4
    assert first.dropped["out of range"].file == "a.log"
    assert first.lines()[0].startswith("3 x out of range, first at a.log:7, field 'resp_p'")
    assert json.loads(json.dumps(first.to_json()))["dropped"]["line too long"]["count"] == 1


# --- faults of the whole file ----------------------------------------------------------------


def corrupt(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(255 - byte for byte in data[middle : middle + 40]) + data[-40:]


MANY = [{**ROW, "uid": f"C{i * 7919}"} for i in range(2000)]
WHOLE_FILE = {
    "empty": (b"", "is empty"),
    "blank": (b"\n \n", "is empty"),
    "empty gz": (gzip.compress(b""), "is empty"),
    "binary": (random.Random(0).randbytes(5000), "is binary"),
    "png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is binary"),
    "utf-16": ("#fields\tts".encode("utf-16"), "is binary"),
    "truncated gz": (gzip.compress(tsv(MANY).encode())[:-200], "gzip data is cut short"),
    "gz of two bytes": (b"\x1f\x8b", "gzip data is cut short"),
    "corrupt gz": (corrupt(gzip.compress(tsv(MANY).encode())), "gzip data is cut short"),
    "no #fields": (b"#separator \\x09\n1\t2\t3\n", "#fields"),
    "csv": (b"ts,uid\n1,2\n", "#fields"),
    "missing columns": (tsv([ROW], ["ts", "uid", "orig_h"]).encode(), "lacks id.resp_h, id.resp_p"),
    "other json": (b'{"ts": 1, "query": "a.b"}\n', "lacks id.orig_h"),
    "long separator": (b"#separator ab\n#fieldsabts\n", "separator"),
}


@pytest.mark.parametrize("name", WHOLE_FILE)
def test_faults_of_the_whole_file(tmp_path: Path, name: str) -> None:
    data, message = WHOLE_FILE[name]
    path = write(tmp_path, data)
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "nothing")
    with pytest.raises(InputError, match="is a folder"):
        read(tmp_path)


# --- properties ------------------------------------------------------------------------------

word = st.text(st.sampled_from("abcdefgXYZ019.:;%&\"'é"), min_size=1, max_size=15)
count = st.none() | st.integers(0, 2**62)
port = st.integers(0, 65535)
seconds = st.floats(0, 1e10)
flow = st.fixed_dictionaries(
    {
        "ts": seconds,
        "uid": st.none() | word,
        "orig_h": word,
        "orig_p": st.none() | port,
        "resp_h": word,
        "resp_p": port,
        "proto": word,
        "service": st.none() | word,
        "duration": st.none() | seconds,
        "orig_bytes": count,
        "resp_bytes": count,
        "conn_state": word,
        "missed_bytes": count,
        "history": st.none() | word,
        "orig_pkts": count,
        "orig_ip_bytes": count,
        "resp_pkts": count,
        "resp_ip_bytes": count,
        "label": word,
        "detail": word,
    }
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(flow, min_size=1, max_size=6), columns=st.permutations(list(ROW)))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], columns: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("round")
    assert_frame_equal(read(write(folder, tsv(rows, columns))), expected(rows, 5), check_exact=True)
    assert_frame_equal(read(write(folder, json_lines(rows))), expected(rows, 1), check_exact=True)


cell = st.sampled_from(
    ["-", "", "(empty)", "0", "7", " 7", "7 ", "  ", "+7", "1.5", "1e3", "nan", "inf", "-1", "x"]
) | st.sampled_from(["70000", "99999999999999999999", r"\x2d", "é", "1\r", "0x1", "1_0", "٣"])


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    lines=st.lists(
        st.lists(cell, min_size=20, max_size=20).map("\t".join)
        | st.just(tsv([ROW]).splitlines()[-1])
        | st.sampled_from(["", "a", "#close", "#unset_field\tx", "\x00", "#fields\tts"]),
        max_size=8,
    ),
    size=st.integers(1, 400),
)
def test_block_size_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], size: int
) -> None:
    path = write(tmp_path_factory.mktemp("block"), tsv([ROW]) + "\n".join(lines))
    results = []
    for options in ({}, {"block_bytes": size}):
        tally = Tally()
        try:
            results.append((read(path, tally, **options).rows(), tally))
        except InputError as error:
            results.append(([], str(error)))  # type: ignore[arg-type]
    assert results[0] == results[1]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", b"{", tsv([ROW]).encode(), b"\x1f\x8b\x08"]))
def test_any_bytes_raise_input_errors_only(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes
) -> None:
    path = write(tmp_path_factory.mktemp("bytes"), start + data)
    tally = Tally()
    try:
        flows = read(path, tally)
    except InputError:
        return
    assert flows.schema == pl.Schema(FLOW_SCHEMA)
    assert tally.read == flows.height


# --- real logs -------------------------------------------------------------------------------


def test_iot23_is_read_whole(iot23: Path) -> None:
    tally = Tally()
    for path in sorted(iot23.rglob("conn.log.labeled")):
        read(path, tally, strict=True)
    assert tally == Tally(read=80_990)


@pytest.mark.parametrize(
    ("name", "flows", "labels"),
    [
        ("002-port-scanning_conn.json.log", 4504, 0),
        ("home_conn.json.log", 1000, 0),
        ("008-zeek-mixed_conn.log.labeled", 5663, 5663),
        ("011-zeek-mixed_conn.log.labeled", 9048, 9048),
    ],
)
def test_other_networks(zeek_logs: Path, name: str, flows: int, labels: int) -> None:
    frame = read(zeek_logs / name, strict=True)
    assert (frame.height, frame["label"].count()) == (flows, labels)


json_value = st.sampled_from(
    ["1", "1.0", '"7"', "1e3", "-0", "true", "null", '""', "[1]", "1e400", "12345678901234567890"]
) | st.sampled_from(['"\\u00e9"', '"x"', '{"a": 1}', "0.1", "1.5", "NaN", '"a\\nb"', "-3"])


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    lines=st.lists(
        st.dictionaries(st.sampled_from(list(NAMES.values())), json_value, max_size=4), max_size=6
    ),
    size=st.integers(1, 200),
)
def test_block_size_changes_nothing_in_json(
    tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, str]], size: int
) -> None:
    good = {NAMES[name]: json.dumps(value) for name, value in ROW.items() if value is not None}
    text = "".join(
        "{" + ",".join(f'"{key}":{value}' for key, value in (good | line).items()) + "}\n"
        for line in [{}, *lines]
    )
    path = write(tmp_path_factory.mktemp("json"), text)
    whole, parts = Tally(), Tally()
    assert read(path, whole).rows() == read(path, parts, block_bytes=size).rows()
    assert whole == parts
