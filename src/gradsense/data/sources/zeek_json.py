"""Zeek's JSON format: one object a line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradsense.data.flows import FLOW_SCHEMA, REQUIRED
from gradsense.data.sources.lines import (
    COLUMNS,
    FLOAT_DIGITS,
    INT_DIGITS,
    MAX_PORT,
    PORTS,
    Lines,
    Row,
    Value,
    legible,
    to_flows,
)
from gradsense.data.sources.stream import Calls, RecordSource, RowParser
from gradsense.data.sources.zeek_tsv import DETAIL_NAMES, ZeekTsv, missing_columns, zeek_name

INVALID_JSON = "invalid JSON"

#: Flow column to the keys that may hold it, the usual one first.
_KEYS: dict[str, tuple[str, ...]] = {
    name: DETAIL_NAMES if name == "detail" else (zeek_name(name),)
    for name in FLOW_SCHEMA
    if name != "line"
}
_NAMES = {name: keys[0] for name, keys in _KEYS.items()}


_ISO_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_Cells = dict[str, str | None]


class ZeekJson(RecordSource):
    """Holds no state between blocks. The fallback for JSON lines that no other source knows."""

    name: ClassVar = "json"
    rank: ClassVar = 2
    logs: ClassVar = ZeekTsv.logs
    opening: ClassVar = b"{"

    @classmethod
    def sniff(cls, path: Path, lines: Sequence[bytes]) -> bool:
        if not any(line.lstrip().startswith(b"{") for line in lines):
            return False
        # A log whose first records never carry a required key is another log, not a faulty one.
        keys = {key for line in lines for key in load_json(line) or ()}
        missing = [zeek_name(name) for name in REQUIRED if zeek_name(name) not in keys]
        if keys and missing:
            raise missing_columns(path, missing, line=1)
        return True

    @classmethod
    def begins(cls, line: bytes) -> bool:
        record = load_json(line)
        return record is not None and "ts" in record

    def plan(self, lines: Lines) -> Calls:
        return [partial(_rows, lines)]

    def row_parser(self) -> RowParser:
        return json_row


def _rows(lines: Lines) -> pl.DataFrame:
    good = lines.legible()
    if not good.any():
        return pl.DataFrame(schema=FLOW_SCHEMA)
    cells, numbers = _json_cells_fast(lines.join(good), int(good.sum())), lines.numbers[good]
    if cells is None:
        cells, numbers = line_by_line(lines, good, _json_cells)
    return to_flows(cells, numbers, _NAMES, lines)


def _json_cells_fast(data: bytes, rows: int) -> pl.DataFrame | None:
    """All cells as text at once; None where a line needs a closer look."""
    if data.find(b"\\") >= 0 and b"\\u" in data:  # half surrogates would pass unnoticed
        return None
    keys = [key for names in _KEYS.values() for key in names]
    try:
        frame = pl.read_ndjson(data, schema=dict.fromkeys(keys, pl.String))
    except pl.exceptions.PolarsError:
        return None
    if frame.height != rows:
        return None
    return frame.select(
        pl.coalesce(*names).replace("", None).alias(n) for n, names in _KEYS.items()
    )


def _json_cells(line: bytes) -> _Cells | str:
    record = load_json(line)
    if record is None:
        return INVALID_JSON
    found = {
        name: next((record[key] for key in keys if record.get(key) is not None), None)
        for name, keys in _KEYS.items()
    }
    return {name: text or None for name, text in found.items()}


def line_by_line(
    lines: Lines, good: NDArray[np.bool_], read: Callable[[bytes], _Cells | str]
) -> tuple[pl.DataFrame, NDArray[np.int64]]:
    """The cells of the good lines as text columns, and the number of each line that has some.

    Args:
        read: gives a line's cells, or the reason for which it is dropped and counted. Blank lines
            are left out.
    """
    numbers: list[int] = []
    rows: list[_Cells] = []
    reasons: dict[str, NDArray[np.bool_]] = {}
    for index in np.flatnonzero(good).tolist():
        raw = lines.raw(index)
        if not raw.strip():
            continue
        found = read(raw)
        if isinstance(found, str):
            reasons.setdefault(found, np.zeros_like(good))[index] = True
        else:
            numbers.append(lines.first_line + index)
            rows.append(found)
    for reason, mask in reasons.items():
        lines.drop(mask, reason)
    columns = dict.fromkeys(COLUMNS, pl.String)
    return pl.DataFrame(rows, schema=columns, orient="row"), np.array(numbers, np.int64)


def load_json(line: bytes) -> _Cells | None:
    """One object with its values as text, numbers in their shortest form; None if it is none."""
    try:
        record = json.loads(
            line.decode(),
            parse_constant=refuse_constant,
            parse_float=_number_text,
            object_pairs_hook=lambda pairs: dict(reversed(pairs)),  # the first of twins counts
        )
        if not isinstance(record, dict):
            return None
        texts = {key: _value_text(value) for key, value in record.items()}
        "".join(text for text in texts.values() if text).encode()  # refuses half surrogates
        return texts
    except (ValueError, RecursionError):
        return None


def refuse_constant(name: str) -> None:
    """For ``json.loads``: NaN and infinity are no JSON, though Python reads them."""
    raise ValueError(f"{name} is not JSON")


def _number_text(text: str) -> str:
    number = float(text)
    return str(int(number)) if number.is_integer() and abs(number) < 2**63 else repr(number)


def _value_text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)


_FLOATS = {name for name, dtype in FLOW_SCHEMA.items() if dtype == pl.Float64}
#: Numbers that large are left to the block parser.
_LIMITS = (
    {name: 10**INT_DIGITS for name, dtype in FLOW_SCHEMA.items() if dtype == pl.Int64}
    | dict.fromkeys(PORTS, MAX_PORT + 1)
    | dict.fromkeys(_FLOATS, 10**FLOAT_DIGITS)
)


def json_row(line: bytes, number: int) -> Row | None:
    """One line of Zeek's JSON format to a flow; None where a value is missing or unusual."""
    record = _object(line)
    if record is None:
        return None
    row: Row = {}
    for name, keys in _KEYS.items():
        found = [record[key] for key in keys if key in record]
        given = found[0] if found else None
        value = None if given is None else _usual(name, given)
        if len(found) > 1 or (value is None and (name in REQUIRED or given is not None)):
            return None
        row[name] = value
    row["line"] = number
    return row


def _usual(name: str, value: Any) -> Value:
    """A column's value; None where it is of another type, or no usual one."""
    if name not in _LIMITS:
        return value if type(value) is str and value else None
    if name == "ts" and type(value) is str:
        value = _seconds(value)
    whole = type(value) is int
    if not (whole or (type(value) is float and name in _FLOATS)) or not 0 <= value < _LIMITS[name]:
        return None
    return float(value) if name in _FLOATS else value


def _seconds(text: str) -> float | None:
    if not _ISO_TIME.fullmatch(text):
        return None
    try:
        return (datetime.fromisoformat(text) - _EPOCH) // _MICROSECOND / 1e6
    except ValueError:
        return None


def _object(line: bytes) -> dict[str, object] | None:
    """The line as a JSON object without escapes and without twin keys; objects in it as pairs."""
    text = legible(line)
    if text is None or not text.startswith("{"):
        return None
    try:
        pairs = json.loads(text, object_pairs_hook=list, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return None
    record = dict(pairs)
    return record if len(record) == len(pairs) else None
