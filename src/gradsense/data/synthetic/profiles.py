"""What the synthetic fleet does: devices, infections and sites, as tables.

Sizes, periods, states and histories follow what Zeek reports for such devices and for the IoT
malware families of IoT-23. Several rows overlap on purpose: a cloud service that is down looks
like a scanned host, a firmware update looks like a download of malware, and a keep-alive looks
like a heartbeat. No classifier can be right about all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

Target = Literal["cloud", "gateway", "neighbour", "ssdp", "mdns", "anyone", "victim"]
Rhythm = Literal["periodic", "steady", "bursts"]


@dataclass(frozen=True)
class Spread:
    """A log-normal quantity: its median, and the standard deviation of its logarithm."""

    median: float
    sigma: float = 0.0


@dataclass(frozen=True)
class Ending:
    """One way in which a connection goes.

    Args:
        weight: relative frequency within the behaviour.
        state: Zeek's conn_state.
        histories: Zeek histories, equally likely.
        seconds, sent, received: duration and payload bytes of both ends. None reads ``-``, as
            Zeek writes it for a connection of a single packet.
        packets, replies: least and most packets of each end beyond those that carry payload.
        header: bytes of IP and transport header a packet.
        service: overrides the behaviour's service; "" for none, as before any payload.
    """

    weight: float
    state: str
    histories: tuple[str, ...]
    seconds: Spread | None
    sent: Spread | None
    received: Spread | None
    packets: tuple[int, int] = (0, 0)
    replies: tuple[int, int] = (0, 0)
    header: int = 52
    service: str | None = None


@dataclass(frozen=True)
class Behaviour:
    """One kind of connection that a host opens again and again.

    Args:
        every: mean seconds between two connections of one device. Infections do not use it:
            a site says which share of its flows they make up.
        ports: destination ports with their weights. Each site shifts the weights.
        source_port: a fixed source port, where the protocol has one.
        detail: IoT-23's detailed label, ``-`` for benign traffic.
    """

    proto: str
    service: str | None
    ports: dict[int, float]
    target: Target
    outcomes: tuple[Ending, ...]
    every: float = 0.0
    rhythm: Rhythm = "periodic"
    source_port: int | None = None
    detail: str = "-"

    @property
    def label(self) -> str:
        return "Benign" if self.detail == "-" else "Malicious"


@dataclass(frozen=True)
class SiteProfile:
    """A network: how many of each device, which share of its flows each infection makes up."""

    name: str
    devices: dict[str, int]
    infections: dict[str, float] = field(default_factory=dict)
    volume: float = 1.0


def syn(weight: float, *, header: int = 60) -> tuple[Ending, Ending]:
    """A TCP connection that nobody answers: one SYN, or the usual three of a kernel."""
    once = Ending(weight * 0.6, "S0", ("S",), None, None, None, (1, 1), header=header, service="")
    again = Spread(3.1, 0.03)
    zero = Spread(0)
    thrice = Ending(
        weight * 0.4, "S0", ("S",), again, zero, zero, (2, 4), header=header, service=""
    )
    return once, thrice


def refused(weight: float) -> Ending:
    zero, soon = Spread(0), Spread(0.08, 0.8)
    return Ending(weight, "REJ", ("Sr",), soon, zero, zero, (1, 2), (1, 2), 50, "")


def tcp_session(
    seconds: Spread, sent: Spread, received: Spread, *, failing: float = 0.02, reset: float = 0.06
) -> tuple[Ending, ...]:
    """A TCP session: mostly closed properly, sometimes reset or left open, or it never began."""
    done = Ending(
        1 - failing - reset - 0.03,
        "SF",
        ("ShADadFf", "ShADadfF", "ShADadFfR", "ShADdaFf"),
        seconds,
        sent,
        received,
        (4, 7),
        (3, 6),
    )
    return (
        done,
        replace(done, weight=reset / 2, state="RSTO", histories=("ShADadR", "ShADadFR")),
        replace(done, weight=reset / 2, state="RSTR", histories=("ShADadfr", "ShADadr")),
        replace(done, weight=0.03, state="S1", histories=("ShADad", "ShAdDa")),
        *syn(failing * 0.8),
        refused(failing * 0.2),
    )


def udp_query(
    seconds: Spread, sent: Spread, received: Spread, *, failing: float = 0.03
) -> tuple[Ending, ...]:
    """A UDP question with its answer, or without one."""
    return (
        Ending(1 - failing, "SF", ("Dd",), seconds, sent, received, header=28),
        Ending(failing / 2, "S0", ("D",), None, None, None, (1, 1), header=66, service=""),
        Ending(failing / 2, "S0", ("D",), Spread(5.0, 0.01), sent, Spread(0), (1, 1), header=28),
    )


def udp_cast(seconds: Spread, sent: Spread, packets: tuple[int, int]) -> tuple[Ending, ...]:
    """UDP to a group: nobody answers on the same connection."""
    return (
        Ending(0.8, "S0", ("D",), seconds, sent, Spread(0), packets, header=28),
        Ending(0.2, "S0", ("D",), None, None, None, (1, 1), header=160),
    )


NTP = Behaviour(
    "udp", "ntp", {123: 1}, "cloud", udp_query(Spread(0.04, 0.5), Spread(48), Spread(48)), 600,
    source_port=123,
)  # fmt: skip
DNS = Behaviour(
    "udp", "dns", {53: 1}, "gateway",
    udp_query(Spread(0.01, 0.9), Spread(64, 0.3), Spread(140, 0.5)), 90, "steady",
)  # fmt: skip
DHCP = Behaviour(
    "udp", "dhcp", {67: 1}, "gateway",
    udp_query(Spread(0.02, 0.8), Spread(300, 0.02), Spread(300, 0.02)), 1800, source_port=68,
)  # fmt: skip
SSDP = Behaviour(
    "udp", None, {1900: 1}, "ssdp", udp_cast(Spread(3.0, 0.05), Spread(690, 0.3), (2, 4)), 300
)
MDNS = Behaviour(
    "udp", "dns", {5353: 1}, "mdns", udp_cast(Spread(30, 1.2), Spread(1200, 0.8), (3, 20)), 400,
    source_port=5353,
)  # fmt: skip
MQTT = Behaviour(
    "tcp", "mqtt", {1883: 2, 8883: 3}, "cloud",
    tcp_session(Spread(900, 0.9), Spread(700, 0.8), Spread(400, 0.8), reset=0.2), 240,
)  # fmt: skip
HTTPS = Behaviour(
    "tcp", "ssl", {443: 1}, "cloud",
    tcp_session(Spread(1.1, 0.9), Spread(1300, 0.5), Spread(4500, 0.6)), 120, "steady",
)  # fmt: skip
UPLOAD = replace(
    HTTPS, outcomes=tcp_session(Spread(12, 0.8), Spread(240_000, 0.9), Spread(5200, 0.5)), every=180
)
REPORT = Behaviour(
    "tcp", "http", {80: 4, 8080: 1}, "cloud",
    tcp_session(Spread(0.4, 0.8), Spread(420, 0.5), Spread(600, 0.8), failing=0.2), 150, "steady",
)  # fmt: skip
FIRMWARE = Behaviour(
    "tcp", "http", {80: 3, 8080: 1}, "cloud",
    tcp_session(Spread(6, 0.9), Spread(230, 0.3), Spread(400_000, 1.2)), 1200, "steady",
)  # fmt: skip
POLL = Behaviour(
    "tcp", "http", {80: 3, 8080: 1, 554: 1}, "neighbour",
    tcp_session(Spread(0.05, 0.8), Spread(180, 0.3), Spread(900, 0.7), failing=0.15), 60,
)  # fmt: skip
KEEPALIVE = Behaviour(
    "tcp", None, {8443: 1, 10001: 1}, "cloud",
    tcp_session(Spread(20, 0.8), Spread(90, 0.5), Spread(60, 0.6), failing=0.05), 200,
)  # fmt: skip
PEERS = Behaviour(  # a camera's peer-to-peer service tries addresses that it was told of
    "tcp", None, {80: 2, 8080: 2, 81: 1, 10001: 2}, "anyone",
    (*syn(0.85), refused(0.15)), 360, "bursts",
)  # fmt: skip
STREAM = Behaviour(
    "udp", None, {10001: 2, 32100: 2, 80: 0.3}, "anyone",
    (
        Ending(0.7, "SF", ("Dd",), Spread(8, 1), Spread(900, 1), Spread(700, 1), (2, 9), (2, 9),
                28),
        Ending(0.3, "S0", ("D",), Spread(2, 1), Spread(300, 0.8), Spread(0), (2, 6), header=28),
    ),
    260, "steady",
)  # fmt: skip

DEVICES: dict[str, tuple[Behaviour, ...]] = {
    "thermostat": (NTP, DNS, DHCP, MQTT, REPORT),
    "camera": (NTP, DNS, DHCP, SSDP, UPLOAD, STREAM, PEERS, FIRMWARE),
    "hub": (NTP, DNS, DHCP, SSDP, MDNS, HTTPS, MQTT, POLL, FIRMWARE),
    "lock": (NTP, DNS, DHCP, MDNS, KEEPALIVE, HTTPS),
}

INFECTIONS: dict[str, Behaviour] = {
    "scan": Behaviour(
        "tcp", None, {23: 6, 2323: 2, 80: 2, 8080: 2, 81: 1, 5555: 1}, "anyone",
        (
            *syn(0.45, header=40),
            *syn(0.39),
            refused(0.12),
            Ending(0.04, "SF", ("ShAFf", "ShADadFf"), Spread(1.5, 0.9), Spread(30, 0.9),
                    Spread(60, 0.9), (3, 5), (2, 4)),
        ),
        rhythm="bursts", detail="PartOfAHorizontalPortScan",
    ),
    "cc": Behaviour(
        "tcp", None, {6667: 2, 4444: 1.5, 48101: 2, 8443: 2}, "victim",
        (
            *tcp_session(Spread(60, 1.2), Spread(240, 0.7), Spread(420, 0.9), failing=0.15,
                         reset=0.4),
            Ending(0.25, "S3", ("ShAdDaf", "ShAdDaft"), Spread(25, 1), Spread(180, 0.6),
                    Spread(900, 0.7), (4, 9), (4, 9)),
        ),
        rhythm="steady", detail="C&C",
    ),
    "heartbeat": Behaviour(
        "tcp", None, {48101: 2, 8443: 3, 4444: 1.5}, "victim",
        tcp_session(Spread(18, 0.8), Spread(60, 0.6), Spread(30, 0.7), failing=0.08, reset=0.1),
        detail="C&C-HeartBeat",
    ),
    "ddos": Behaviour(
        "tcp", None, {80: 4, 443: 2, 53: 1}, "victim",
        (
            Ending(0.40, "S0", ("S",), None, None, None, (1, 1), header=40),
            *syn(0.15),
            Ending(0.15, "S0", ("S",), Spread(0.9, 0.8), Spread(0), Spread(0), (5, 60), header=40),
            Ending(0.22, "OTH", ("C", "A"), None, None, None, (1, 2), header=40),
            Ending(0.08, "RSTRH", ("^r", "Sr"), Spread(0.1, 0.8), Spread(0), Spread(0), (1, 1),
                    (1, 1), 40),
        ),
        rhythm="bursts", detail="DDoS",
    ),
    "download": Behaviour(
        "tcp", "http", {80: 3, 8080: 1, 81: 1}, "victim",
        tcp_session(Spread(2.5, 0.8), Spread(190, 0.25), Spread(140_000, 0.7)),
        rhythm="steady", detail="FileDownload",
    ),
}  # fmt: skip

#: Two sites are clean, none has every infection. Further sites repeat the list.
SITES = (
    SiteProfile("home", {"thermostat": 1, "camera": 1, "hub": 1, "lock": 1}, volume=0.6),
    SiteProfile("flat", {"camera": 3, "hub": 1}, {"scan": 0.35, "cc": 0.10}),
    SiteProfile(
        "office", {"thermostat": 6, "hub": 2, "lock": 4}, {"heartbeat": 0.14, "download": 0.04}
    ),
    SiteProfile("shop", {"camera": 6, "lock": 1}, {"ddos": 0.40, "cc": 0.08}, volume=1.3),
    SiteProfile(
        "warehouse",
        {"camera": 3, "lock": 6, "thermostat": 2},
        {"scan": 0.20, "heartbeat": 0.08, "download": 0.05, "ddos": 0.08},
        volume=1.2,
    ),
    SiteProfile("clinic", {"thermostat": 8, "hub": 2, "camera": 2}, volume=0.9),
)
