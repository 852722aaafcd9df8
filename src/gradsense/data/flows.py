"""The flow: one Zeek connection record, as a row of a polars frame.

Every reader yields frames with exactly these columns, every consumer may rely on them. Names
are Zeek's without the ``id.`` prefix. An unset value (Zeek ``-``) is null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

#: The columns of one connection: name to dtype. Times in seconds, sizes in bytes.
FLOW_SCHEMA: dict[str, type[pl.DataType]] = {
    "ts": pl.Float64,  # start of the connection, seconds since the epoch
    "uid": pl.String,
    "orig_h": pl.String,
    "orig_p": pl.Int64,
    "resp_h": pl.String,
    "resp_p": pl.Int64,
    "proto": pl.String,
    "service": pl.String,
    "duration": pl.Float64,  # seconds
    "orig_bytes": pl.Int64,
    "resp_bytes": pl.Int64,
    "conn_state": pl.String,
    "missed_bytes": pl.Int64,
    "history": pl.String,
    "orig_pkts": pl.Int64,
    "orig_ip_bytes": pl.Int64,
    "resp_pkts": pl.Int64,
    "resp_ip_bytes": pl.Int64,
    "label": pl.String,  # as written in the log; null where the log carries no labels
    "detail": pl.String,  # IoT-23's detailed label, as written
    "line": pl.Int64,  # 1-based line of the file, so that a verdict can be traced back
}

#: Without these a log cannot be read; every other column may be missing and is then null.
REQUIRED = ("ts", "orig_h", "resp_h", "resp_p", "proto", "conn_state")

#: What ``data.context`` adds: a short summary of the originating host's recent flows.
CONTEXT_SCHEMA: dict[str, type[pl.DataType]] = {
    "ctx_flows": pl.Int64,  # how many recent flows the summary rests on, 0 to the window
    "ctx_rate": pl.Float64,  # those flows a second
    "ctx_failed": pl.Float64,  # share of them without an established connection, 0..1
    "ctx_fresh": pl.Float64,  # share of them to a destination host not seen before, 0..1
    "ctx_same_port": pl.Float64,  # share of them to this flow's destination port, 0..1
}

#: Many flows are a frame, few are mappings with the same names: polars costs milliseconds however
#: few there are.
Flows = pl.DataFrame | Sequence[Mapping[str, Any]]


def column(flows: Flows, name: str) -> list[Any]:
    """One column of the flows."""
    if isinstance(flows, pl.DataFrame):
        return flows[name].to_list()
    return [flow[name] for flow in flows]


def row_of(flows: Flows, place: int) -> Mapping[str, Any]:
    """One flow."""
    return flows.row(place, named=True) if isinstance(flows, pl.DataFrame) else flows[place]


def class_numbers(frame: pl.DataFrame, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """The ``class`` of each row as its place in ``classes``, int64 of shape [rows]."""
    places = {name: place for place, name in enumerate(classes)}
    numbers = frame["class"].replace_strict(places, return_dtype=pl.Int64)
    return numbers.to_numpy().astype(np.int64)
