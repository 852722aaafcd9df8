"""Zeek's ASCII format: rows under a header that may change within the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradsense.errors import InputError
from gradsense.telemetry.cells import Faults, complete, to_flows
from gradsense.telemetry.flows import FLOW_SCHEMA
from gradsense.telemetry.header import Header, Layout
from gradsense.telemetry.lines import Lines

FIELD_COUNT = "wrong number of fields"
NO_HEADER = "before any #fields header"

_HASH = 35


def missing_columns(path: Path, missing: Sequence[str], line: int) -> InputError:
    return InputError(
        f"the log lacks {', '.join(missing)}",
        mend="give a conn.log that has these columns",
        file=path,
        line=line,
        field=missing[0],
    )


class TsvParser:
    """Takes the blocks of one file in order; holds the header in force."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = Header()

    def plan(self, lines: Lines, faults: Faults) -> list[Callable[[], pl.DataFrame]]:
        """The work on one block: a call for each run of rows under one header.

        Headers are read here, in file order; the calls may run later and elsewhere.
        """
        good = lines.legible(faults)
        comments = np.flatnonzero(good & (lines.bytes[lines.starts] == _HASH)).tolist()
        good[comments] = False
        calls: list[Callable[[], pl.DataFrame]] = []
        begin = 0
        for comment in [*comments, len(good)]:
            if comment > begin and good[begin:comment].any():
                calls.append(partial(_rows, lines, begin, comment, good, self.header, faults))
            if comment < len(good):
                self._directive(lines, comment)
            begin = comment + 1
        return calls

    def _directive(self, lines: Lines, index: int) -> None:
        text = lines.raw(index).decode()
        line = int(lines.numbers[index])
        self.header = self.header.read(text, self.path, line)
        if text.startswith("#fields"):
            missing = self.header.missing()
            if missing:
                raise missing_columns(self.path, missing, line)


def _rows(  # noqa: PLR0917
    lines: Lines, lo: int, hi: int, good: NDArray[np.bool_], header: Header, faults: Faults
) -> pl.DataFrame:
    """Parse the good ones of lines ``lo`` to ``hi``, which stand under one header."""
    within = np.zeros_like(good)
    within[lo:hi] = good[lo:hi]
    layout = header.layout
    if layout is None:
        lines.drop(within, NO_HEADER, faults)
        return pl.DataFrame(schema=FLOW_SCHEMA)
    data, numbers = lines.join(lo, hi, good), lines.numbers[within]
    flows = _typed_flows(data, numbers, header, layout)
    if flows is not None:
        return flows
    wrong = within.copy()
    wrong[lo:hi] &= _separators(lines, lo, hi, header) != len(layout.columns) - 1
    lines.drop(wrong, FIELD_COUNT, faults)
    within &= ~wrong
    numbers = lines.numbers[within]
    if not len(numbers):
        return pl.DataFrame(schema=FLOW_SCHEMA)
    cells = _read(
        lines.join(lo, hi, within), header, layout, dict.fromkeys(layout.columns, pl.String)
    )
    if data.find(b"\\") >= 0:
        cells = _unescape(cells)
    if layout.compound:
        cells = _split_compound(cells, layout)
        good_rows = cells["#whole"]
        if not good_rows.all():
            bad = (~good_rows).arg_true()
            first = int(bad[0])
            text = str(cells[layout.columns[-1]][first] or "")
            faults.add(FIELD_COUNT, int(numbers[first]), header.fields[-1], text, len(bad))
            cells, numbers = cells.filter(good_rows), numbers[good_rows.to_numpy()]
    return to_flows(cells, numbers, layout.names, faults)


def _typed_flows(
    data: bytes, numbers: NDArray[np.int64], header: Header, layout: Layout
) -> pl.DataFrame | None:
    """The flows in one go; None where any line has a fault or needs a closer look.

    Polars raises at a line with too many fields but fills up one with too few. With the right
    number of separators in all, there is none with too few unless there is one with too many.
    """
    separators = len(layout.columns) - 1
    if data.count(header.separator.encode()) != separators * len(numbers):
        return None
    if data.find(b"\\") >= 0:
        return None
    schema = {name: FLOW_SCHEMA.get(name, pl.String) for name in layout.columns}
    try:
        flows = _read(data, header, layout, schema)
    except pl.exceptions.PolarsError:
        return None
    if flows.height != len(numbers):
        return None
    if layout.compound:
        flows = _split_compound(flows, layout)
        if not flows["#whole"].all():
            return None
    return complete(flows, numbers)


def _read(
    data: bytes, header: Header, layout: Layout, schema: dict[str, type[pl.DataType]]
) -> pl.DataFrame:
    """All cells; unset and empty ones null, labels as written."""
    cells = pl.read_csv(
        data,
        separator=header.separator,
        has_header=False,
        quote_char=None,
        schema=schema,
        null_values=dict.fromkeys(layout.nullable, header.unset),
    )
    texts = [name for name in layout.nullable if schema[name] == pl.String]
    held = [name for name in texts if (cells[name] == header.empty).any()]
    if held:
        cells = cells.with_columns(
            pl.when(pl.col(name) != header.empty).then(pl.col(name)).alias(name) for name in held
        )
    return cells


def _separators(lines: Lines, lo: int, hi: int, header: Header) -> NDArray[np.int64]:
    """How many separators each of the lines ``lo`` to ``hi`` holds."""
    found = np.flatnonzero(lines.bytes == ord(header.separator))
    return np.searchsorted(found, lines.ends[lo:hi]) - np.searchsorted(found, lines.starts[lo:hi])


def _split_compound(cells: pl.DataFrame, layout: Layout) -> pl.DataFrame:
    """Split IoT-23's last column, ``tunnel_parents   label   detailed-label``.

    Adds the parts that are flow columns, and ``#whole``: whether the row has all parts. The
    distinct values are few, so they are split once each.
    """
    column = cells[layout.columns[-1]]
    distinct = column.unique(maintain_order=True).drop_nulls()
    parts = distinct.str.splitn("   ", len(layout.compound)).struct.unnest()
    added = [
        column.replace_strict(
            distinct, parts.to_series(place), default=None, return_dtype=pl.String
        ).alias(name)
        for place, name in enumerate(layout.compound)
        if name in FLOW_SCHEMA
    ]
    last = column.replace_strict(
        distinct, parts.to_series(-1), default=None, return_dtype=pl.String
    )
    return cells.with_columns(*added, last.is_not_null().alias("#whole"))


_ESCAPED = re.compile(rb"\\x([0-9a-fA-F]{2})")


def _unescape(cells: pl.DataFrame) -> pl.DataFrame:
    r"""Undo Zeek's ``\xHH`` for bytes that would break the format; keep what is no UTF-8."""

    def plain(text: str) -> str:
        raw = _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), text.encode())
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return text

    def column(series: pl.Series) -> pl.Series:
        hit = series.str.contains(r"\x", literal=True).fill_null(False)
        if not hit.any():
            return series
        known = series.filter(hit).unique(maintain_order=True)
        new = pl.Series([plain(text) for text in known], dtype=pl.String)
        return series.replace(known, new)

    return cells.with_columns(column(series) for series in cells)
