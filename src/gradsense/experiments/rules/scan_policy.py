"""The scan policy that Zeek shipped before: ``policy/misc/scan.zeek``, in releases up to 6.

Within an epoch of five minutes, failed TCP connections of one scanner to 25 distinct hosts on one
port, or to 15 distinct ports of one host. A notice of a kind is repeated for the same scanner after
an hour (``Notice::default_suppression_interval``).
"""

from __future__ import annotations

import re

import polars as pl

from gradsense.data.networks import Networks
from gradsense.experiments.device_hours import RaisedAlert
from gradsense.experiments.rules.published import PublishedRule, history, in_order
from gradsense.experiments.rules.simple_scan import on_devices

HOSTS, PORTS = 25, 15
EPOCH_S, QUIET_S = 300.0, 3600.0
#: Reset by the scanner after the answer, without data in either direction: a half-open scan. In
#: capitals what the originator sent.
_RESET, _REVERSE_RESET = re.compile(r"h.*R"), re.compile(r"H.*r")


def raised(flows: pl.DataFrame, networks: Networks) -> list[RaisedAlert]:
    """An alert on the scanner if it is local, else one on each local host that it scanned."""
    tcp = in_order(flows).filter(pl.col("proto") == "tcp")
    if not tcp.height:
        return []
    began: float = flows["ts"].min()  # type: ignore[assignment]
    epoch = 0
    seen: dict[tuple[str, str, str | int | None], dict[tuple[str, int | None], int]] = {}
    quiet: dict[tuple[str, str], float] = {}
    alerts: list[RaisedAlert] = []
    names = ("row", "end", "orig_h", "orig_p", "resp_h", "resp_p", "conn_state", "history")
    for row, end, orig_h, orig_p, resp_h, resp_p, state, past in tcp.select(names).iter_rows():
        reverse = scanner_is_responder(state, history(past) or "")
        if reverse is None:
            continue
        scanner, victim, port = (resp_h, orig_h, orig_p) if reverse else (orig_h, resp_h, resp_p)
        if (now := int((end - began) // EPOCH_S)) != epoch:
            epoch, seen = now, {}
        for kind, of, most in (("address", port, HOSTS), ("port", victim, PORTS)):
            attempts = seen.setdefault((kind, scanner, of), {})
            if (victim, port) in attempts:
                continue
            attempts[victim, port] = row
            if len(attempts) == most and end >= quiet.get((kind, scanner), 0.0):
                alerts += on_devices(scanner, attempts, end, networks)
                quiet[kind, scanner] = end + QUIET_S
    return alerts


def scanner_is_responder(state: str | None, past: str) -> bool | None:
    """Whether a connection failed because its responder scans; None if it did not fail.

    Args:
        state: Zeek's ``conn_state``.
        past: Zeek's ``history``; empty if unset.
    """
    if state == "S0":
        return "H" in past
    if state == "REJ":
        return "s" in past
    if not re.search("[Dd]", past):
        if _RESET.search(past):
            return False
        if _REVERSE_RESET.search(past):
            return True
    return None


RULE = PublishedRule(
    "scan-policy", "Zeek misc/scan", "zeek/zeek v6.0, scripts/policy/misc/scan.zeek", raised
)
