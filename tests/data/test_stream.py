"""One growing log: formats, headers and line numbers over blocks, restarts and garbage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.data.flows import FLOW_SCHEMA
from gradsense.data.sources.lines import MAX_LINE_BYTES, Row, Tally
from gradsense.data.sources.stream import FEW_LINES, LogStream, read_log
from gradsense.data.sources.suricata import OTHER_EVENT
from gradsense.data.sources.zeek_tsv import NO_HEADER
from gradsense.errors import InputError

PATH = Path("conn.log")
FIELDS = ("ts", "uid", "id.orig_h", "id.orig_p", "id.resp_h", "id.resp_p", "proto", "conn_state")
HEADER = b"#separator \\x09\n#unset_field\t-\n#fields\t" + "\t".join(FIELDS).encode() + b"\n"
TSV = b"1.5\tC1\t10.0.0.1\t4000\t10.0.0.2\t80\ttcp\tS0\n"
JSON = (
    b'{"ts":1.5,"uid":"C1","id.orig_h":"10.0.0.1","id.orig_p":4000,'
    b'"id.resp_h":"10.0.0.2","id.resp_p":80,"proto":"tcp","conn_state":"S0"}\n'
)
EVE = (
    b'{"flow_id":1,"event_type":"flow","src_ip":"10.0.0.1","src_port":4000,"dest_ip":"10.0.0.2",'
    b'"dest_port":80,"proto":"UDP","flow":{"pkts_toserver":1,"pkts_toclient":0,"bytes_toserver":60,'
    b'"bytes_toclient":0,"start":"1970-01-01T00:00:01.5Z","end":"1970-01-01T00:00:01.5Z"}}\n'
)
DNS = b'{"flow_id":1,"event_type":"dns"}\n'
FLOW = {
    "ts": 1.5,
    "uid": "C1",
    "orig_h": "10.0.0.1",
    "orig_p": 4000,
    "resp_h": "10.0.0.2",
    "resp_p": 80,
    "proto": "tcp",
    "conn_state": "S0",
}


def rows(flows: list[Row] | pl.DataFrame) -> list[dict[str, Any]]:
    if isinstance(flows, pl.DataFrame):
        assert flows.schema == FLOW_SCHEMA
        return flows.to_dicts()
    return list(flows)


def lines_of(flows: list[Row] | pl.DataFrame) -> list[int]:
    return [row["line"] for row in rows(flows)]


def counts(tally: Tally) -> dict[str, tuple[int, int]]:
    return {reason: (drop.count, drop.line) for reason, drop in tally.dropped.items()}


@pytest.mark.parametrize(("head", "line"), [(HEADER, TSV), (b"", JSON), (b"", EVE)])
def test_few_clean_lines_are_rows_and_many_a_frame(head: bytes, line: bytes) -> None:
    stream, tally = LogStream(PATH), Tally()
    first = len(head.splitlines()) + 1
    assert isinstance(stream.parse(head + line, tally), pl.DataFrame)  # the format is found here
    one = stream.parse(line, tally)
    many = stream.parse(line * (FEW_LINES + 1), tally)
    assert isinstance(one, list)
    assert isinstance(many, pl.DataFrame)
    assert lines_of(one) == [first + 1]
    assert lines_of(many) == list(range(first + 2, first + FEW_LINES + 3))
    assert {**rows(many)[0], "line": 0} == {**one[0], "line": 0}
    assert list(one[0]) == list(FLOW_SCHEMA)
    assert (tally.read, tally.total_dropped) == (FEW_LINES + 3, 0)


def test_one_odd_line_sends_its_block_to_the_block_parser() -> None:
    stream, tally = LogStream(PATH), Tally()
    stream.parse(HEADER, tally)
    odd = stream.parse(TSV + TSV.replace(b"\t80\t", b"\t70000\t") + TSV, tally)
    assert isinstance(odd, pl.DataFrame)
    assert lines_of(odd) == [4, 6]
    assert counts(tally) == {"out of range": (1, 5)}
    assert isinstance(stream.parse(TSV, tally), list)


def test_the_header_holds_over_blocks_and_may_change() -> None:
    stream, tally = LogStream(PATH), Tally()
    assert len(stream.parse(HEADER[:16], tally)) == 0
    assert len(stream.parse(HEADER[16:], tally)) == 0
    assert lines_of(stream.parse(TSV, tally)) == [4]
    other = HEADER.replace(b"ts\tuid", b"uid\tts") + TSV.replace(b"1.5\tC1", b"C1\t1.5")
    mixed = stream.parse(TSV + b"#close\tnow\n" + other, tally)
    assert [row["ts"] for row in rows(mixed)] == [1.5, 1.5]
    assert lines_of(mixed) == [5, 10]
    assert tally.total_dropped == 0


def test_garbage_is_counted_until_a_header_or_a_record_comes() -> None:
    stream, tally = LogStream(PATH), Tally()
    junk = b"\x89PNG\r\n\x1a\nplain text\n\0\0\n{}\n7\n\n"
    assert len(stream.parse(junk, tally)) == 0
    assert counts(tally) == {NO_HEADER: (4, 2), "undecodable bytes": (2, 1)}
    assert lines_of(stream.parse(b"more\n" + JSON + JSON, tally)) == [9, 10]
    assert lines_of(stream.parse(HEADER + TSV + TSV, tally)) == [14, 15]
    assert lines_of(stream.parse(JSON + JSON, tally)) == [16, 17]
    assert counts(tally)[NO_HEADER] == (5, 2)
    assert tally.read == 6


def test_eve_events_other_than_flows() -> None:
    stream, tally = LogStream(PATH), Tally()
    assert lines_of(stream.parse(DNS + EVE + DNS, tally)) == [2]
    assert stream.parse(DNS, tally) == []
    mixed = stream.parse(DNS + EVE + DNS, tally)
    assert isinstance(mixed, list)
    assert lines_of(mixed) == [6]
    assert counts(tally) == {OTHER_EVENT: (5, 1)}
    assert len(stream.parse(DNS + b"{\n", tally)) == 0
    assert counts(tally) == {OTHER_EVENT: (6, 1), "invalid JSON": (1, 9)}


def test_a_required_column_is_missing() -> None:
    stream, tally = LogStream(PATH), Tally()
    lacking = HEADER.replace(b"\tproto\tconn_state", b"")
    assert len(stream.parse(lacking + TSV + b"x\n", tally)) == 0
    assert counts(tally) == {"the log lacks proto, conn_state": (2, 4)}
    assert lines_of(stream.parse(HEADER + TSV, tally)) == [9]


@pytest.mark.parametrize("bad", [b"#separator ab\n", b"#fields" + b"\tx" * 600 + b"\n"])
def test_a_header_that_cannot_be_used(bad: bytes) -> None:
    stream, tally = LogStream(PATH), Tally()
    assert lines_of(stream.parse(HEADER + TSV + bad + TSV, tally)) == [4]
    assert counts(tally) == {NO_HEADER: (1, 6)}
    assert lines_of(stream.parse(HEADER + TSV, tally)) == [10]


def test_a_line_over_the_bound() -> None:
    stream, tally = LogStream(PATH), Tally()
    stream.parse(HEADER, tally)
    assert lines_of(stream.parse(b"x" * (MAX_LINE_BYTES + 1) + b"\n" + TSV, tally)) == [5]
    assert counts(tally) == {"line too long": (1, 4)}


def test_byte_order_mark_and_windows_line_ends() -> None:
    stream, tally = LogStream(PATH), Tally()
    text = (HEADER + TSV).replace(b"\n", b"\r\n")
    assert lines_of(stream.parse(b"\xef\xbb\xbf" + text, tally)) == [4]
    assert lines_of(stream.parse(TSV.replace(b"\n", b"\r\n"), tally)) == [5]
    assert tally.total_dropped == 0


@pytest.mark.parametrize(("head", "line"), [(HEADER, TSV), (b"", JSON), (b"", EVE)])
def test_a_restart_in_the_middle(head: bytes, line: bytes) -> None:
    stream, tally = LogStream(PATH), Tally()
    stream.parse(head + line, tally)
    state = json.loads(json.dumps(stream.state()))
    again = LogStream.restore(PATH, state)
    assert again.state() == stream.state()
    assert rows(again.parse(line, tally)) == rows(stream.parse(line, tally))
    assert tally.total_dropped == 0


@pytest.mark.parametrize(
    "change",
    [
        {"format": "xml"},
        {"line": 0},
        {"line": "7"},
        {"header": None},
        {"header": {"separator": "ab", "unset": "-", "empty": "", "fields": []}},
        {"more": 1},
    ],
)
def test_a_damaged_state_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="is damaged"):
        LogStream.restore(PATH, {**LogStream(PATH).state(), **change})


def test_a_new_file_counts_from_one_and_may_have_another_format() -> None:
    stream, tally = LogStream(PATH), Tally()
    stream.parse(HEADER + TSV, tally)
    stream.restart()
    assert lines_of(stream.parse(TSV, tally)) == [1]  # emptied under Zeek: no header comes again
    stream.restart()
    assert lines_of(stream.parse(JSON + JSON, tally)) == [1, 2]
    stream.restart()
    assert lines_of(stream.parse(EVE, tally)) == [1]
    stream.restart()
    assert lines_of(stream.parse(HEADER + TSV, tally)) == [4]
    assert tally.total_dropped == 0


@settings(max_examples=50, deadline=None)
@given(
    head=st.sampled_from([HEADER + TSV, JSON, EVE]),
    chosen=st.lists(
        st.sampled_from([TSV, JSON, EVE, DNS, HEADER, b"\n", b"x\n", b"#x\n", b"\xff\n"])
    ),
    cuts=st.lists(st.integers(0, 40), max_size=5),
)
def test_blocks_make_no_difference_to_one_format(
    head: bytes, chosen: list[bytes], cuts: list[int]
) -> None:
    kind = {HEADER + TSV: TSV, JSON: JSON, EVE: EVE}[head]
    wrong = {TSV, JSON, EVE, DNS, HEADER} - {kind}
    lines = [line for line in chosen if line not in wrong]
    whole, parts = Tally(), Tally()
    expected = rows(LogStream(PATH).parse(head + b"".join(lines), whole))
    stream = LogStream(PATH)
    found = rows(stream.parse(head, parts))
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), None], strict=True):
        found += rows(stream.parse(b"".join(lines[begin:end]), parts))
    assert found == expected
    assert parts == whole


def check_as_read_log(path: Path) -> None:
    expected = [row for frame in read_log(path, tally=Tally()) for row in frame.to_dicts()]
    stream, tally, found = LogStream(path), Tally(), []
    lines = path.read_bytes().splitlines(keepends=True)
    sizes = [1, 3, FEW_LINES, 1000]
    while lines:
        size = sizes[len(found) % len(sizes)]
        found += rows(stream.parse(b"".join(lines[:size]), tally))
        lines = lines[size:]
    assert found == expected
    assert (tally.read, tally.total_dropped) == (len(expected), 0)


def test_a_real_capture_line_by_line(iot23: Path) -> None:
    check_as_read_log(iot23 / "CTU-IoT-Malware-Capture-20-1" / "bro" / "conn.log.labeled")


def test_real_logs_of_other_networks(zeek_logs: Path) -> None:
    for path in sorted(zeek_logs.glob("*conn*")):
        check_as_read_log(path)
