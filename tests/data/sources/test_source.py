"""The registry of record sources: what each must hold, and that a new one is one new file."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

import gradsense.data.sources
from gradsense.data.datasets.captures import discover
from gradsense.data.flows import FLOW_SCHEMA
from gradsense.data.sources.lines import Lines, Tally
from gradsense.data.sources.stream import LogStream, RecordSource, log_names, read_log, sources

SPACED = """
    from functools import partial
    from typing import ClassVar

    import numpy as np
    import polars as pl

    from gradsense.data.sources.lines import to_flows
    from gradsense.data.sources.stream import RecordSource

    NAMES = ("ts", "orig_h", "resp_h", "resp_p", "proto", "conn_state")


    def rows(lines):
        cells = [lines.raw(place).decode().split()[1:] for place in range(len(lines))]
        frame = pl.DataFrame(cells, schema=dict.fromkeys(NAMES, pl.String), orient="row")
        return to_flows(frame, lines.numbers, {}, lines)


    class Spaced(RecordSource):
        name: ClassVar = "spaced"
        rank: ClassVar = 9
        logs: ClassVar = ("spaced.log",)

        @classmethod
        def sniff(cls, path, lines):
            return lines[0].startswith(b"FLOW ")

        @classmethod
        def begins(cls, line):
            return line.startswith(b"FLOW ")

        def plan(self, lines):
            return [partial(rows, lines)]

        def row_parser(self):
            return None
"""
LOG = b"FLOW 1.5 10.0.0.1 10.0.0.2 80 tcp S0\nFLOW 2.5 10.0.0.1 10.0.0.3 99999 tcp S0\n"


@pytest.fixture
def spaced(tmp_path: Path) -> Iterator[Path]:
    """A log in a format that nothing knows but its own file."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "spaced.py").write_text(textwrap.dedent(SPACED))
    gradsense.data.sources.__path__.append(str(folder))
    sources.cache_clear()
    log = tmp_path / "site" / "spaced.log"
    log.parent.mkdir()
    log.write_bytes(LOG)
    yield log
    gradsense.data.sources.__path__.remove(str(folder))
    sources.cache_clear()


def test_a_new_source_is_a_new_file_for_stored_and_growing_logs(spaced: Path) -> None:
    stored, growing = Tally(), Tally()
    flows = pl.concat(read_log(spaced, tally=stored))
    assert flows.select("ts", "resp_h", "line").rows() == [(1.5, "10.0.0.2", 1)]
    assert stored.dropped["out of range"].line == 2
    stream = LogStream(spaced)
    assert pl.DataFrame(stream.parse(LOG, growing), schema=FLOW_SCHEMA).equals(flows)
    assert growing == stored
    again = LogStream.restore(spaced, stream.state())
    assert len(again.parse(LOG, growing)) == 1
    assert [capture.path for capture in discover(spaced.parents[1])] == [spaced]


def test_ranks_and_names_are_unique() -> None:
    assert len({source.rank for source in sources()}) == len(sources())
    assert [source.name for source in sources()] == ["tsv", "eve", "json"]
    assert list(log_names())[:2] == ["conn.log.labeled", "conn.log.labeled.gz"]
    assert log_names()["eve.json"] > log_names()["conn.log.gz"]


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.name)
def test_source_survives_anything(source: type[RecordSource]) -> None:
    one = source(Path("log"))
    again = source(Path("log"))
    again.restore(one.state())
    assert again.state() == one.state()
    block = b"\xff\n\n{}\nfree text\n\0\n" + b"x" * (1 << 20) + b"yy\n"
    lines = Lines(block, 1, Path("log"))
    frames = [call() for call in one.plan(lines)]
    assert sum(frame.height for frame in frames) == 0
    assert all(frame.schema == FLOW_SCHEMA for frame in frames)
    assert lines.faults.total_dropped == 5, "every line but the blank one is counted"
    assert not any(map(source.begins, (b"", b"{", b"[]", b"free text")))
