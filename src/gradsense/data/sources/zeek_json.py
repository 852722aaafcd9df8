"""Zeek's JSON format: one object a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradsense.data.flows import FLOW_SCHEMA
from gradsense.data.sources.cells import CellErrors, to_flows
from gradsense.data.sources.header import DETAIL_NAMES, zeek_name
from gradsense.data.sources.lines import Lines

INVALID_JSON = "invalid JSON"

#: Flow column to the keys that may hold it, the usual one first.
_KEYS: dict[str, tuple[str, ...]] = {
    name: DETAIL_NAMES if name == "detail" else (zeek_name(name),)
    for name in FLOW_SCHEMA
    if name != "line"
}
_NAMES = {name: keys[0] for name, keys in _KEYS.items()}


class JsonParser:
    """Parses blocks of JSON lines; holds no state between blocks."""

    def plan(self, lines: Lines, faults: CellErrors) -> list[Callable[[], pl.DataFrame]]:
        """The work on one block, a call that may run later and elsewhere."""
        return [partial(_rows, lines, faults)]


def _rows(lines: Lines, faults: CellErrors) -> pl.DataFrame:
    good = lines.legible(faults)
    if not good.any():
        return pl.DataFrame(schema=FLOW_SCHEMA)
    cells = _json_cells_fast(lines.join(good), int(good.sum()))
    if cells is None:
        cells, good = _json_cells(lines, good, faults)
    return to_flows(cells, lines.numbers[good], _NAMES, faults)


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
        _not_empty(pl.coalesce(*names)).alias(name) for name, names in _KEYS.items()
    )


def _not_empty(text: pl.Expr) -> pl.Expr:
    return pl.when(text != "").then(text)


def _json_cells(
    lines: Lines, good: NDArray[np.bool_], faults: CellErrors
) -> tuple[pl.DataFrame, NDArray[np.bool_]]:
    """Line by line, for blocks with a fault; also the mask of the lines that are JSON objects."""
    good = good.copy()
    invalid = np.zeros_like(good)
    columns: dict[str, list[str | None]] = {name: [] for name in _KEYS}
    for index in np.flatnonzero(good).tolist():
        raw = lines.raw(index)
        if not raw.strip():
            good[index] = False
            continue
        record = load_json(raw)
        if record is None:
            invalid[index] = True
            continue
        for name, keys in _KEYS.items():
            found = (record[key] for key in keys if record.get(key) is not None)
            columns[name].append(next(found, None) or None)
    lines.drop(invalid, INVALID_JSON, faults)
    return pl.DataFrame(columns, schema=dict.fromkeys(_KEYS, pl.String)), good & ~invalid


def load_json(line: bytes) -> dict[str, str | None] | None:
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
