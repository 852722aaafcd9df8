"""Text cells to typed flows: casts, ranges, required values, and the count of what is wrong.

A block of lines goes through polars (``to_flows``, ``complete``). A block costs polars milliseconds
however few lines it has, so a single clean line has a short way (``typed_row``), which accepts
nothing unusual and gives, value by value, what polars gives.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradsense.data.flows import FLOW_SCHEMA, REQUIRED
from gradsense.data.tally import EXAMPLE_CHARS, Tally
from gradsense.errors import InputError

MISSING = "missing value"
NOT_A_NUMBER = "not a number"
OUT_OF_RANGE = "out of range"

Value = float | int | str | None
#: One flow: the keys of ``FLOW_SCHEMA`` in its order, unset values None.
Row = dict[str, Value]
#: A column's value, or None for anything unusual.
Reader = Callable[[Any], Value]

#: The columns that a line holds, in the order in which ``typed_row`` takes them.
COLUMNS = tuple(name for name in FLOW_SCHEMA if name != "line")

#: Digits that surely fit into 64 bits, and that a float holds without loss.
INT_DIGITS, FLOAT_DIGITS = 18, 15
_DECIMAL = re.compile(rf"[0-9]{{1,{FLOAT_DIGITS}}}(?:\.[0-9]{{1,9}})?")

MAX_PORT = 65535
_PORTS = ("orig_p", "resp_p")
_ISO_TIME = "%Y-%m-%dT%H:%M:%S%.fZ"
_HINT = {
    MISSING: "fill the value in or remove the line",
    NOT_A_NUMBER: "write a finite number or remove the line",
    OUT_OF_RANGE: "correct the value or remove the line",
}


@dataclass
class CellErrors:
    """The faults of one block, by reason: how many lines, and the first of them."""

    first: dict[str, tuple[int, str | None, str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, reason: str, line: int, column: str | None, text: str, count: int = 1) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + count
        if reason not in self.first or line < self.first[reason][0]:
            self.first[reason] = (line, column, text[:EXAMPLE_CHARS])

    def into(self, tally: Tally, path: Path) -> None:
        for reason, (line, column, text) in sorted(self.first.items(), key=lambda i: i[1][0]):
            tally.add(reason, path, line, column, text, self.counts[reason])

    def raise_first(self, path: Path) -> None:
        """Raise the InputError of the first faulty line, if there is one."""
        if not self.first:
            return
        reason, (line, column, text) = min(self.first.items(), key=lambda item: item[1][0])
        hint = _HINT.get(reason, "repair or remove the line")
        raise InputError(
            f"{reason}: {text!r}",
            hint=f"{hint}, or read without --strict to skip it",
            file=path,
            line=line,
            field=column,
        )


def to_flows(
    cells: pl.DataFrame,
    numbers: NDArray[np.int64],
    names: Mapping[str, str],
    faults: CellErrors,
) -> pl.DataFrame:
    """Cast text cells to ``FLOW_SCHEMA``; rows with a fault are counted and left out.

    Args:
        cells: text columns under flow names, any subset of them, others ignored.
        numbers: the file's line of every row, shape ``(rows,)``.
        names: flow column to the log's own name, for messages.
        faults: where faults are counted. A row with several counts once, by its first column.
    """
    numeric = [n for n, t in FLOW_SCHEMA.items() if t != pl.String and n in cells.columns]
    cells = cells.with_columns(_unpadded(name) for name in numeric)
    typed = cells.select(
        _cast(name, dtype, name in cells.columns)
        for name, dtype in FLOW_SCHEMA.items()
        if name != "line"
    ).with_columns(pl.Series("line", numbers, dtype=pl.Int64))
    if typed["ts"].null_count() > cells["ts"].null_count():
        typed = typed.with_columns(ts=pl.coalesce(pl.col("ts"), _iso_seconds(cells["ts"])))
    bad = pl.repeat(False, typed.height, dtype=pl.Boolean, eager=True)
    found = False
    for name, reason, mask in _checks(cells, typed):
        fresh = (mask & ~bad).arg_true()
        if len(fresh):
            found = True
            row = int(fresh[0])
            text = cells[name][row]
            field_name = names.get(name, name)
            faults.add(reason, int(numbers[row]), field_name, text or "", len(fresh))
            bad = bad | mask
    return typed.filter(~bad) if found else typed


def complete(typed: pl.DataFrame, numbers: NDArray[np.int64]) -> pl.DataFrame | None:
    """Columns that were read under their dtypes as flows; None where any value has a fault."""
    # Series, not expressions: planning a query of twenty columns takes longer than all checks.
    columns = typed.to_dict() | {"line": pl.Series(numbers, dtype=pl.Int64)}
    flows = pl.DataFrame(
        {
            name: columns[name]
            if name in columns
            else pl.repeat(None, typed.height, dtype=dtype, eager=True)
            for name, dtype in FLOW_SCHEMA.items()
        }
    )
    faulty = next(_checks(typed, flows), None)
    return flows if faulty is None else None


def _cast(name: str, dtype: type[pl.DataType], present: bool) -> pl.Expr:
    if not present:
        return pl.lit(None, dtype=dtype).alias(name)
    if dtype == pl.String:
        return pl.col(name)
    return pl.col(name).cast(dtype, strict=False)


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
        if name in _PORTS and (value.max() or 0) > MAX_PORT:  # type: ignore[operator]
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


def _text(text: str) -> str | None:
    return text


def readers(port: Reader, integer: Reader, decimal: Reader, text: Reader) -> dict[str, Reader]:
    """The reader of every column of ``COLUMNS``."""
    kinds: dict[object, Reader] = {pl.Int64: integer, pl.Float64: decimal, pl.String: text}
    ports = {"orig_p": port, "resp_p": port}
    return {name: ports.get(name, kinds[FLOW_SCHEMA[name]]) for name in COLUMNS}


_TEXT_READERS = tuple(
    (name, read, name in REQUIRED)
    for name, read in readers(_port, _integer, _decimal, _text).items()
)


def typed_row(texts: Sequence[str | None], line: int) -> Row | None:
    """One flow from its cells in the order of ``COLUMNS``, unset ones None.

    Returns None where a value is missing or unusual; the block parser then decides and counts.
    """
    row: Row = {}
    for (name, read, required), text in zip(_TEXT_READERS, texts, strict=True):
        value = None if text is None else read(text)
        if value is None and (required or text is not None):
            return None
        row[name] = value
    row["line"] = line
    return row
