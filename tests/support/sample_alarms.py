"""Alarms with made-up flows, and what groups them, with counts that one can follow by hand."""

from __future__ import annotations

from functools import partial

from gradsense.gateway.alerting.alert import Example
from gradsense.gateway.alerting.grouping import Alarm, Grouper

DEVICE, PEER = "192.168.1.5", "203.0.113.9"


def example(line: int, ts: float, device: str) -> Example:
    return Example(
        log="conn.log",
        line=line,
        uid=f"C{line}",
        ts=ts,
        orig_h=device,
        orig_p=40_000,
        resp_h=PEER,
        resp_p=80,
        proto="tcp",
        service=None,
    )


def alarm(
    clock: float,
    *,
    line: int = 1,
    label: str = "DDoS",
    device: str = DEVICE,
    peer: str = PEER,
    port: int = 80,
    prompt: bytes = b"\0\1",
    probability: float = 0.9,
) -> Alarm:
    return Alarm(
        device=device,
        peer=peer,
        label=label,
        clock=clock,
        ts=clock,
        port=port,
        probability=probability,
        novelty=None,
        prompt=prompt,
        example=partial(example, line, clock, device),
    )


def grouper(window_s: float = 300, max_s: float = 86_400) -> Grouper:
    return Grouper(
        "gate", "0" * 16, window_s=window_s, max_s=max_s, explain=lambda prompt: (prompt.hex(),)
    )
