"""One alert, as tests of the gateway want it, and a sink that keeps what it is sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradsense.gateway.alerting.alert import Alert, Example


def sample(**changes: Any) -> Alert:
    """A DDoS alert; ``changes`` replace its fields."""
    fields: dict[str, Any] = {
        "id": "00112233aabbccdd",
        "state": "open",
        "revision": 0,
        "sensor": "gateway-1",
        "device": "192.168.1.195",
        "label": "DDoS",
        "severity": "high",
        "title": "DDoS attack",
        "sentence": "192.168.1.195 sent 14,394 connections to 1 address (port 80).",
        "advice": "Take the device off the network.",
        "technique": "T1498",
        "first_ts": 1545403816.5,
        "last_ts": 1545403993.25,
        "flows": 14394,
        "peers": 1,
        "ports": ((80, 14394),),
        "probability": 0.98,
        "novelty": None,
        "why": ("no answer", "port 80"),
        "model": "nano-1",
        "example": Example(
            log="conn.log",
            line=9,
            uid="CrDn63WjJEmrWGjqf",
            ts=1545403816.5,
            orig_h="192.168.1.195",
            orig_p=41040,
            resp_h="185.244.25.235",
            resp_p=80,
            proto="tcp",
            service=None,
        ),
    }
    return Alert(**{**fields, **changes})


class Ear:
    """A sink that remembers."""

    name = "ear"

    def __init__(self) -> None:
        self.heard: list[Alert] = []

    def send(self, alerts: Sequence[Alert]) -> None:
        self.heard += alerts

    def close(self) -> None:
        pass
