"""Whether the rows of a log stand in time order, and how a stored log is read in it.

Zeek writes a connection when it has ended, or when it has been silent for so long that Zeek gives
it up, so the starts in its own log fall back a little all the time. A log whose rows were put
together by class, or by host, falls back by hours, and a figure over "the flows before" then says
which block a row stands in. Row order must not reach a feature, so stored logs are read in time
order, whatever order they are in.

What order cannot show is whether rows are missing. An excerpt that was sorted by time looks like
a whole log that was sorted by time; all that can be said is that Zeek did not write it so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from gradsense.errors import InputError

State = Literal["written", "sorted", "disordered"]

#: Seconds by which an end may come late. Zeek gives a silent TCP connection up after five minutes
#: (``tcp_inactivity_timeout``), which is the longest of its default waits, and looks every few
#: seconds: the eight whole captures of IoT-23 that were measured are late by 300 s at most.
LATE_S = 330.0
#: Seconds by which a start may fall back in a log that was sorted by start.
_APART_S = 1.0
#: A log is out of order if a larger share of its rows is late. A sensor that was restarted, or one
#: with longer timeouts, leaves 0.2 % at most in the logs that were measured.
LATE_SHARE = 0.01
#: Rows that are held to be sorted, some 250 bytes each. A longer log is sorted as it passes.
HELD_ROWS = 1 << 20
_SLICE_ROWS = 1 << 16

#: Seconds of silence after which Zeek writes a TCP connection in each state, from the defaults of
#: ``tcp_attempt_delay``, ``tcp_close_delay`` and ``tcp_reset_delay`` (init-bare.zeek); in any other
#: state it waits for the inactivity timeout.
_TCP_WAITS = {
    **dict.fromkeys(("S0", "SH", "SF"), 5.0),
    **dict.fromkeys(("REJ", "RSTO", "RSTR", "RSTOS0", "RSTRH"), 0.1),
}
_TCP_INACTIVE, _OTHER_INACTIVE = 300.0, 60.0

#: Between rows of one time: the uid is random, so that neither the place in the file nor an
#: address decides. Logs without uids leave it to the ends.
_TIES = ("ts", "uid", "orig_h", "orig_p", "resp_h", "resp_p", "proto", "conn_state")


def written_at() -> pl.Expr:
    """When Zeek would have written a flow, in epoch seconds: its end and the wait for more.

    Training reads flows in this order because a gateway does, which judges each when it is
    written. By start, a long connection would stand among flows of which a gateway has seen
    hundreds by then. In twelve logs as Zeek wrote them, rows stand nearer to their
    place in this order than by start in eleven, in the mean, and than by end in eight.
    """
    tcp = pl.col("conn_state").replace_strict(
        _TCP_WAITS, default=_TCP_INACTIVE, return_dtype=pl.Float64
    )
    wait = pl.when(pl.col("proto") == "tcp").then(tcp).otherwise(_OTHER_INACTIVE)
    return _end() + wait


def _end() -> pl.Expr:
    return pl.col("ts") + pl.col("duration").fill_null(0.0).fill_nan(0.0).clip(0.0)


@dataclass
class TimeOrder:
    """What the order of a log's rows says, counted as the rows pass.

    Attributes:
        rows: of the log.
        ended_late: rows that end more than ``LATE_S`` before a row above them does. Zeek would
            have written them first.
        late: those among them that also start before a row above them does.
    """

    rows: int = 0
    late: int = 0
    ended_late: int = 0
    _start: float = -np.inf
    _last_end: float = -np.inf

    def add(self, flows: pl.DataFrame) -> None:
        """Take in the next rows of the log, in the order of the file."""
        starts, ends = flows.select("ts", _end().alias("end")).to_numpy().T
        latest = np.maximum.accumulate(np.r_[self._start, starts])[1:]
        latest_end = np.maximum.accumulate(np.r_[self._last_end, ends])[1:]
        behind = latest_end - ends > LATE_S
        self.rows += len(starts)
        self.ended_late += int(behind.sum())
        self.late += int((behind & (latest - starts > _APART_S)).sum())
        if len(starts):
            self._start, self._last_end = float(latest[-1]), float(latest_end[-1])

    @property
    def state(self) -> State:
        """``written``: as Zeek writes. ``sorted``: by start, which Zeek does not do.
        ``disordered``: neither, so that "the flows before" means nothing in it.

        A log whose ends span less than ``LATE_S`` is always ``written``: none can be late.
        """
        if self.late > LATE_SHARE * self.rows:
            return "disordered"
        return "sorted" if self.ended_late > LATE_SHARE * self.rows else "written"

    @property
    def share(self) -> float:
        """The share of rows that are late, 0..1."""
        return self.late / self.rows if self.rows else 0.0


def in_time_order(blocks: Iterable[pl.DataFrame], path: Path) -> Iterator[pl.DataFrame]:
    """The flows of a log by ``written_at``, whatever order its rows are in.

    Up to ``HELD_ROWS`` rows are held, so a log of that length comes out the same however its
    rows were permuted. Of a longer one the earlier half of what is held goes out when it is full.

    Args:
        blocks: the log's flows, in the order of the file.
        path: the log's name in the error.

    Raises:
        InputError: rows of a longer log come so late that those after them are out already.
    """
    held: list[pl.DataFrame] = []
    count = passed = missed = 0
    out = -np.inf
    for block in blocks:
        keyed = block.with_columns(written_at().alias("written"))
        missed += int((keyed["written"] < out).sum())
        held.append(keyed)
        count += block.height
        if count < HELD_ROWS:
            continue
        if missed > LATE_SHARE * (passed + count):
            raise InputError(
                f"is out of time order: rows come more than {HELD_ROWS // 2:,} rows late",
                hint="sort its rows by ts first, its header lines in front",
                file=path,
                field="ts",
            )
        ready = _sorted(held)
        half = count // 2
        out = float(ready["written"][half - 1])
        yield from _slices(ready[:half])
        held, count, passed = [ready[half:]], count - half, passed + half
    if held:
        yield from _slices(_sorted(held))


def _sorted(held: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(held).sort("written", *_TIES, maintain_order=True)


def _slices(flows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    return flows.drop("written").iter_slices(_SLICE_ROWS)


def warnings(orders: dict[str, TimeOrder]) -> tuple[str, ...]:
    """What a person should know before they believe a figure over time, one sentence each.

    Args:
        orders: by the name of the capture.
    """
    found = []
    if bad := [name for name, one in orders.items() if one.state == "disordered"]:
        late = max(orders[name].share for name in bad)
        found.append(
            f"rows not in time order: {_named(bad)} (up to {late:.0%} of a log's rows); they are "
            "read by time, but such a log is put together from parts, and what the prompts say of "
            "a host's earlier flows means nothing in it"
        )
    if resorted := [name for name, one in orders.items() if one.state == "sorted"]:
        found.append(
            f"sorted by start, which Zeek does not do: {_named(resorted)}; if these are excerpts, "
            "what the prompts say of a host's earlier flows means little"
        )
    return tuple(found)


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
