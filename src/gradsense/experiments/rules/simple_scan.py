"""Zeek's recommended scan policy, the package ``bro-simple-scan`` (ncsa/bro-simple-scan).

Of ``scripts/scan.zeek``: 25 distinct (host, port) of failed connections by a remote scanner, or 20
hosts on one port, or 250 (host, port) by a local one, forgotten after 15 minutes without another;
a scanner that was reported is left alone for an hour. Its darknet thresholds need a list of unused
addresses, which no log has, and are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from gradsense.data.networks import Networks
from gradsense.experiments.device_hours import RaisedAlert
from gradsense.experiments.rules.published import PublishedRule, history, in_order

REMOTE, LOCAL, REMOTE_ONE_PORT = 25, 250, 20
TIMEOUT_S, QUIET_S = 900.0, 3600.0
#: Histories that count, by state: the SYN and its answer, with or without a zero window.
_HISTORIES = {"S0": ("S", "SW"), "REJ": ("Sr", "SWr")}


@dataclass
class _Scanner:
    last: float
    attempts: dict[tuple[str, int | None], int] = field(default_factory=dict)  # to the row
    hosts: dict[int | None, int] = field(default_factory=dict)  # of each port


def raised(flows: pl.DataFrame, networks: Networks) -> list[RaisedAlert]:
    """An alert on the scanner if it is local, else one on each local host that it scanned.

    Its flows are the attempts up to the one that crosses the threshold, each (host, port) once.
    """
    scanners: dict[str, _Scanner] = {}
    quiet: dict[str, float] = {}
    alerts: list[RaisedAlert] = []
    tcp = in_order(flows).filter(pl.col("proto") == "tcp", pl.col("conn_state").is_in(_HISTORIES))
    names = ("row", "end", "orig_h", "resp_h", "resp_p", "conn_state", "history")
    for row, end, orig_h, resp_h, port, state, seen in tcp.select(names).iter_rows():
        past = history(seen)
        if end < quiet.get(orig_h, 0.0) or (past is not None and past not in _HISTORIES[state]):
            continue
        scanner = scanners.get(orig_h)
        if scanner is None or end - scanner.last > TIMEOUT_S:
            scanner = scanners[orig_h] = _Scanner(end)
        scanner.last = end
        if (resp_h, port) in scanner.attempts:
            continue
        scanner.attempts[resp_h, port] = row
        scanner.hosts[port] = scanner.hosts.get(port, 0) + 1
        local = networks.is_local(orig_h)
        if len(scanner.attempts) >= (LOCAL if local else REMOTE) or (
            not local and scanner.hosts[port] >= REMOTE_ONE_PORT
        ):
            alerts += on_devices(orig_h, scanner.attempts, end, networks)
            del scanners[orig_h]
            quiet[orig_h] = end + QUIET_S
    return alerts


def on_devices(
    scanner: str, attempts: dict[tuple[str, int | None], int], end: float, networks: Networks
) -> list[RaisedAlert]:
    """What an operator reads from one notice about a scanner.

    Args:
        attempts: from (host, port) to the row of the flow.
        end: when the threshold was crossed.
    """
    if networks.is_local(scanner):
        return [RaisedAlert(end, scanner, tuple(attempts.values()))]
    rows: dict[str, list[int]] = {}
    for (victim, _), row in attempts.items():
        if networks.is_local(victim):
            rows.setdefault(victim, []).append(row)
    return [RaisedAlert(end, victim, tuple(own)) for victim, own in rows.items()]


RULE = PublishedRule(
    "simple-scan", "Zeek simple-scan", "ncsa/bro-simple-scan, scripts/scan.zeek", raised
)
