"""Zeek's ASCII format: rows under a header that may change within the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradsense.data.flows import FLOW_SCHEMA
from gradsense.data.sources.cells import CellErrors, complete, to_flows
from gradsense.data.sources.header import ColumnLayout, Header
from gradsense.data.sources.lines import Lines
from gradsense.errors import InputError

FIELD_COUNT = "wrong number of fields"
NO_HEADER = "before any #fields header"


def lacking(missing: Sequence[str]) -> str:
    return f"the log lacks {', '.join(missing)}"


def missing_columns(path: Path, missing: Sequence[str], line: int) -> InputError:
    return InputError(
        lacking(missing),
        hint="give a conn.log that has these columns",
        file=path,
        line=line,
        field=missing[0],
    )


class TsvParser:
    """Takes the blocks of one file in order; holds the header in force."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = Header()

    def plan(self, lines: Lines, faults: CellErrors) -> list[Callable[[], pl.DataFrame]]:
        """The work on one block: a call for each run of rows under one header.

        Headers are read here, in file order; the calls may run later and elsewhere.
        """
        calls: list[Callable[[], pl.DataFrame]] = []
        block, number, begin = lines.block, lines.first_line, 0
        for comment in lines.starting_with(b"#"):
            if comment > begin:
                run = Lines(block[begin:comment], number)
                calls += self.plan_run(run, faults)
                number += len(run)
            begin = block.index(b"\n", comment) + 1
            self.directive(Lines(block[comment:begin], number), faults)
            number += 1
        if not begin:
            calls += self.plan_run(lines, faults)
        elif begin < len(block):
            calls += self.plan_run(Lines(block[begin:], number), faults)
        return calls

    def plan_run(self, run: Lines, faults: CellErrors) -> list[Callable[[], pl.DataFrame]]:
        """The work on lines without a directive among them, under the header in force."""
        return [partial(_rows, run, self.header, faults)]

    def directive(self, comment: Lines, faults: CellErrors) -> None:
        """Take in one line that starts with ``#``.

        Raises:
            InputError: the separator is not one character, or a required column is missing.
        """
        if not comment.legible(faults).all():
            return
        text = comment.raw(0).decode()
        self.header = self.header.read(text, self.path, comment.first_line)
        if text.startswith("#fields"):
            missing = self.header.missing()
            if missing:
                raise missing_columns(self.path, missing, comment.first_line)


def _rows(lines: Lines, header: Header, faults: CellErrors) -> pl.DataFrame:
    """Parse lines that stand under one header."""
    layout = header.layout
    if layout is not None and not header.missing() and lines.sound():
        flows = _typed_flows(lines.block, lines.numbers, header, layout)
        if flows is not None:
            return flows
    good = lines.legible(faults)
    if layout is None:
        lines.drop(good, NO_HEADER, faults)
        return pl.DataFrame(schema=FLOW_SCHEMA)
    if missing := header.missing():
        lines.drop(good, lacking(missing), faults)
        return pl.DataFrame(schema=FLOW_SCHEMA)
    if good.any() and not good.all():
        flows = _typed_flows(lines.join(good), lines.numbers[good], header, layout)
        if flows is not None:
            return flows
    wrong = good & (_separators(lines, header) != len(layout.columns) - 1)
    lines.drop(wrong, FIELD_COUNT, faults)
    good &= ~wrong
    if not good.any():
        return pl.DataFrame(schema=FLOW_SCHEMA)
    data, numbers = lines.join(good), lines.numbers[good]
    cells = _read(data, header, layout, dict.fromkeys(layout.columns, pl.String))
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
    data: bytes, numbers: NDArray[np.int64], header: Header, layout: ColumnLayout
) -> pl.DataFrame | None:
    """The flows in one go; None where any line has a fault or needs a closer look.

    Polars raises at a line with too many fields but fills up one with too few, so that its last
    cell is null. It skips blank lines, or has them null in a required column.
    """
    if data.find(b"\\") >= 0:
        return None
    schema = {name: FLOW_SCHEMA.get(name, pl.String) for name in layout.columns}
    try:
        flows = _read(data, header, layout, schema)
    except pl.exceptions.PolarsError:
        return None
    if flows.height != len(numbers):
        return None
    separators = (len(layout.columns) - 1) * len(numbers)
    if flows[layout.columns[-1]].null_count() and (
        data.count(header.separator.encode()) != separators
    ):
        return None
    if layout.compound:
        flows = _split_compound(flows, layout)
        if not flows["#whole"].all():
            return None
    return complete(flows, numbers)


def _read(
    data: bytes, header: Header, layout: ColumnLayout, schema: dict[str, type[pl.DataType]]
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


def _separators(lines: Lines, header: Header) -> NDArray[np.int64]:
    """How many separators each of the lines holds."""
    found = np.flatnonzero(lines.bytes == ord(header.separator))
    return np.searchsorted(found, lines.ends) - np.searchsorted(found, lines.starts)


def _split_compound(cells: pl.DataFrame, layout: ColumnLayout) -> pl.DataFrame:
    """Split IoT-23's last column, ``tunnel_parents   label   detailed-label``.

    Adds the parts that are flow columns, and ``#whole``: whether the row has all parts. Labels
    come in long runs of the same value, so each run is split once.
    """
    runs = cells[layout.columns[-1]].rle().struct.unnest()
    parts = runs["value"].str.splitn("   ", len(layout.compound)).struct.unnest()
    rows = np.repeat(np.arange(runs.height), runs["len"].to_numpy())
    columns = cells.to_dict()
    for place, name in enumerate(layout.compound):
        if name in FLOW_SCHEMA:
            columns[name] = parts.to_series(place).gather(rows)
    columns["#whole"] = parts.to_series(-1).is_not_null().gather(rows)
    return pl.DataFrame(columns)


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
