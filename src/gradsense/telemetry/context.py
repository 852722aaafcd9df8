"""A short summary of what each host did just before a flow.

One flow of a port scan looks like one failed connection of a healthy device. What tells them
apart is the company that a flow keeps, so this module adds a few figures on the originating
host's recent flows (the ``CONTEXT_SCHEMA`` columns) to every flow of a log.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from gradsense.telemetry.flows import CONTEXT_SCHEMA, FLOW_SCHEMA

#: A summary rests on at most this many earlier flows of the same originating host.
WINDOW = 32
#: A flow further back in the log than this many rows is forgotten. This bounds the memory.
HORIZON = 65_536

#: Zeek's conn_state where nothing shows that a connection was established: no answer (S0),
#: refused (REJ), reset or closed half-open (RSTOS0, RSTRH, SH, SHR), or no SYN seen (OTH).
#: S1 and every later state had a complete handshake.
FAILED_STATES = ("S0", "REJ", "RSTOS0", "RSTRH", "SH", "SHR", "OTH")

_NEEDED = ("ts", "orig_h", "resp_h", "resp_p", "conn_state")
_MEMORY = {name: FLOW_SCHEMA[name] for name in ("ts", "orig_h", "resp_h", "resp_p")} | {
    "row": pl.Int64,
    "failed": pl.Boolean,
    "fresh": pl.Boolean,
}

_Ints = npt.NDArray[np.int64]


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

    The cost of a block is three sorts of it; the memory is at most ``HORIZON`` short rows. Use
    one window for one log, and give it the blocks in order.
    """

    def __init__(self) -> None:
        self._memory = pl.DataFrame(schema=_MEMORY)
        self._seen = 0

    def add(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Returns ``frame`` (the next flows of the log) with the ``CONTEXT_SCHEMA`` columns."""
        known = self._memory.height
        rows = pl.concat([self._memory, self._entries(frame)])

        hosts = _codes(rows, "orig_h")
        order = np.argsort(hosts, kind="stable")  # host by host, each in log order
        slots = np.empty_like(order)
        slots[order] = np.arange(rows.height)
        oldest = _oldest_slots(hosts[order], rows["row"].to_numpy()[order])
        first = oldest[slots]  # of each row: where its recent flows begin, as a slot

        pairs = _matches(_codes(rows, "orig_h", "resp_h"), slots, first)
        # A remembered flow keeps the mark that it got when its own recent flows were all here.
        fresh = np.where(np.arange(rows.height) < known, rows["fresh"].to_numpy(), pairs == 0)
        same_port = _matches(_codes(rows, "orig_h", "resp_p"), slots, first)
        failed = rows["failed"].to_numpy()

        count = slots - first
        start = rows["ts"].to_numpy()
        # Where a host has no earlier flow, ``first`` is the row's own slot and the span is 0.
        span = start - start[order][first]
        new = pl.DataFrame(
            {
                "flows": count,
                "span": span,
                "failed": _window_sums(failed, order, slots, first),
                "fresh": _window_sums(fresh, order, slots, first),
                "same_port": same_port,
            }
        )[known:]
        self._seen += frame.height
        self._remember(rows.with_columns(fresh=pl.Series(fresh, dtype=pl.Boolean)), slots, hosts)
        return frame.hstack(_summary(new))

    def _entries(self, frame: pl.DataFrame) -> pl.DataFrame:
        return frame.select(
            *(pl.col(name).cast(_MEMORY[name]) for name in _NEEDED if name in _MEMORY),
            row=pl.int_range(self._seen, self._seen + frame.height, dtype=pl.Int64),
            failed=pl.col("conn_state").is_in(FAILED_STATES).fill_null(False),
            fresh=pl.lit(False),
        ).with_columns(pl.col("ts").fill_null(float("nan")))

    def _remember(self, rows: pl.DataFrame, slots: _Ints, hosts: _Ints) -> None:
        """Keeps the last ``WINDOW`` flows of each host among the last ``HORIZON`` rows."""
        ends = np.searchsorted(np.sort(hosts), hosts, side="right")
        recent = pl.Series(ends - slots <= WINDOW, dtype=pl.Boolean)
        self._memory = rows.filter(recent & (rows["row"] >= self._seen - HORIZON))


def _codes(rows: pl.DataFrame, *keys: str) -> _Ints:
    """One number per distinct value of the columns ``keys``: where it first stands."""
    row = pl.col("row")
    return rows.select(row.min().over(*keys) - row.min()).to_series().to_numpy()


def _oldest_slots(hosts: _Ints, row: _Ints) -> _Ints:
    """Per slot (rows host by host): the slot where that row's recent flows begin."""
    if not len(row):
        return row
    base = row.min()
    stride = row.max() - base + 1
    keys = hosts * stride + (row - base)
    horizon = np.searchsorted(keys, hosts * stride + np.maximum(row - base - HORIZON, 0))
    oldest: _Ints = np.maximum(np.arange(len(row)) - WINDOW, horizon)
    return oldest


def _matches(codes: _Ints, slots: _Ints, first: _Ints) -> _Ints:
    """How many of each row's recent flows have its code. A code must imply the host.

    Sorted by code and slot, the recent flows with a row's code stand right before that row, so
    a binary search for where they begin counts them.
    """
    stride = len(slots) + 1
    keys = codes * stride + slots
    order = np.argsort(keys)
    counts = np.empty_like(keys)
    begins = np.searchsorted(keys[order], (codes * stride + first)[order])
    counts[order] = np.arange(len(keys)) - begins
    return counts


def _window_sums(flags: npt.NDArray[np.bool_], order: _Ints, slots: _Ints, first: _Ints) -> _Ints:
    """How many of each row's recent flows carry the flag. Whole numbers, hence exact."""
    total = np.concatenate(([0], np.cumsum(flags[order], dtype=np.int64)))
    sums: _Ints = total[slots] - total[first]
    return sums


def _summary(sums: pl.DataFrame) -> pl.DataFrame:
    flows, span = pl.col("flows"), pl.col("span")
    usable = (flows >= 2) & (span > 0) & span.is_finite()
    shares = (
        pl.when(flows > 0).then(pl.col(name) / flows).alias(f"ctx_{name}")
        for name in ("failed", "fresh", "same_port")
    )
    return sums.select(
        flows.alias("ctx_flows"), pl.when(usable).then(flows / span).alias("ctx_rate"), *shares
    ).cast(CONTEXT_SCHEMA)  # type: ignore[arg-type]
