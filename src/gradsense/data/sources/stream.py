"""One growing log, block by block: which format it has, under which header, at which line.

A live log is never turned away. Whatever stands in it is parsed or counted, and reading goes on:
a new ``#fields`` header or a JSON record decides what the lines after it are. This is where it
differs from ``telemetry.zeek``, to which a log without a header is the user's mistake.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gradsense.data.flows import FLOW_SCHEMA
from gradsense.data.sources.blocks import BOM
from gradsense.data.sources.cells import CellErrors
from gradsense.data.sources.header import MAX_FIELDS, Header
from gradsense.data.sources.lines import SHOWN_BYTES, Lines
from gradsense.data.sources.rows import Row, RowParser, json_row, tsv_rows
from gradsense.data.sources.suricata import OTHER_EVENT, EveParser, eve_row, is_other_event
from gradsense.data.sources.zeek_json import JsonParser, load_json
from gradsense.data.sources.zeek_tsv import TsvParser
from gradsense.data.tally import Tally
from gradsense.errors import InputError

#: Up to so many lines are tried one by one; more are faster in polars.
FEW_LINES = 64

Format = Literal["tsv", "json", "eve"]
_Calls = list[Callable[[], pl.DataFrame]]
_JSON_PARSERS: dict[Format, JsonParser | EveParser] = {"json": JsonParser(), "eve": EveParser()}


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    separator: str = Field(min_length=1, max_length=1)
    unset: str
    empty: str
    fields: list[str] = Field(max_length=MAX_FIELDS)


class _State(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Format
    line: int = Field(ge=1)
    header: _Header


class LogStream:
    """Parses the blocks of one growing log in order; never raises on what they hold.

    The format is Zeek TSV, Zeek JSON or Suricata's ``eve.json``, told from the lines themselves:
    a ``#fields`` line begins TSV. Where no header is in force, or at the beginning of a file or
    of a block of TSV, a JSON object with ``event_type`` begins ``eve.json`` and one with ``ts``
    Zeek JSON. Lines before all that are counted under ``NO_HEADER``, and lines under a header
    without a required column under a reason that names the column.

    Args:
        path: the log's name in the tally.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.line = 1  # the number of the next line
        self._parser = _LiveParser(path)
        self._header: Header | None = None  # the one that ``_tsv_row`` was made for
        self._tsv_row: RowParser | None = None

    def parse(self, block: bytes, tally: Tally) -> list[Row] | pl.DataFrame:
        """The flows of the next block of whole lines; lines and reasons are counted in ``tally``.

        Returns:
            For at most ``FEW_LINES`` lines that are all clean a list of rows, which takes
            microseconds; otherwise a frame with ``FLOW_SCHEMA``, which takes milliseconds. Both
            hold the same values and have a length. Blank lines and comments are not counted.
        """
        if self.line == 1:
            block = block.removeprefix(BOM)
        rows = self._rows(block, tally)
        if rows is not None:
            self.line += block.count(b"\n")
            tally.read += len(rows)
            return rows
        lines, faults = Lines(block, self.line), CellErrors()
        frames = [call() for call in self._parser.plan(lines, faults)]
        self.line += len(lines)
        faults.into(tally, self.path)
        frames = [frame for frame in frames if frame.height]
        flows = pl.concat(frames) if frames else pl.DataFrame(schema=FLOW_SCHEMA)
        tally.read += flows.height
        return flows

    def restart(self) -> None:
        """A new file begins, or the same one again after it was emptied.

        Line numbers begin again at 1. Format and header stay until the file says otherwise: a
        log that is copied and emptied under its writer goes on without a new header.
        """
        self.line = 1

    def state(self) -> dict[str, Any]:
        """What ``restore`` needs to go on at this place after a restart, as JSON."""
        header = self._parser.header
        return {
            "format": self._parser.format,
            "line": self.line,
            "header": {
                "separator": header.separator,
                "unset": header.unset,
                "empty": header.empty,
                "fields": list(header.fields),
            },
        }

    @classmethod
    def restore(cls, path: Path, state: dict[str, Any]) -> LogStream:
        """The stream that ``state`` was taken from.

        Raises:
            InputError: ``state`` is not what ``state()`` gives.
        """
        try:
            known = _State.model_validate(state)
        except ValidationError as error:
            raise InputError(
                f"the stored state of its parser is damaged ({error.error_count()} faults)",
                hint="delete the stored position and read the log again",
                file=path,
            ) from error
        stream = cls(path)
        stream.line = known.line
        parser, header = stream._parser, known.header
        parser.format = known.format
        parser.header = Header(header.separator, header.unset, header.empty, tuple(header.fields))
        return stream

    def _rows(self, block: bytes, tally: Tally) -> list[Row] | None:
        """The flows of few clean lines; None where the block needs the block parser."""
        if self.line == 1 or block.count(b"\n") > FEW_LINES:
            return None
        parse = self._row_parser()
        if parse is None:
            return None
        rows: list[Row] = []
        others = CellErrors()
        for number, line in enumerate(block[:-1].split(b"\n"), self.line):
            row = parse(line, number)
            if row is not None:
                rows.append(row)
            elif parse is eve_row and is_other_event(line):  # most of what Suricata writes
                others.add(OTHER_EVENT, number, None, line[:SHOWN_BYTES].decode(errors="replace"))
            else:
                return None
        others.into(tally, self.path)
        return rows

    def _row_parser(self) -> RowParser | None:
        if self._parser.format == "json":
            return json_row
        if self._parser.format == "eve":
            return eve_row
        if self._header is not self._parser.header:
            self._header = self._parser.header
            self._tsv_row = tsv_rows(self._header)
        return self._tsv_row


class _LiveParser(TsvParser):
    """A TSV parser that counts what TsvParser raises, and hands JSON lines to their parsers."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.format: Format = "tsv"

    def directive(self, comment: Lines, faults: CellErrors) -> None:
        try:
            super().directive(comment, faults)
        except InputError as error:
            # Otherwise a required column is missing, for which the lines below will be counted.
            if error.field in {"#separator", "#fields"}:
                self.header = Header()
        if comment.block.startswith(b"#fields"):
            self.format = "tsv"

    def plan_run(self, run: Lines, faults: CellErrors) -> _Calls:
        split, found = self._sniff(run)
        if found is None:
            return self._plan_as(self.format, run, faults)
        calls: _Calls = []
        if split:
            begin = int(run.starts[split])
            calls += self._plan_as(self.format, Lines(run.block[:begin], run.first_line), faults)
            run = Lines(run.block[begin:], run.first_line + split)
        self.format = found
        return calls + self._plan_as(found, run, faults)

    def _plan_as(self, form: Format, run: Lines, faults: CellErrors) -> _Calls:
        if form == "tsv":
            return super().plan_run(run, faults)
        return _JSON_PARSERS[form].plan(run, faults)

    def _sniff(self, run: Lines) -> tuple[int, Format | None]:
        """The first line that tells a format other than the one in force, and that format."""
        if self.format != "tsv" and run.first_line > 1:
            return 0, None
        known = self.format != "tsv" or self.header.layout is not None
        for index in range(min(1, len(run)) if known else len(run)):
            line = run.raw(index)
            record = load_json(line) if line.startswith(b"{") else None
            if record is not None and ("event_type" in record or "ts" in record):
                return index, "eve" if "event_type" in record else "json"
        return 0, None
