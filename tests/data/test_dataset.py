"""Discovery, loading, the cap, and contradicting labels."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from gradsense.data.datasets.captures import discover, load
from gradsense.data.datasets.contradictions import contradictions, resolve
from gradsense.data.datasets.inspect import inspect
from gradsense.data.flows import CONTEXT_SCHEMA, FLOW_SCHEMA
from gradsense.data.sources.stream import read_log
from gradsense.errors import InputError
from tests.support.flow_rows import EVENT

FIELDS = "#fields\tts\tid.orig_h\tid.resp_h\tid.resp_p\tproto\tconn_state\tlabel\tdetailedlabel\n"


def log(path: Path, labels: list[tuple[str, str]], head: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        f"{i}.5\t10.0.0.1\t10.0.0.{i % 200}\t80\ttcp\tS0\t{label}\t{detail}\n"
        for i, (label, detail) in enumerate(labels)
    ]
    path.write_text(head + FIELDS + "".join(rows))
    return path


def test_discover(tmp_path: Path) -> None:
    labels = [("Benign", "-")]
    b = log(tmp_path / "b" / "bro" / "conn.log.labeled", labels)
    a = log(tmp_path / "a" / "conn.log.labeled", labels)
    log(tmp_path / "a" / "conn.log", labels)
    deep = log(tmp_path / "z" / "deep" / "b" / "conn.log", labels)
    found = discover(tmp_path)
    assert [(c.name, c.path) for c in found] == [("a", a), ("b", b), ("z/deep/b", deep)]
    assert [(c.name, c.path) for c in discover(tmp_path / "b")] == [("b", b)]
    assert [c.name for c in discover(b)] == ["b"]
    assert [c.name for c in discover(a)] == ["conn.log.labeled"]


def test_a_linked_folder_is_a_capture_and_no_loop_is_endless(tmp_path: Path) -> None:
    labels = [("Benign", "-")]
    log(tmp_path / "far" / "2026" / "bro" / "conn.log.labeled", labels)
    near = log(tmp_path / "captures" / "near" / "conn.log", labels)
    captures = tmp_path / "captures"
    (captures / "porch").symlink_to(tmp_path / "far" / "2026")
    (captures / "again").symlink_to(captures / "near")
    (captures / "near" / "up").symlink_to(captures)
    (captures / "porch" / "round").symlink_to(tmp_path / "far")
    porch = captures / "porch" / "bro" / "conn.log.labeled"
    assert [(c.name, c.path) for c in discover(captures)] == [("near", near), ("porch", porch)]
    (tmp_path / "link").symlink_to(captures)
    assert [c.name for c in discover(tmp_path / "link")] == ["near", "porch"]
    assert load(captures, seed=0).flows["capture"].to_list() == ["near", "porch"]


OWN = [("PortScan", "-"), ("benign", "-"), ("Malicious", "portscan"), ("Malicious", "DDoS")]


def test_classes_that_the_run_names(tmp_path: Path) -> None:
    path = log(tmp_path / "conn.log.labeled", OWN)
    with pytest.raises(InputError, match=r"'PortScan -' is not known.*--labels"):
        load(path, seed=0)
    named = ("Benign", "PortScan", "DDoS", "Okiru")
    data = load(path, seed=0, labels=named)
    assert data.classes == named
    assert data.flows["class"].to_list() == ["PortScan", "Benign", "PortScan", "DDoS"]
    with pytest.raises(InputError, match="'Malicious DDoS' is not known"):
        load(path, seed=0, labels=named[:2])
    rest = load(path, seed=0, labels=named[:2], unknown="drop")
    assert rest.flows["class"].to_list() == ["PortScan", "Benign", "PortScan"]
    assert rest.tally.dropped["unknown label"].line == 5


def test_suricata_is_a_capture_like_any_other(tmp_path: Path) -> None:
    events: list[dict[str, object]] = [
        {**EVENT, "label": "Benign"},
        {"event_type": "dns"},
        {**EVENT, "label": "Malicious", "detailed-label": "DDoS"},
        EVENT,
    ]
    path = tmp_path / "porch" / "eve.json"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert [(c.name, c.path) for c in discover(tmp_path)] == [("porch", path)]
    data = load(tmp_path, seed=0)
    assert data.flows.select("class", "line").rows() == [("Benign", 1), ("DDoS", 3)]
    assert {reason: drop.line for reason, drop in data.tally.dropped.items()} == {
        "another event than a flow": 2,
        "unlabelled": 4,
    }
    assert inspect(tmp_path).classes == {"Benign": 1, "DDoS": 1, "unlabelled": 1}
    zeek = log(path.parent / "bro" / "conn.log", [("Benign", "-")])
    assert [c.path for c in discover(tmp_path)] == [zeek], "Zeek holds more of a connection"


def test_nothing_to_discover(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no captures"):
        discover(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        discover(tmp_path / "nothing")


def test_load_counts_what_has_no_class(tmp_path: Path) -> None:
    labels = [("Malicious", "DDoS"), ("Background", "-"), ("benign", "-"), ("Malicious", "Odd")]
    path = log(tmp_path / "site" / "bro" / "conn.log.labeled", labels, head="#synthetic\tx\n")
    with pytest.raises(InputError, match=f"{path}:6.*'Malicious Odd' is not known"):
        load(tmp_path, seed=0)
    data = load(tmp_path, seed=0, unknown="drop")
    assert data.flows.columns == [*FLOW_SCHEMA, *CONTEXT_SCHEMA, "capture", "class"]
    assert data.flows.select("capture", "class", "line").rows() == [
        ("site", "DDoS", 3),
        ("site", "Benign", 5),
    ]
    assert data.classes == ("Benign", "DDoS")
    assert data.synthetic
    assert data.tally.read == 2
    assert {reason: drop.line for reason, drop in data.tally.dropped.items()} == {
        "unlabelled": 4,
        "unknown label": 6,
    }
    assert load(tmp_path, seed=0, view="binary").classes == ("Benign", "Malicious")


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no labelled flow is left.*'unlabelled'"):
        load(log(tmp_path / "conn.log", [("-", "-")]), seed=0)
    with pytest.raises(InputError, match="headers but no flows"):
        load(log(tmp_path / "conn.log", []), seed=0)


def test_cap_keeps_rare_classes_and_ignores_block_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [("Benign", "-")] * 300 + [("Malicious", "DDoS")] * 20 + [("Malicious", "C&C")] * 3
    for site in ("a", "b"):
        log(tmp_path / site / "conn.log.labeled", labels)
    seen: list[tuple[str, int, int]] = []
    data = load(tmp_path, cap=10, seed=1, on_file=lambda *told: seen.append(told))
    assert seen == [("a", 0, 2), ("b", 1, 2)]
    assert data.capped["a", "Benign"] == (300, 10)
    assert data.capped["b", "C&C"] == (3, 3)
    counts = dict(data.flows["class"].value_counts().iter_rows())
    assert counts == {"Benign": 20, "DDoS": 20, "C&C": 6}
    assert data.flows.sort("capture", "line").equals(data.flows)
    assert read_log.__kwdefaults__ is not None
    monkeypatch.setitem(read_log.__kwdefaults__, "block_bytes", 500)
    assert load(tmp_path, cap=10, seed=1).flows.equals(data.flows)
    other = load(tmp_path, cap=10, seed=2)
    assert not other.flows.equals(data.flows)
    by_site = data.flows.partition_by("capture")
    assert by_site[0]["line"].to_list() != by_site[1]["line"].to_list()
    assert load(tmp_path, cap=0, seed=1).flows.height == 646


def test_the_cap_draws_uniformly(tmp_path: Path) -> None:
    path = log(tmp_path / "conn.log", [("Benign", "-")] * 1000)
    lines = pl.concat([load(path, cap=100, seed=seed).flows["line"] for seed in range(40)])
    # 4,000 draws in ten bins of 400 expected; 5 standard deviations are about 95.
    bins = ((lines - 2) // 100).value_counts()["count"]
    assert bins.len() == 10
    assert bins.min() > 300  # type: ignore[operator]
    assert bins.max() < 500  # type: ignore[operator]


def noisy() -> pl.DataFrame:
    rows = [("x", "Benign")] * 3 + [("x", "DDoS")] * 2 + [("y", "C&C"), ("y", "Benign")]
    return pl.DataFrame([*rows, ("z", "DDoS")], schema=["text", "class"], orient="row")


def test_contradictions_by_hand() -> None:
    report = contradictions(noisy()["text"], noisy()["class"])
    assert (report.texts, report.flows) == (2, 7)
    assert report.pairs == (("Benign", "DDoS", 5), ("Benign", "C&C", 2))
    assert report.to_json()["pairs"][0] == {"classes": ["Benign", "DDoS"], "flows": 5}
    assert contradictions(noisy()["text"], noisy()["text"]).flows == 0


def test_resolve_by_hand() -> None:
    kept, count = resolve(noisy())
    assert kept.equals(noisy())
    assert count == 0
    dropped, count = resolve(noisy(), "drop")
    assert (dropped.rows(), count) == ([("z", "DDoS")], 7)
    major, count = resolve(noisy(), "majority")
    # y is a tie, and goes to the canonically first class.
    assert major["class"].to_list() == ["Benign"] * 7 + ["DDoS"]
    assert count == 3


def test_iot23(iot23: Path) -> None:
    data = load(iot23, seed=0)
    assert len(data.captures) == 19
    assert len(data.classes) == 10
    assert data.tally.read == 80_990
    assert sum(seen for seen, _ in data.capped.values()) == 80_990
    assert data.flows.height == sum(kept for _, kept in data.capped.values())
    assert (data.flows["class"] == "FileDownload").sum() == 3
    assert not data.synthetic


def test_other_networks_need_the_binary_view(zeek_logs: Path) -> None:
    path = zeek_logs / "008-zeek-mixed_conn.log.labeled"
    with pytest.raises(InputError, match="External-Attack-to-Device"):
        load(path, seed=0)
    data = load(path, seed=0, view="binary", cap=0)
    assert dict(data.flows["class"].value_counts().iter_rows()) == {
        "Benign": 1402,
        "Malicious": 4201,
    }
    assert data.tally.dropped["unlabelled"].count == 60
