"""What an alert says to people: how bad, what happened, what to do, which ATT&CK technique.

The task has the words of each class (``Task.advice``); the counts are the alert's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradsense.tasks.task import Severity, get_task

#: The label of flows that resemble nothing the model was trained on.
NOVEL = "Novel"

#: Names of the techniques of MITRE ATT&CK for Enterprise, version 14, that tasks refer to.
TECHNIQUES: dict[str, str] = {
    "T1046": "Network Service Discovery",
    "T1071": "Application Layer Protocol",
    "T1105": "Ingress Tool Transfer",
    "T1210": "Exploitation of Remote Services",
    "T1498": "Network Denial of Service",
    "T1584": "Compromise Infrastructure",
}

_TASK = get_task()


@dataclass(frozen=True)
class Advice:
    """The words of one alert; see ``Alert`` for the fields."""

    severity: Severity
    title: str
    sentence: str
    advice: str
    technique: str | None


def describe(
    label: str,
    *,
    device: str,
    flows: int,
    peers: int,
    ports: Sequence[tuple[int, int]],
    first_ts: float,
    last_ts: float,
    more_peers: bool = False,
) -> Advice:
    """The words for an alert so far.

    Args:
        label: a model's class or ``NOVEL``; an unknown one gets general words.
        device: address of the device that it is about.
        flows, peers: connections, and distinct addresses at the other end.
        ports: (responder port, flows), most frequent first; may be shortened.
        first_ts, last_ts: seconds since the epoch.
        more_peers: ``peers`` is a lower bound.
    """
    known = _TASK.novel if label == NOVEL else _TASK.advice.get(label, _TASK.other)
    title, meaning = (text.replace("{label}", label) for text in (known.title, known.meaning))
    span = f" {_span(last_ts - first_ts)}" if flows > 1 else ""
    others = f"at least {peers:,} addresses" if more_peers else _count(peers, "address", "es")
    what = f"{device} sent {_count(flows, 'connection')} to {others}{_ports(ports, flows)}{span}"
    return Advice(known.severity, title, f"{what}: {meaning}.", known.advice, known.technique)


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def _ports(ports: Sequence[tuple[int, int]], flows: int) -> str:
    """For example `` (ports 23, 2323 and others)``."""
    if not ports:
        return ""
    names = ", ".join(str(port) for port, _ in ports)
    others = " and others" if sum(count for _, count in ports) < flows else ""
    return f" (port{'s' if len(ports) > 1 or others else ''} {names}{others})"


def _span(seconds: float) -> str:
    """For example ``within 3 minutes``, rounded up."""
    for unit, size, limit in (
        ("second", 1, 120),
        ("minute", 60, 7_200),
        ("hour", 3_600, 172_800),
    ):
        if seconds <= limit:
            return f"within {_count(max(1, math.ceil(seconds / size)), unit)}"
    return f"within {_count(math.ceil(seconds / 86_400), 'day')}"
