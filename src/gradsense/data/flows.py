"""The flow: one Zeek connection record, as a row of a polars frame, and what preceded it.

Every reader yields frames with exactly these columns, every consumer may rely on them. Names
are Zeek's without the ``id.`` prefix. An unset value (Zeek ``-``) is null.

One flow of a port scan looks like one failed connection of a healthy device. What tells them
apart are the flows around it, so ``ContextWindow`` adds a few figures on the originating host's
recent flows to every flow of a log.
"""

from __future__ import annotations

import math
from collections import deque
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

#: What ``ContextWindow`` adds: a short summary of the originating host's recent flows.
CONTEXT_SCHEMA: dict[str, type[pl.DataType]] = {
    "ctx_flows": pl.Int64,  # how many recent flows the summary rests on, 0 to the window
    "ctx_rate": pl.Float64,  # those flows a second
    "ctx_failed": pl.Float64,  # share of them without an established connection, 0..1
    "ctx_fresh": pl.Float64,  # share of them to a destination host not seen before, 0..1
    "ctx_same_port": pl.Float64,  # share of them to this flow's destination port, 0..1
}

#: A summary rests on at most this many earlier flows of the same originating host.
WINDOW = 32
#: A flow further back in the log than this many rows is forgotten. This bounds the memory.
HORIZON = 65_536

#: Zeek's conn_state where nothing shows that a connection was established: no answer (S0),
#: refused (REJ), reset or closed half-open (RSTOS0, RSTRH, SH, SHR), or no SYN seen (OTH).
#: S1 and every later state had a complete handshake.
FAILED_STATES = ("S0", "REJ", "RSTOS0", "RSTRH", "SH", "SHR", "OTH")

_FAILED = frozenset(FAILED_STATES)
_NEEDED = ("ts", "orig_h", "resp_h", "resp_p", "conn_state")

_Figures = tuple[int, float | None, float | None, float | None, float | None]

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


class ContextWindow:
    """Adds the recent history of its originating host to every flow of a log.

    The recent flows of a flow are the last ``WINDOW`` flows of the same ``orig_h`` that stand
    before it in the log and at most ``HORIZON`` rows back: never the flow itself, never a later
    one. The definition does not mention blocks, so cutting a log into blocks changes nothing.

    - ``ctx_flows``: how many recent flows there are, 0 to ``WINDOW``.
    - ``ctx_rate``: recent flows a second, from the oldest one's start to this flow's start.
      Null with fewer than two recent flows, or where that span is not a positive time.
    - ``ctx_failed``: share of them whose state is in ``FAILED_STATES``. Null without any.
    - ``ctx_fresh``: share of them that went to a destination host which was not among their
      own recent flows. Null without any.
    - ``ctx_same_port``: share of them with this flow's destination port. Null without any.

    A flow costs a few microseconds, alone or in a block; the memory is at most ``HORIZON`` short
    entries. Use one window for one log, and give it the flows in order.
    """

    def __init__(self) -> None:
        # In order of their latest flow, so that hosts beyond the horizon are found at the front.
        self._hosts: dict[str | None, _Host] = {}
        self._seen = 0

    def add(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Returns ``frame`` (the next flows of the log) with the ``CONTEXT_SCHEMA`` columns."""
        columns = (frame[name].to_list() for name in _NEEDED)
        figures = [self._next(*values) for values in zip(*columns, strict=True)]
        return frame.hstack(pl.DataFrame(figures, schema=CONTEXT_SCHEMA, orient="row"))

    def add_row(self, flow: Mapping[str, Any]) -> dict[str, Any]:
        """Returns ``flow``, the next one of the log, with the ``CONTEXT_SCHEMA`` keys."""
        figures = self._next(*(flow[name] for name in _NEEDED))
        return {**flow, **dict(zip(CONTEXT_SCHEMA, figures, strict=True))}

    def _next(
        self,
        ts: float | None,
        orig_h: str | None,
        resp_h: str | None,
        resp_p: int | None,
        state: str | None,
    ) -> _Figures:
        row, horizon = self._seen, self._seen - HORIZON
        self._seen += 1
        hosts = self._hosts
        host = hosts.pop(orig_h, None)
        if host is None:
            host = _Host()
        else:
            host.forget(horizon)
        hosts[orig_h] = host
        start = math.nan if ts is None else ts
        figures = host.figures(start, resp_p)
        host.remember(row, start, resp_h, resp_p, state in _FAILED)
        while (oldest := next(iter(hosts))) != orig_h and hosts[oldest].last_row < horizon:
            del hosts[oldest]
        return figures

    def __len__(self) -> int:
        """Flows in memory."""
        return sum(len(host.flows) for host in self._hosts.values())


class _Host:
    """The recent flows of one host, with running counts over them."""

    __slots__ = ("failed", "flows", "fresh", "last_row", "peers", "ports")

    def __init__(self) -> None:
        # (row, ts, resp_h, resp_p, failed, fresh)
        self.flows: deque[tuple[int, float, str | None, int | None, bool, bool]] = deque()
        self.peers: dict[str | None, int] = {}
        self.ports: dict[int | None, int] = {}
        self.failed = self.fresh = 0
        self.last_row = -1

    def figures(self, ts: float, resp_p: int | None) -> _Figures:
        count = len(self.flows)
        if not count:
            return 0, None, None, None, None
        span = ts - self.flows[0][1]
        rate = count / span if count >= 2 and 0 < span < math.inf else None
        same_port = self.ports.get(resp_p, 0)
        return count, rate, self.failed / count, self.fresh / count, same_port / count

    def remember(
        self, row: int, ts: float, resp_h: str | None, resp_p: int | None, failed: bool
    ) -> None:
        fresh = resp_h not in self.peers
        self.flows.append((row, ts, resp_h, resp_p, failed, fresh))
        self.peers[resp_h] = self.peers.get(resp_h, 0) + 1
        self.ports[resp_p] = self.ports.get(resp_p, 0) + 1
        self.failed += failed
        self.fresh += fresh
        self.last_row = row
        if len(self.flows) > WINDOW:
            self._drop_oldest()

    def forget(self, horizon: int) -> None:
        while self.flows and self.flows[0][0] < horizon:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, _, resp_h, resp_p, failed, fresh = self.flows.popleft()
        _take_one(self.peers, resp_h)
        _take_one(self.ports, resp_p)
        self.failed -= failed
        self.fresh -= fresh


def _take_one(counts: dict[Any, int], key: Any) -> None:
    if counts[key] == 1:
        del counts[key]
    else:
        counts[key] -= 1
