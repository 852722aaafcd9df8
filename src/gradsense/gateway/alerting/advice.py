"""What an alert says to people: how bad, what happened, what to do, which ATT&CK technique.

The classes are those of IoT-23 (doi 10.5281/zenodo.4743746), techniques those of MITRE ATT&CK for
Enterprise, version 14.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradsense.gateway.alerting.alert import Severity

#: The label of flows that resemble nothing the model was trained on.
NOVEL = "Novel"

#: Names of the techniques below.
TECHNIQUES: dict[str, str] = {
    "T1046": "Network Service Discovery",
    "T1071": "Application Layer Protocol",
    "T1105": "Ingress Tool Transfer",
    "T1210": "Exploitation of Remote Services",
    "T1498": "Network Denial of Service",
    "T1584": "Compromise Infrastructure",
}


@dataclass(frozen=True)
class Advice:
    """The words of one alert; see ``edge.alert.Alert`` for the fields."""

    severity: Severity
    title: str
    sentence: str
    advice: str
    technique: str | None


@dataclass(frozen=True)
class _Class:
    severity: Severity
    title: str
    meaning: str  # "it ...", the end of the sentence
    advice: str
    technique: str | None


_ISOLATE = "Take the device off the network"
_CLEAN = (
    f"{_ISOLATE}. Reset it to factory settings, install the newest firmware and set a new "
    "password before it comes back."
)
_BLOCK = f"Block the other address at the router. {_CLEAN}"
_REPLACE = f"{_BLOCK} Replace it if the maker has no update."

_CC = "it behaves as if somebody steers it from outside (command and control)"
_BEAT = "it reports at regular times to a server that steers bots (heartbeat)"

_CLASSES: dict[str, _Class] = {
    "Attack": _Class(
        "high", "Attack on another device", "it tries to break into other devices", _CLEAN, "T1210"
    ),
    "C&C": _Class("high", "Controlled from outside", _CC, _BLOCK, "T1071"),
    "C&C-FileDownload": _Class(
        "critical",
        "Malware is being loaded",
        "it fetches a file from a server that steers bots",
        _BLOCK,
        "T1105",
    ),
    "C&C-HeartBeat": _Class("high", "Controlled from outside", _BEAT, _BLOCK, "T1071"),
    "C&C-HeartBeat-Attack": _Class(
        "critical", "Controlled and attacking", f"{_BEAT} and attacks others", _BLOCK, "T1210"
    ),
    "C&C-HeartBeat-FileDownload": _Class(
        "critical", "Malware is being loaded", f"{_BEAT} and fetches a file there", _BLOCK, "T1105"
    ),
    "C&C-Mirai": _Class(
        "high", "Mirai botnet", "it talks to a server of the Mirai botnet", _BLOCK, "T1071"
    ),
    "C&C-PartOfAHorizontalPortScan": _Class(
        "critical", "Controlled and scanning", f"{_CC} and looks for victims", _BLOCK, "T1046"
    ),
    "C&C-Torii": _Class(
        "critical", "Torii botnet", "it talks to a server of the Torii botnet", _REPLACE, "T1071"
    ),
    "DDoS": _Class("high", "DDoS attack", "it takes part in a DDoS attack", _CLEAN, "T1498"),
    "FileDownload": _Class(
        "critical", "Malware is being loaded", "it fetches a file as malware does", _BLOCK, "T1105"
    ),
    "Okiru": _Class("high", "Okiru botnet", "it acts like a bot of Okiru", _CLEAN, "T1584"),
    "Okiru-Attack": _Class(
        "critical", "Okiru botnet attacks", "it attacks others like a bot of Okiru", _CLEAN, "T1210"
    ),
    "PartOfAHorizontalPortScan": _Class(
        "medium",
        "Port scan",
        "it asks many addresses for the same open port, as bots do to find victims",
        f"If you did not start a scan yourself: {_CLEAN[0].lower()}{_CLEAN[1:]}",
        "T1046",
    ),
    "PartOfAHorizontalPortScan-Attack": _Class(
        "high",
        "Port scan and attack",
        "it looks for open ports and attacks what it finds",
        _CLEAN,
        "T1210",
    ),
    "Torii": _Class("critical", "Torii botnet", "it acts like a bot of Torii", _REPLACE, "T1584"),
    "Malicious": _Class("high", "Malicious traffic", "it behaves like malware", _CLEAN, None),
    NOVEL: _Class(
        "low",
        "Unknown behaviour",
        "the model has never seen traffic like this",
        "Ask what changed: an update, a new app, a new service. If nothing did, watch the device "
        "and look up the other address.",
        None,
    ),
}


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
    known = _CLASSES.get(label) or _Class(
        "medium", f"Suspicious traffic: {label}", f"it behaves like '{label}'", _CLEAN, None
    )
    span = f" {_span(last_ts - first_ts)}" if flows > 1 else ""
    others = f"at least {peers:,} addresses" if more_peers else _count(peers, "address", "es")
    what = f"{device} sent {_count(flows, 'connection')} to {others}{_ports(ports, flows)}{span}"
    return Advice(
        known.severity, known.title, f"{what}: {known.meaning}.", known.advice, known.technique
    )


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
