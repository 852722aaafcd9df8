"""Labels as written to classes."""

from __future__ import annotations

import polars as pl
import pytest

from gradsense.data.datasets.iot23 import BINARY_CLASSES, CLASSES, class_order, classed

# label, detail, class, binary class
CASES = [
    ("Benign", "-", "Benign", "Benign"),
    ("benign", "-", "Benign", "Benign"),
    ("Benign", "ESET", "Benign", "Benign"),
    ("BENIGN", None, "Benign", "Benign"),
    ("Malicious", "C&C", "C&C", "Malicious"),
    ("malicious", "c&c-heartbeat-attack", "C&C-HeartBeat-Attack", "Malicious"),
    ("Malicious", " DDoS ", "DDoS", "Malicious"),
    ("Malicious", "External-Attack-to-Device", "External-Attack-to-Device", "Malicious"),
    ("Malicious", "-", "Malicious", "Malicious"),
    ("Malicious", None, "Malicious", "Malicious"),
    ("Suspicious", "C&C", "Suspicious", "Suspicious"),
    ("Background", "(empty)", None, None),
    ("(empty)", "(empty)", None, None),
    ("-", "-", None, None),
    ("", "", None, None),
    (None, None, None, None),
]


def frame() -> pl.DataFrame:
    schema = {"label": pl.String, "detail": pl.String}
    return pl.DataFrame([case[:2] for case in CASES], schema=schema, orient="row")


def test_classes() -> None:
    assert classed(frame())["class"].to_list() == [case[2] for case in CASES]
    assert "Malicious" not in CLASSES, "so a flow that says no more than that has no known class"


def test_binary() -> None:
    assert classed(frame(), BINARY_CLASSES)["class"].to_list() == [case[3] for case in CASES]


# label, detail, class where the run names Benign, DDoS, PortScan and Torii-2
OWN = [
    ("benign", "-", "Benign"),
    ("PortScan", None, "PortScan"),
    (" portscan ", "-", "PortScan"),
    ("Malicious", "PORTSCAN", "PortScan"),
    ("Malicious", "ddos", "DDoS"),
    ("ddos", "a flood", "DDoS"),
    ("Torii-2", "(empty)", "Torii-2"),
    ("Malicious", "okiru", "Okiru"),
    ("Other", None, "Other"),
    ("-", "PortScan", None),
]


def test_a_class_that_the_run_names_is_a_class_like_any_other() -> None:
    rows = pl.DataFrame([case[:2] for case in OWN], schema=["label", "detail"], orient="row")
    named = ("Benign", "DDoS", "PortScan", "Torii-2")
    assert classed(rows, named)["class"].to_list() == [case[2] for case in OWN]


def test_columns_stay_and_empty_frames_pass() -> None:
    assert classed(frame()).columns == ["label", "detail", "class"]
    assert classed(frame().clear()).schema["class"] == pl.String


@pytest.mark.parametrize("name", CLASSES[1:])
def test_every_class_maps_to_itself(name: str) -> None:
    row = pl.DataFrame({"label": ["Malicious"], "detail": [name.upper()]})
    assert classed(row)["class"].to_list() == [name]


def test_order_is_fixed() -> None:
    assert CLASSES[0] == "Benign"
    assert len(set(CLASSES)) == len(CLASSES) == 17
    assert class_order("binary") == ("Benign", "Malicious")
