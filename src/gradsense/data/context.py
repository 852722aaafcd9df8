"""A short summary of what each host did just before a flow.

One flow of a port scan looks like one failed connection of a healthy device. What tells them
apart are the flows around it, so this module adds a few figures on the originating
host's recent flows (the ``CONTEXT_SCHEMA`` columns) to every flow of a log.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import polars as pl

from gradsense.data.flows import CONTEXT_SCHEMA

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
