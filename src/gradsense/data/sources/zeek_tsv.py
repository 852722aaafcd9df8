"""Zeek's ASCII format: rows under a header that may change within the file.

The header gives separators, markers and the order of the columns. IoT-23's labelled logs join
their last three columns in one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked_dataclass

from gradsense.data.flows import FLOW_SCHEMA, REQUIRED
from gradsense.data.sources.lines import COLUMNS, Lines, Row, complete, legible, to_flows, typed_row
from gradsense.data.sources.stream import Calls, RecordSource, RowParser
from gradsense.errors import InputError

FIELD_COUNT = "wrong number of fields"
NO_HEADER = "before any #fields header"

#: A header with more columns is no connection log; parsing cost grows with the columns.
MAX_FIELDS = 512

_IDS = ("orig_h", "orig_p", "resp_h", "resp_p")
#: The names that labelled logs give IoT-23's detailed label, the usual one first.
DETAIL_NAMES = ("detailedlabel", "detailed-label", "detailed_label")


def zeek_name(name: str) -> str:
    """A flow column's name in Zeek's own spelling."""
    if name == "detail":
        return DETAIL_NAMES[0]
    return f"id.{name}" if name in _IDS else name


def _flow_name(field_name: str) -> str:
    if field_name in DETAIL_NAMES:
        return "detail"
    return field_name.removeprefix("id.") if field_name.startswith("id.") else field_name


@dataclass(frozen=True)
class ColumnLayout:
    """Where the flow columns are in a line.

    Args:
        columns: one unique name per column of the file; a flow column has its flow name.
        nullable: flow columns in which the unset marker means null.
        compound: the parts of IoT-23's last column, empty where the log has none.
        names: flow column to the log's own name, for messages.
    """

    columns: tuple[str, ...]
    nullable: tuple[str, ...]
    compound: tuple[str, ...]
    names: dict[str, str]


@checked_dataclass(frozen=True)
class Header:
    """The directives in force. ``read`` gives the header after one more ``#`` line."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    separator: str = Field(default="\t", min_length=1, max_length=1)
    unset: str = "-"
    empty: str = "(empty)"
    fields: tuple[str, ...] = Field(default=(), max_length=MAX_FIELDS)

    def read(self, text: str, file: Path, line: int) -> Header:
        """Take in one line that starts with ``#``; unknown directives change nothing.

        Raises:
            InputError: the declared separator is not one ASCII character, or ``#fields`` lists
                more than ``MAX_FIELDS`` columns.
        """
        if text.startswith("#separator"):
            # A new header starts here, so what an earlier one declared is over.
            declared = text[len("#separator") :].removeprefix(" ") or " "
            return Header(separator=_separator(declared, file, line))
        name, _, value = text.partition(self.separator)
        if name == "#unset_field":
            return replace(self, unset=value)
        if name == "#empty_field":
            return replace(self, empty=value)
        if name == "#fields":
            fields = tuple(value.split(self.separator, MAX_FIELDS))
            if len(fields) > MAX_FIELDS:
                raise InputError(
                    f"the header lists more than {MAX_FIELDS} columns",
                    hint="give a conn.log",
                    file=file,
                    line=line,
                    field="#fields",
                )
            return replace(self, fields=fields)
        return self

    @cached_property
    def row_parser(self) -> RowParser | None:
        return tsv_rows(self)

    def missing(self) -> list[str]:
        """Zeek names of the required columns that ``#fields`` does not list."""
        return [zeek_name(n) for n in REQUIRED if zeek_name(n) not in self.fields]

    @cached_property
    def layout(self) -> ColumnLayout | None:
        """None before any ``#fields`` line."""
        if not self.fields:
            return None
        compound = tuple(self.fields[-1].split())
        compound = tuple(map(_flow_name, compound)) if len(compound) > 1 else ()
        columns: list[str] = []
        names: dict[str, str] = {}
        for position, field_name in enumerate(self.fields):
            name = _flow_name(field_name)
            if name in FLOW_SCHEMA and name != "line" and name not in names:
                names[name] = field_name
                columns.append(name)
            else:
                columns.append(f"#{position}")
        nullable = tuple(name for name in names if name not in {"label", "detail"})
        return ColumnLayout(tuple(columns), nullable, compound, names)


def _separator(declared: str, file: Path, line: int) -> str:
    plain = re.sub(r"\\x([0-9a-fA-F]{2})", lambda match: chr(int(match[1], 16)), declared)
    if len(plain) != 1 or not plain.isascii() or plain in "\n\r":
        raise InputError(
            f"the separator {declared!r} is not one ASCII character",
            hint=r"write the log with Zeek's default separator \x09",
            file=file,
            line=line,
            field="#separator",
        )
    return plain


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


class ZeekTsv(RecordSource):
    """Holds the header in force."""

    name: ClassVar = "tsv"
    rank: ClassVar = 0
    logs: ClassVar = ("conn.log.labeled", "conn.log.labeled.gz", "conn.log", "conn.log.gz")
    lasting: ClassVar = False

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.header = Header()

    @classmethod
    def sniff(cls, path: Path, lines: Sequence[bytes]) -> bool:
        return any(line.startswith(b"#fields") for line in lines)

    @property
    def ready(self) -> bool:
        return self.header.layout is not None

    def plan(self, lines: Lines) -> Calls:
        """A call for each run of rows under one header; headers are read here, in file order.

        Raises:
            InputError: the separator is not one character, or a required column is missing.
        """
        calls: Calls = []
        for is_comment, part in lines.runs(b"#"):
            if is_comment:
                self._read_header(part)
            else:
                calls.append(partial(_rows, part, self.header))
        return calls

    def directive(self, comment: Lines) -> bool:
        try:
            self._read_header(comment)
        except InputError as error:
            # Otherwise a required column is missing, for which the lines below will be counted.
            if error.field in {"#separator", "#fields"}:
                self.header = Header()
        return comment.block.startswith(b"#fields")

    def _read_header(self, comment: Lines) -> None:
        """Raises InputError: a separator or a list of columns that cannot be used."""
        if not comment.legible().all():
            return
        text = comment.raw(0).decode()
        self.header = self.header.read(text, self.path, comment.first_line)
        missing = self.header.missing() if text.startswith("#fields") else []
        if missing:
            raise missing_columns(self.path, missing, comment.first_line)

    def row_parser(self) -> RowParser | None:
        return self.header.row_parser

    def state(self) -> dict[str, Any]:
        return {"header": asdict(self.header) | {"fields": list(self.header.fields)}}

    def restore(self, state: dict[str, Any]) -> None:
        self.header = TypeAdapter(Header).validate_python(state["header"])


def _rows(lines: Lines, header: Header) -> pl.DataFrame:
    """Parse lines that stand under one header."""
    layout, missing = header.layout, header.missing()
    if layout is None or missing:
        lines.drop(lines.legible(), NO_HEADER if layout is None else lacking(missing))
        return pl.DataFrame(schema=FLOW_SCHEMA)
    sound = lines.sound()
    good = np.ones(len(lines), np.bool_) if sound else lines.legible()
    flows = _typed_flows(lines.join(good), lines.numbers[good], header, layout)
    if flows is not None:
        return flows
    good = lines.legible() if sound else good
    wrong = good & (_separators(lines, header) != len(layout.columns) - 1)
    lines.drop(wrong, FIELD_COUNT)
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
            lines.fault(FIELD_COUNT, int(numbers[first]), header.fields[-1], text, len(bad))
            cells, numbers = cells.filter(good_rows), numbers[good_rows.to_numpy()]
    return to_flows(cells, numbers, layout.names, lines)


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


def tsv_rows(header: Header) -> RowParser | None:
    """The parser of single lines under ``header``; None where the header gives no flows."""
    layout = header.layout
    if layout is None or header.missing():
        return None
    separator, width = header.separator, len(layout.columns)
    unset, empty = header.unset, header.empty
    parts = len(layout.compound)
    if {*layout.compound} & {*COLUMNS} - {"label", "detail"}:
        return None
    names = (*layout.columns, *layout.compound)
    # A part of the compound column counts before an earlier column of the same name.
    last = {name: place for place, name in enumerate(names)}
    places = tuple(
        (last.get(name), name in layout.nullable, FLOW_SCHEMA[name] == pl.String)
        for name in COLUMNS
    )

    def parse(line: bytes, number: int) -> Row | None:
        text = legible(line)
        if text is None or text.startswith("#"):
            return None
        cells = text.split(separator)
        if len(cells) != width:
            return None
        if parts:
            compound = cells[-1].split("   ")
            if len(compound) != parts:
                return None
            cells += compound
        if "" in cells:  # null to polars in some columns, text in others
            return None
        texts: list[str | None] = []
        for place, nullable, is_text in places:
            cell = None if place is None else cells[place]
            if nullable and (cell == unset or (is_text and cell == empty)):
                cell = None
            texts.append(cell)
        return typed_row(texts, number)

    return parse
