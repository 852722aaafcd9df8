"""The lines of a log: numbered, checked, and their text cells cast to typed flows.

A block of lines goes through polars (``to_flows``, ``complete``). A block costs polars milliseconds
however few lines it has, so a single clean line has a short way (``typed_row``), which accepts
nothing unusual and gives, value by value, what polars gives. What is wrong is counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradsense.data.flows import FLOW_SCHEMA, REQUIRED

#: A longer line is no connection record; it is cut here, so that memory stays bounded.
MAX_LINE_BYTES = 1 << 20
#: Examples are cut to this many characters: enough to recognise a line, little to carry about.
EXAMPLE_CHARS = 120
#: So much of a line is decoded for an example of a fault.
SHOWN_BYTES = 480

TOO_LONG = "line too long"
UNDECODABLE = "undecodable bytes"
MISSING = "missing value"
NOT_A_NUMBER = "not a number"
OUT_OF_RANGE = "out of range"

_NEWLINE = 10

Value = float | int | str | None
#: One flow: the keys of ``FLOW_SCHEMA`` in its order, unset values None.
Row = dict[str, Value]

#: The columns that a line holds, in the order in which ``typed_row`` takes them.
COLUMNS = tuple(name for name in FLOW_SCHEMA if name != "line")

#: Digits that surely fit into 64 bits, and that a float holds without loss.
INT_DIGITS, FLOAT_DIGITS = 18, 15
_DECIMAL = re.compile(rf"[0-9]{{1,{FLOAT_DIGITS}}}(?:\.[0-9]{{1,9}})?")

MAX_PORT = 65535
PORTS = ("orig_p", "resp_p")
_ISO_TIME = "%Y-%m-%dT%H:%M:%S%.fZ"


@dataclass(frozen=True)
class Drop:
    """``count`` lines dropped for one reason; the rest is the first of them.

    ``field`` is the column at fault under the log's own name, None where the whole line is.
    """

    count: int
    file: str
    line: int
    field: str | None
    text: str


@dataclass
class Tally:
    """Lines kept (``read``) and lines dropped, by reason."""

    read: int = 0
    dropped: dict[str, Drop] = field(default_factory=dict)

    @property
    def total_dropped(self) -> int:
        return sum(drop.count for drop in self.dropped.values())

    def add(  # noqa: PLR0917
        self, reason: str, file: Path | str, line: int, field: str | None, text: str, count: int = 1
    ) -> None:
        """Count ``count`` lines as dropped for ``reason``; the example is a file's first line."""
        new = Drop(count, str(file), line, field, text[:EXAMPLE_CHARS])
        known = self.dropped.get(reason)
        if known is not None:
            earlier = new.file == known.file and line < known.line
            new = replace(new if earlier else known, count=known.count + count)
        self.dropped[reason] = new

    def merge(self, other: Tally) -> None:
        """Add ``other``'s counts to these; examples already here win."""
        self.read += other.read
        for reason, drop in other.dropped.items():
            known = self.dropped.get(reason)
            count = drop.count + (known.count if known else 0)
            self.dropped[reason] = replace(known or drop, count=count)

    def to_json(self) -> dict[str, Any]:
        """``{"read": n, "dropped": {reason: {count, file, line, field, text}}}``."""
        return {
            "read": self.read,
            "dropped": {reason: vars(drop).copy() for reason, drop in self.dropped.items()},
        }

    def lines(self) -> list[str]:
        """One line for people per reason, most frequent first; empty when nothing was dropped."""
        ordered = sorted(self.dropped.items(), key=lambda item: (-item[1].count, item[0]))
        return [
            f"{drop.count:,} x {reason}, first at {drop.file}:{drop.line}"
            + (f", field '{drop.field}'" if drop.field else "")
            + f": {drop.text!r}"
            for reason, drop in ordered
        ]


class Lines:
    """Lines ``first_line`` and following of the file ``path``; ``block`` ends in a newline.

    Lines are addressed by their index within the block. ``numbers``, ``starts`` and ``ends``
    have shape ``(lines,)``: the file's line number and the line's byte range in ``block``.
    The byte ranges are found only when asked for: a block without faults needs none. ``faults``
    counts what is dropped of the block.
    """

    def __init__(
        self, block: bytes, first_line: int, path: Path, faults: Tally | None = None
    ) -> None:
        if block.find(b"\r") >= 0:
            block = block.replace(b"\r\n", b"\n")
        self.block = block
        self.first_line, self.path = first_line, path
        self.faults = Tally() if faults is None else faults
        self.bytes = np.frombuffer(block, np.uint8)
        self._count = int(np.count_nonzero(self.bytes == _NEWLINE))

    def __len__(self) -> int:
        return self._count

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.bytes == _NEWLINE)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        return np.concatenate(([0], self.ends[:-1] + 1))

    @cached_property
    def numbers(self) -> NDArray[np.int64]:
        return np.arange(self.first_line, self.first_line + len(self))

    def raw(self, index: int) -> bytes:
        return self.block[self.starts[index] : self.ends[index]]

    def sound(self) -> bool:
        """True only if no line is undecodable or too long; blank lines are not looked for."""
        return not (self._holds_garbled() or self._may_hold_too_long())

    def legible(self) -> NDArray[np.bool_]:
        """Which lines are neither blank nor too long nor undecodable; the latter are counted."""
        sizes = self.ends - self.starts
        good = sizes > 0
        too_long = sizes > MAX_LINE_BYTES
        self.drop(too_long, TOO_LONG)
        good &= ~too_long
        if self._holds_garbled():
            garbled = np.zeros_like(good)
            for index in np.flatnonzero(good).tolist():
                line = self.raw(index)
                garbled[index] = b"\0" in line or undecodable(line)
            self.drop(garbled, UNDECODABLE)
            good &= ~garbled
        return good

    def _holds_garbled(self) -> bool:
        return self.block.find(b"\0") >= 0 or undecodable(self.block)

    def _may_hold_too_long(self) -> bool:
        """A line over ``MAX_LINE_BYTES`` fills one of these windows, leaving it no newline."""
        window = MAX_LINE_BYTES // 2
        return any(
            self.block.find(b"\n", begin, begin + window) < 0
            for begin in range(0, len(self.block) - window + 1, window)
        )

    def runs(self, mark: bytes) -> Iterator[tuple[bool, Lines]]:
        """The block cut at the lines that start with the byte ``mark``, which should be rare.

        Yields ``(True, one such line)`` and ``(False, the lines up to the next)``, in order.
        """
        if self.block.find(mark) < 0:
            yield False, self
            return
        done = 0
        for index in np.flatnonzero(self.bytes[self.starts] == ord(mark)).tolist():
            if index > done:
                yield False, self.part(done, index)
            yield True, self.part(index, index + 1)
            done = index + 1
        if done < len(self):
            yield False, self.part(done, len(self))

    def part(self, begin: int, end: int) -> Lines:
        """The lines from index ``begin`` to before ``end``, of which there is one at least."""
        block = self.block[self.starts[begin] : self.ends[end - 1] + 1]
        return Lines(block, self.first_line + begin, self.path, self.faults)

    def fault(self, reason: str, line: int, column: str | None, text: str, count: int = 1) -> None:
        """Count lines of the file as dropped; see ``Tally.add``."""
        self.faults.add(reason, self.path, line, column, text, count)

    def drop(self, mask: NDArray[np.bool_], reason: str) -> None:
        """Count the lines of ``mask`` as dropped for ``reason``."""
        if mask.any():
            index = int(np.flatnonzero(mask)[0])
            text = self.raw(index)[:SHOWN_BYTES].decode(errors="replace")
            self.fault(reason, int(self.numbers[index]), None, text, int(mask.sum()))

    def join(self, good: NDArray[np.bool_]) -> bytes:
        """The bytes of the good lines."""
        if good.all():
            return self.block
        picked = np.flatnonzero(good).tolist()
        return b"".join(self.block[self.starts[i] : self.ends[i] + 1] for i in picked)


def undecodable(data: bytes) -> bool:
    """Whether ``data`` is not UTF-8."""
    if data.isascii():
        return False
    try:
        data.decode()
    except UnicodeDecodeError:
        return True
    return False


def legible(line: bytes) -> str | None:
    """The line as text; None where it is too long, escaped or not plain UTF-8 text."""
    if len(line) > MAX_LINE_BYTES or b"\\" in line or b"\0" in line or b"\r" in line:
        return None
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None


def to_flows(
    cells: pl.DataFrame, numbers: NDArray[np.int64], names: Mapping[str, str], lines: Lines
) -> pl.DataFrame:
    """Cast text cells to ``FLOW_SCHEMA``; rows with a fault are counted and left out.

    Args:
        cells: text columns under flow names, any subset of them, others ignored.
        numbers: the file's line of every row, shape ``(rows,)``.
        names: flow column to the log's own name, for messages.
        lines: that they are from, where faults are counted. A row with several counts once, by
            its first column.
    """
    numeric = [n for n, t in FLOW_SCHEMA.items() if t != pl.String and n in cells.columns]
    cells = cells.with_columns(_unpadded(name) for name in numeric)
    cast = (pl.col(name).cast(FLOW_SCHEMA[name], strict=False) for name in numeric)
    typed = _filled(cells.with_columns(cast), numbers)
    if typed["ts"].null_count() > cells["ts"].null_count():
        typed = typed.with_columns(ts=pl.coalesce(pl.col("ts"), _iso_seconds(cells["ts"])))
    bad = pl.repeat(False, typed.height, dtype=pl.Boolean, eager=True)
    for name, reason, mask in _checks(cells, typed):
        fresh = (mask & ~bad).arg_true()
        if len(fresh):
            row = int(fresh[0])
            text = cells[name][row] or ""
            lines.fault(reason, int(numbers[row]), names.get(name, name), text, len(fresh))
            bad = bad | mask
    return typed.filter(~bad) if bad.any() else typed


def complete(typed: pl.DataFrame, numbers: NDArray[np.int64]) -> pl.DataFrame | None:
    """Columns that were read under their dtypes as flows; None where any value has a fault."""
    flows = _filled(typed, numbers)
    faulty = next(_checks(typed, flows), None)
    return flows if faulty is None else None


def _filled(typed: pl.DataFrame, numbers: NDArray[np.int64]) -> pl.DataFrame:
    """The columns of ``FLOW_SCHEMA``: those of ``typed``, the numbers of the lines, else null."""
    # Series, not expressions: planning a query of twenty columns takes longer than all checks.
    columns = typed.to_dict() | {"line": pl.Series(numbers, dtype=pl.Int64)}
    return pl.DataFrame(
        {
            name: columns[name]
            if name in columns
            else pl.repeat(None, typed.height, dtype=dtype, eager=True)
            for name, dtype in FLOW_SCHEMA.items()
        }
    )


def _unpadded(name: str) -> pl.Expr:
    """Without leading spaces, which polars ignores when it reads CSV under a number's dtype."""
    text = pl.col(name).str.strip_chars_start(" ")
    return pl.when(text != "").then(text).alias(name)


def _iso_seconds(text: pl.Series) -> pl.Series:
    """Zeek's other form of time in JSON, ``2022-09-29T14:00:56.755299Z``, as seconds."""
    return text.str.to_datetime(_ISO_TIME, time_unit="us", strict=False).dt.epoch("us") / 1e6


def _checks(cells: pl.DataFrame, typed: pl.DataFrame) -> Iterator[tuple[str, str, pl.Series]]:
    """``(column, reason, mask of faulty rows)``; nothing at all for a frame without faults.

    Null counts and extremes are cheap, masks are not: a mask is built only where needed.
    """
    for name, dtype in FLOW_SCHEMA.items():
        if name not in cells.columns or name == "line":
            continue
        text, value = cells[name], typed[name]
        if name in REQUIRED and text.null_count():
            yield name, MISSING, text.is_null()
        if dtype == pl.String:
            continue
        if value.null_count() > text.null_count():
            yield name, NOT_A_NUMBER, value.is_null() & text.is_not_null()
        if dtype == pl.Float64 and not math.isfinite(value.sum()):
            yield name, NOT_A_NUMBER, value.is_finite().not_().fill_null(False)
        if (value.min() or 0) < 0:  # type: ignore[operator]
            yield name, OUT_OF_RANGE, (value < 0).fill_null(False)
        if name in PORTS and (value.max() or 0) > MAX_PORT:  # type: ignore[operator]
            yield name, OUT_OF_RANGE, (value > MAX_PORT).fill_null(False)


def _integer(text: str) -> int | None:
    if len(text) <= INT_DIGITS and text.isascii() and text.isdigit():
        return int(text)
    return None


def _port(text: str) -> int | None:
    value = _integer(text)
    return value if value is not None and value <= MAX_PORT else None


def _decimal(text: str) -> float | None:
    return float(text) if _DECIMAL.fullmatch(text) else None


#: Give a column's value, or None for anything unusual.
_READERS: dict[object, Callable[[str], Value]] = {
    pl.Int64: _integer,
    pl.Float64: _decimal,
    pl.String: str,
}
_READER_OF = tuple(
    (name, _port if name in PORTS else _READERS[FLOW_SCHEMA[name]], name in REQUIRED)
    for name in COLUMNS
)


def typed_row(texts: Sequence[str | None], line: int) -> Row | None:
    """One flow from its cells in the order of ``COLUMNS``, unset ones None.

    Returns None where a value is missing or unusual; the block parser then decides and counts.
    """
    row: Row = {}
    for (name, read, required), text in zip(_READER_OF, texts, strict=True):
        value = None if text is None else read(text)
        if value is None and (required or text is not None):
            return None
        row[name] = value
    row["line"] = line
    return row
