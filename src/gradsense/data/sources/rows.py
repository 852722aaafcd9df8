"""The short way for few lines: one clean line of a log to one flow, without polars.

A block costs polars milliseconds however few lines it has; a line costs this module some
microseconds. It takes no decisions of its own: a line with anything unusual about it gives None,
and the caller hands the whole block to the block parser, which knows and counts every fault.
What is accepted is, value by value, what the block parser gives for that line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from gradsense.data.flows import FLOW_SCHEMA, REQUIRED
from gradsense.data.sources.blocks import MAX_LINE_BYTES
from gradsense.data.sources.cells import MAX_PORT
from gradsense.data.sources.header import DETAIL_NAMES, Header, zeek_name

Value = float | int | str | None
#: One flow: the keys of ``FLOW_SCHEMA`` in its order, unset values None.
Row = dict[str, Value]
#: One line without its newline and its number in the file to a flow, or None.
RowParser = Callable[[bytes, int], Row | None]
_Reader = Callable[[Any], Value]

#: The columns that a line holds, in the order in which ``typed_row`` takes them.
COLUMNS = tuple(name for name in FLOW_SCHEMA if name != "line")

#: Digits that surely fit into 64 bits, and that a float holds without loss.
_INT_DIGITS, _FLOAT_DIGITS = 18, 15
_MAX_INT = 10**_INT_DIGITS
_MAX_FLOAT = 10.0**_FLOAT_DIGITS
_DECIMAL = re.compile(rf"[0-9]{{1,{_FLOAT_DIGITS}}}(?:\.[0-9]{{1,9}})?")
_ISO_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def _integer(text: str) -> int | None:
    if len(text) <= _INT_DIGITS and text.isascii() and text.isdigit():
        return int(text)
    return None


def _port(text: str) -> int | None:
    value = _integer(text)
    return value if value is not None and value <= MAX_PORT else None


def _decimal(text: str) -> float | None:
    return float(text) if _DECIMAL.fullmatch(text) else None


def _text(text: str) -> str | None:
    return text


def _readers(
    port: _Reader, integer: _Reader, decimal: _Reader, text: _Reader
) -> dict[str, _Reader]:
    """For every column, what gives its value, or None for anything unusual."""
    kinds: dict[object, _Reader] = {pl.Int64: integer, pl.Float64: decimal, pl.String: text}
    ports = {"orig_p": port, "resp_p": port}
    return {name: ports.get(name, kinds[FLOW_SCHEMA[name]]) for name in COLUMNS}


_TEXT_READERS = tuple(
    (name, read, name in REQUIRED)
    for name, read in _readers(_port, _integer, _decimal, _text).items()
)


def typed_row(texts: Sequence[str | None], line: int) -> Row | None:
    """A flow from its cells in the order of ``COLUMNS``, unset ones None."""
    row: Row = {}
    for (name, read, required), text in zip(_TEXT_READERS, texts, strict=True):
        value = None if text is None else read(text)
        if value is None and (required or text is not None):
            return None
        row[name] = value
    row["line"] = line
    return row


def legible(line: bytes) -> str | None:
    """The line as text; None where it is too long, escaped or not plain UTF-8 text."""
    if len(line) > MAX_LINE_BYTES or b"\\" in line or b"\0" in line or b"\r" in line:
        return None
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None


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


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _json_text(value: object) -> str | None:
    return value if type(value) is str and value else None


def _json_integer(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < _MAX_INT else None


def _json_port(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= MAX_PORT else None


def _json_number(value: object) -> float | None:
    if type(value) in {int, float} and 0 <= value < _MAX_FLOAT:  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    return None


def _json_time(value: object) -> float | None:
    if type(value) is not str:
        return _json_number(value)
    if not _ISO_TIME.fullmatch(value):
        return None
    try:
        seconds = (datetime.fromisoformat(value) - _EPOCH) // _MICROSECOND / 1e6
    except ValueError:
        return None
    return seconds if seconds >= 0 else None


_JSON_COLUMNS = tuple(
    (name, DETAIL_NAMES if name == "detail" else (zeek_name(name),), read, name in REQUIRED)
    for name, read in (
        _readers(_json_port, _json_integer, _json_number, _json_text) | {"ts": _json_time}
    ).items()
)


def json_row(line: bytes, number: int) -> Row | None:
    """One line of Zeek's JSON format to a flow."""
    record = _object(line)
    if record is None:
        return None
    row: Row = {}
    for name, keys, read, required in _JSON_COLUMNS:
        found = [record[key] for key in keys if key in record]
        given = found[0] if found else None
        value = None if given is None else read(given)
        if len(found) > 1 or (value is None and (required or given is not None)):
            return None
        row[name] = value
    row["line"] = number
    return row


def _object(line: bytes) -> dict[str, object] | None:
    """The line as a JSON object without escapes and without twin keys; objects in it as pairs."""
    text = legible(line)
    if text is None or not text.startswith("{"):
        return None
    try:
        pairs = json.loads(text, object_pairs_hook=list, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    record = dict(pairs)
    return record if len(record) == len(pairs) else None
