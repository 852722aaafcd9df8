"""The words of alerts."""

from __future__ import annotations

import pytest

from gradsense.data.datasets.iot23 import BENIGN, CLASSES, MALICIOUS
from gradsense.gateway.alerting.alert import NOVEL, SEVERITIES, TECHNIQUES
from gradsense.gateway.alerting.grouping import describe

FLOWS = {"device": "10.0.0.2", "peers": 1, "ports": [(80, 3)], "first_ts": 0.0}


def test_the_sentence_names_device_counts_ports_and_span() -> None:
    said = describe(
        "DDoS",
        device="192.168.1.195",
        flows=14394,
        peers=1,
        ports=[(80, 14394)],
        first_ts=1000.0,
        last_ts=1176.75,
    )
    assert said.sentence == (
        "192.168.1.195 sent 14,394 connections to 1 address (port 80) within 3 minutes: "
        "it takes part in a DDoS attack."
    )
    assert (said.severity, said.technique) == ("high", "T1498")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "within 1 second:"),
        (1.5, "within 2 seconds:"),
        (120, "within 120 seconds:"),
        (121, "within 3 minutes:"),
        (7201, "within 3 hours:"),
        (172801, "within 3 days:"),
    ],
)
def test_a_span_is_rounded_up(seconds: float, words: str) -> None:
    assert f" {words}" in describe("DDoS", flows=3, last_ts=seconds, **FLOWS).sentence


def test_peers_may_be_a_lower_bound() -> None:
    said = describe("Okiru", flows=900, last_ts=9.0, more_peers=True, **{**FLOWS, "peers": 256})
    assert "900 connections to at least 256 addresses (" in said.sentence


def test_one_connection_has_no_span() -> None:
    said = describe("DDoS", flows=1, last_ts=0.0, **{**FLOWS, "ports": [(80, 1)]})
    assert said.sentence.startswith("10.0.0.2 sent 1 connection to 1 address (port 80): it ")


@pytest.mark.parametrize(
    ("ports", "words"),
    [
        ([], "addresses within"),
        ([(23, 6), (2323, 4)], "addresses (ports 23, 2323) within"),
        ([(23, 6)], "addresses (ports 23 and others) within"),
    ],
)
def test_ports(ports: list[tuple[int, int]], words: str) -> None:
    said = describe("Okiru", device="d", flows=10, peers=2, ports=ports, first_ts=0.0, last_ts=9.0)
    assert words in said.sentence


@pytest.mark.parametrize("label", [*CLASSES[1:], MALICIOUS, NOVEL])
def test_every_class_has_words_of_its_own(label: str) -> None:
    said = describe(label, flows=3, last_ts=9.0, **FLOWS)
    assert label != BENIGN
    assert not said.title.startswith("Suspicious traffic")
    assert said.severity in SEVERITIES
    assert said.sentence.endswith(".")
    assert said.advice.endswith(".")
    assert said.technique is None or said.technique in TECHNIQUES


def test_an_unknown_class_still_has_words() -> None:
    said = describe("Gafgyt", flows=3, last_ts=9.0, **FLOWS)
    assert said.title == "Suspicious traffic: Gafgyt"
    assert said.sentence.endswith(": it behaves like 'Gafgyt'.")
    assert said.severity == "medium"


def test_what_is_merely_new_is_no_emergency() -> None:
    assert describe(NOVEL, flows=3, last_ts=9.0, **FLOWS).severity == "low"
