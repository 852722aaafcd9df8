"""What a source of records is, and a log as flows: a stored one, or one that grows.

A source is one format of logs: one file in this folder, with one public class that derives from
``RecordSource``. It is found by being there, and serves stored logs as well as growing ones.

A stored log that no source can read is the user's mistake, and an error. A growing log is never
refused: what cannot be read is counted, and a new ``#fields`` header or a JSON record decides what
the lines after it are.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from gradsense.data.flows import FLOW_SCHEMA
from gradsense.data.sources import lines as checks
from gradsense.data.sources.lines import SHOWN_BYTES, Lines, Row, Tally, undecodable
from gradsense.data.sources.logfile import BOM, read_blocks, read_head
from gradsense.discovery import members
from gradsense.errors import InputError

BLOCK_BYTES = 8 << 20
#: One line without its newline, and its number in the file, to a flow, to the reason for which it
#: is dropped, or to None where the block parser has to decide.
RowParser = Callable[[bytes, int], Row | str | None]
#: The work on a block: calls that may run later and in other threads.
Calls = list[Callable[[], pl.DataFrame]]


class RecordSource(ABC):
    """One format of logs. An instance reads the lines of one log, in file order.

    Args:
        path: the log's name in messages.

    Attributes:
        name: in the stored position of a log.
        rank: the lowest rank goes first where two sources would read a log, or a folder holds
            logs of several.
        logs: the names of its logs in a capture's folder, best first.
        opening: bytes with which every record begins.
        lasting: whether the format stays for the whole of a file once a record was found, so
            that blocks are not looked at for other formats.
    """

    name: ClassVar[str]
    rank: ClassVar[int]
    logs: ClassVar[tuple[str, ...]] = ()
    opening: ClassVar[bytes] = b""
    lasting: ClassVar[bool] = True

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    @abstractmethod
    def sniff(cls, path: Path, lines: Sequence[bytes]) -> bool:
        """Whether a stored log that begins with these lines is of this format.

        Raises:
            InputError: it is, but cannot be read.
        """

    @classmethod
    def begins(cls, line: bytes) -> bool:
        """Whether this line of a growing log, which has the opening and is no comment, is surely a
        record of the format."""
        return False

    @property
    def ready(self) -> bool:
        """Whether lines can be read as they are, without a header first."""
        return True

    def directive(self, comment: Lines) -> bool:
        """Take in one line that starts with ``#``; returns whether the format begins there."""
        return False

    @abstractmethod
    def plan(self, lines: Lines) -> Calls:
        """The work on one block; every call gives a frame with ``FLOW_SCHEMA``."""

    @abstractmethod
    def row_parser(self) -> RowParser | None:
        """The parser of single lines as things stand; None where there is none now."""

    def state(self) -> dict[str, Any]:
        """What ``restore`` needs to go on after a restart, JSON values under keys of its own."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Go on from ``state``. Raises ValueError if it is damaged."""


@cache
def sources() -> tuple[type[RecordSource], ...]:
    """All sources, the lowest rank first."""
    found = members(__package__, RecordSource)  # type: ignore[type-abstract]
    return tuple(sorted(found.values(), key=lambda source: source.rank))


def log_names() -> dict[str, int]:
    """File names of a capture's log, best first, to the rank of their source."""
    found: dict[str, int] = {}
    for source in sources():
        for name in source.logs:
            found.setdefault(name, source.rank)
    return found


#: Blocks parsed at the same time; polars holds no lock while it parses.
WORKERS = min(4, os.cpu_count() or 1)
#: Of a growing log, up to so many lines are tried one by one; more are faster in polars.
FEW_LINES = 64

_HINTS = {
    checks.MISSING: "fill the value in or remove the line",
    checks.NOT_A_NUMBER: "write a finite number or remove the line",
    checks.OUT_OF_RANGE: "correct the value or remove the line",
}

_Block = tuple[list[pl.DataFrame], Tally]


def read_log(
    path: Path, *, tally: Tally, strict: bool = False, block_bytes: int = BLOCK_BYTES
) -> Iterator[pl.DataFrame]:
    """Yield the flows of a stored log as frames with exactly ``FLOW_SCHEMA``, in file order.

    Lines and reasons are counted in ``tally``. Blank lines hold no record and are not counted.
    Memory is bounded by a few times ``block_bytes``, whatever the file's size.

    Raises:
        InputError: the file is empty, binary, unreadable, damaged, of no known format or lacks a
            required column; with ``strict`` also at the first malformed line.
    """
    source = _sniffed(path, read_head(path))
    with ThreadPoolExecutor(WORKERS) as pool:
        pending: deque[Future[_Block]] = deque()
        first_line = 1
        for block in read_blocks(path, block_bytes):
            lines = Lines(block.removeprefix(BOM) if first_line == 1 else block, first_line, path)
            pending.append(pool.submit(_run, source.plan(lines), lines.faults))
            first_line += len(lines)
            if len(pending) > WORKERS:
                yield from _counted(pending.popleft().result(), path, tally, strict)
        while pending:
            yield from _counted(pending.popleft().result(), path, tally, strict)


def _run(calls: Calls, faults: Tally) -> _Block:
    return [call() for call in calls], faults


def _counted(block: _Block, path: Path, tally: Tally, strict: bool) -> Iterator[pl.DataFrame]:
    frames, faults = block
    if strict and faults.dropped:
        raise _first_fault(path, faults)
    tally.merge(faults)
    for frame in frames:
        if frame.height:
            tally.read += frame.height
            yield frame


def _first_fault(path: Path, faults: Tally) -> InputError:
    reason, drop = min(faults.dropped.items(), key=lambda item: item[1].line)
    hint = _HINTS.get(reason, "repair or remove the line")
    return InputError(
        f"{reason}: {drop.text!r}",
        hint=f"{hint}, or read without --strict to skip it",
        file=path,
        line=drop.line,
        field=drop.field,
    )


def _sniffed(path: Path, head: bytes) -> RecordSource:
    """The source that reads this log. Raises InputError where there is none."""
    if not head.strip():
        raise InputError("the file is empty", hint="give a Zeek conn.log", file=path)
    lines = head.split(b"\n")
    whole = lines[:-1] or lines
    for source in sources():
        if source.sniff(path, whole):
            return source(path)
    if b"\0" in head or undecodable(b"\n".join(whole)):
        raise InputError(
            "is binary, not a Zeek log",
            hint="give a conn.log as TSV or JSON lines, plain or .gz",
            file=path,
        )
    raise InputError(
        "has neither a #fields header nor JSON lines",
        hint="give the conn.log as Zeek wrote it, with its header lines",
        file=path,
        line=1,
    )


def is_synthetic(path: Path) -> bool:
    """True if a header line starting with ``#synthetic`` marks the log as generated."""
    return any(line.startswith(b"#synthetic") for line in read_head(path).split(b"\n"))


class _StoredStream(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    format: str
    line: int = Field(ge=1)


class LogStream:
    """Parses the blocks of one growing log in order; never raises on what they hold.

    Lines that start with ``#`` are comments in every format, and a source may begin with one.
    Where the source in force is not ready, or may change within a file, other lines are looked
    at for the record of another source. Lines before all that are counted under ``NO_HEADER``,
    and lines under a header without a required column under a reason that names the column.

    Args:
        path: the log's name in the tally.

    >>> ends = b'"id.orig_h":"10.0.0.7","id.orig_p":4097,"id.resp_h":"203.0.113.9","id.resp_p":23'
    >>> line = b'{"ts":1.5,"uid":"C1",' + ends + b',"proto":"tcp","conn_state":"S0"}\\n'
    >>> len(LogStream(Path("conn.log")).parse(line, Tally()))
    1
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.line = 1  # the number of the next line
        self._sources = {source.name: source(path) for source in sources()}
        self._source = next(iter(self._sources.values()))

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
        lines = Lines(block, self.line, self.path)
        frames = [frame for call in self._plan(lines) if (frame := call()).height]
        self.line += len(lines)
        tally.merge(lines.faults)
        flows = pl.concat(frames) if frames else pl.DataFrame(schema=FLOW_SCHEMA)
        tally.read += flows.height
        return flows

    def restart(self) -> None:
        """A new file begins, or the same one again after it was emptied.

        Line numbers begin again at 1. Format and header stay until the file shows otherwise: a
        log that is copied and emptied under its writer goes on without a new header.
        """
        self.line = 1

    def state(self) -> dict[str, Any]:
        """What ``restore`` needs to go on at this place after a restart, as JSON."""
        state: dict[str, Any] = {"format": self._source.name, "line": self.line}
        for source in self._sources.values():
            state |= source.state()
        return state

    @classmethod
    def restore(cls, path: Path, state: dict[str, Any]) -> LogStream:
        """The stream that ``state`` was taken from.

        Raises:
            InputError: ``state`` is not what ``state()`` gives.
        """
        stream = cls(path)
        try:
            known = _StoredStream.model_validate(state)
            if state.keys() != stream.state().keys() or known.format not in stream._sources:
                raise ValueError("other keys or another format")
            for source in stream._sources.values():
                source.restore(state)
        except ValueError as error:
            raise InputError(
                "the stored state of its parser is damaged",
                hint="delete the stored position and read the log again",
                file=path,
            ) from error
        stream.line, stream._source = known.line, stream._sources[known.format]
        return stream

    def _rows(self, block: bytes, tally: Tally) -> list[Row] | None:
        """The flows of few clean lines; None where the block needs the block parser."""
        if self.line == 1 or block.count(b"\n") > FEW_LINES:
            return None
        parse = self._source.row_parser()
        if parse is None:
            return None
        rows: list[Row] = []
        dropped = Tally()
        for number, line in enumerate(block[:-1].split(b"\n"), self.line):
            row = parse(line, number)
            if row is None:
                return None
            if isinstance(row, str):  # most of what Suricata writes are other events than flows
                text = line[:SHOWN_BYTES].decode(errors="replace")
                dropped.add(row, self.path, number, None, text)
            else:
                rows.append(row)
        tally.merge(dropped)
        return rows

    def _plan(self, lines: Lines) -> Calls:
        calls: Calls = []
        for is_comment, part in lines.runs(b"#"):
            if is_comment:
                for source in self._sources.values():
                    if source.directive(part):
                        self._source = source
            else:
                calls += self._plan_run(part)
        return calls

    def _plan_run(self, run: Lines) -> Calls:
        """The work on lines without a comment among them."""
        split, found = self._change(run)
        calls: Calls = []
        if split:
            calls = self._source.plan(run.part(0, split))
            run = run.part(split, len(run))
        self._source = found
        return calls + found.plan(run)

    def _change(self, run: Lines) -> tuple[int, RecordSource]:
        """The first line that begins a source, and that source; 0 and the one in force if none."""
        if not self._source.lasting or run.first_line == 1:
            for index in range(min(1, len(run)) if self._source.ready else len(run)):
                line = run.raw(index)
                for source in self._sources.values():
                    if line.startswith(source.opening) and source.begins(line):
                        return index, source
        return 0, self._source
