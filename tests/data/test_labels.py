"""Labels as written to classes."""

from __future__ import annotations

import polars as pl
import pytest

from gradsense.data.datasets.labels import (
    CLASSES,
    UNKNOWN,
    binary,
    class_order,
    normalise,
    with_view,
)

# label, detail, class, binary class
CASES = [
    ("Benign", "-", "Benign", "Benign"),
    ("benign", "-", "Benign", "Benign"),
    ("Benign", "ESET", "Benign", "Benign"),
    ("BENIGN", None, "Benign", "Benign"),
    ("Malicious", "C&C", "C&C", "Malicious"),
    ("malicious", "c&c-heartbeat-attack", "C&C-HeartBeat-Attack", "Malicious"),
    ("Malicious", " DDoS ", "DDoS", "Malicious"),
    ("Malicious", "External-Attack-to-Device", UNKNOWN, "Malicious"),
    ("Malicious", "-", UNKNOWN, "Malicious"),
    ("Malicious", None, UNKNOWN, "Malicious"),
    ("Suspicious", "C&C", UNKNOWN, UNKNOWN),
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
    assert normalise(frame())["class"].to_list() == [case[2] for case in CASES]
    assert with_view(frame(), "classes").equals(normalise(frame()))


def test_binary() -> None:
    assert binary(frame())["class"].to_list() == [case[3] for case in CASES]
    assert with_view(frame(), "binary").equals(binary(frame()))


def test_columns_stay_and_empty_frames_pass() -> None:
    assert normalise(frame()).columns == ["label", "detail", "class"]
    assert normalise(frame().clear()).schema["class"] == pl.String


@pytest.mark.parametrize("name", CLASSES[1:])
def test_every_class_maps_to_itself(name: str) -> None:
    row = pl.DataFrame({"label": ["Malicious"], "detail": [name.upper()]})
    assert normalise(row)["class"].to_list() == [name]


def test_order_is_fixed() -> None:
    assert CLASSES[0] == "Benign"
    assert len(set(CLASSES)) == len(CLASSES) == 17
    assert class_order("binary") == ("Benign", "Malicious")
