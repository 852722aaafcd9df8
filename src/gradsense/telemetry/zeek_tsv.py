"""Zeek's ASCII format: rows under a header that may change within the file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradsense.errors import InputError
from gradsense.telemetry.cells import Faults, to_flows
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
    """Parses blocks of one file in order; holds the header in force."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = Header()

    def parse(self, lines: Lines, faults: Faults) -> Iterator[pl.DataFrame]:
        good = lines.legible(faults)
        comments = np.flatnonzero(good & (lines.bytes[lines.starts] == _HASH))
        good[comments] = False
        begin = 0
        for comment in [*comments.tolist(), len(good)]:
            if comment > begin and good[begin:comment].any():
                yield self._rows(lines, begin, comment, good, faults)
            if comment < len(good):
                self._directive(lines, comment)
            begin = comment + 1

    def _directive(self, lines: Lines, index: int) -> None:
        text = lines.raw(index).decode()
        line = int(lines.numbers[index])
        self.header = self.header.read(text, self.path, line)
        if text.startswith("#fields"):
            missing = self.header.missing()
            if missing:
                raise missing_columns(self.path, missing, line)

    def _rows(
        self, lines: Lines, lo: int, hi: int, good: NDArray[np.bool_], faults: Faults
    ) -> pl.DataFrame:
        """Parse lines ``lo`` to ``hi``, which stand under one header."""
        if self.header.layout is None:
            mask = np.zeros_like(good)
            mask[lo:hi] = good[lo:hi]
            lines.drop(mask, NO_HEADER, faults)
            return pl.DataFrame(schema=FLOW_SCHEMA)
        layout = self.header.layout
        wrong = good[lo:hi] & (self._separators(lines, lo, hi) != len(layout.columns) - 1)
        if wrong.any():
            mask = np.zeros_like(good)
            mask[lo:hi] = wrong
            lines.drop(mask, FIELD_COUNT, faults)
            good = good & ~mask
        numbers = lines.numbers[lo:hi][good[lo:hi]]
        if not len(numbers):
            return pl.DataFrame(schema=FLOW_SCHEMA)
        cells = self._cells(lines.join(lo, hi, good), layout)
        if layout.compound:
            cells, numbers = self._split_compound(cells, numbers, layout, faults)
        return to_flows(cells, numbers, layout.names, faults)

    def _separators(self, lines: Lines, lo: int, hi: int) -> NDArray[np.int64]:
        """How many separators each of the lines ``lo`` to ``hi`` holds."""
        start, end = int(lines.starts[lo]), int(lines.ends[hi - 1])
        found = np.flatnonzero(lines.bytes[start:end] == ord(self.header.separator)) + start
        wanted = len(self.header.fields) - 1
        starts, ends = lines.starts[lo:hi], lines.ends[lo:hi]
        if wanted and len(found) == wanted * (hi - lo):
            # The usual case without a search: if the k-th group of separators lies within the
            # k-th line for every k, then every line holds exactly as many as wanted.
            groups = found.reshape(hi - lo, wanted)
            if ((groups[:, 0] >= starts) & (groups[:, -1] < ends)).all():
                return np.full(hi - lo, wanted)
        return np.searchsorted(found, ends) - np.searchsorted(found, starts)

    def _cells(self, data: bytes, layout: Layout) -> pl.DataFrame:
        """The wanted cells as text; unset and empty ones null, labels as written."""
        cells = pl.read_csv(
            data,
            separator=self.header.separator,
            has_header=False,
            quote_char=None,
            schema=dict.fromkeys(layout.columns, pl.String),
            columns=list(layout.wanted),
            null_values=dict.fromkeys(layout.nullable, self.header.unset),
        )
        empty = self.header.empty
        held = [n for n in layout.nullable if n in cells.columns and (cells[n] == empty).any()]
        if held:
            cells = cells.with_columns(
                pl.when(pl.col(n) != empty).then(pl.col(n)).alias(n) for n in held
            )
        return _unescape(cells) if data.find(b"\\") >= 0 else cells

    def _split_compound(
        self,
        cells: pl.DataFrame,
        numbers: NDArray[np.int64],
        layout: Layout,
        faults: Faults,
    ) -> tuple[pl.DataFrame, NDArray[np.int64]]:
        """Split IoT-23's last column, ``tunnel_parents   label   detailed-label``.

        Its distinct values are few, so they are split once each.
        """
        column = cells[layout.columns[-1]]
        distinct = column.unique(maintain_order=True).drop_nulls()
        parts = distinct.str.splitn("   ", len(layout.compound)).struct.unnest()
        parts.columns = [f"\0{i}" for i in range(len(layout.compound))]
        whole = distinct.filter(parts.to_series(-1).is_not_null())
        good = column.is_in(whole.implode()).fill_null(False)
        if not good.all():
            bad = (~good).arg_true()
            first = int(bad[0])
            faults.add(
                FIELD_COUNT,
                int(numbers[first]),
                self.header.fields[-1],
                str(column[first] or ""),
                len(bad),
            )
            cells, numbers = cells.filter(good), numbers[good.to_numpy()]
            column = cells[layout.columns[-1]]
        places = [(i, name) for i, name in enumerate(layout.compound) if name in FLOW_SCHEMA]
        split = [
            column.replace_strict(distinct, parts.to_series(i), return_dtype=pl.String).alias(name)
            for i, name in places
        ]
        return cells.with_columns(split), numbers


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
