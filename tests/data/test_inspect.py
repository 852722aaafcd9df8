"""The summary of logs, and its command."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from gradsense.cli.app import app
from gradsense.data.datasets.inspect import inspect
from gradsense.errors import InputError

FIELDS = "#fields\tts\tid.orig_h\tid.resp_h\tid.resp_p\tproto\tservice\tconn_state\tlabel\tdetail\n"
ROWS = [
    ("0", "tcp", "-", "Benign", "-"),
    ("60.5", "tcp", "-", "Malicious", "DDoS"),
    ("30", "udp", "dns", "Malicious", "DDoS"),
    ("30", "udp", "dns", "Malicious", "Odd"),
    ("30", "udp", "dns", "-", "-"),
    ("soon", "udp", "dns", "-", "-"),
]


def site(root: Path, name: str) -> Path:
    path = root / name / "bro" / "conn.log.labeled"
    path.parent.mkdir(parents=True)
    rows = [
        f"{ts}\t10.0.0.1\t10.0.0.2\t80\t{proto}\t{service}\tS0\t{label}\t{detail}\n"
        for ts, proto, service, label, detail in ROWS
    ]
    fields = FIELDS.replace("\tdetail\n", "\tdetailedlabel\n")
    path.write_text("#synthetic\tx\n" + fields + "".join(rows))
    return path


def render(frame: pl.DataFrame) -> pl.Series:
    assert "ctx_flows" in frame.columns
    return frame["proto"]


def test_counts_by_hand(tmp_path: Path) -> None:
    for name in ("b", "a"):
        site(tmp_path, name)
    found = inspect(tmp_path, render=render)
    summary = found.to_json()
    json.dumps(summary)
    assert found.rows == 10
    assert (summary["start"], summary["end"]) == (
        "1970-01-01T00:00:00+00:00",
        "1970-01-01T00:01:00+00:00",
    )
    classes = {"Benign": 1, "DDoS": 2, "Malicious Odd": 1, "unlabelled": 1}
    assert [capture.name for capture in found.captures] == ["a", "b"]
    assert found.captures[0].classes == classes
    assert summary["classes"] == {name: 2 * count for name, count in classes.items()}
    assert summary["protocols"] == {"udp": 6, "tcp": 4}
    assert summary["services"] == {"dns": 6}
    assert summary["unlabelled"] == 2
    assert summary["synthetic"]
    assert summary["tally"]["dropped"]["not a number"]["count"] == 2
    assert summary["duplicates"] == {
        "distinct_texts": 2,
        "duplicate_flows": 8,
        "duplicate_share": 0.8,
        "contradictions": {
            "texts": 1,
            "flows": 4,
            "pairs": [{"classes": ["Benign", "DDoS"], "flows": 4}],
        },
    }


def test_without_render_and_strict(tmp_path: Path) -> None:
    path = site(tmp_path, "a")
    assert inspect(path).duplicates is None
    with pytest.raises(InputError, match=f"{path}:8"):
        inspect(path, strict=True)


def test_no_flows(tmp_path: Path) -> None:
    path = tmp_path / "conn.log"
    path.write_text(FIELDS)
    summary = inspect(path, render=render).to_json()
    assert (summary["rows"], summary["start"]) == (0, None)
    assert summary["duplicates"]["duplicate_share"] == 0


def test_iot23(iot23: Path) -> None:
    found = inspect(iot23, strict=True)
    assert found.rows == 80_990
    assert found.classes["Benign"] == 36_941 + 1_956
    assert found.classes["C&C"] == 21_257
    assert len(found.captures) == 19


def test_unlabelled_json(zeek_logs: Path) -> None:
    assert inspect(zeek_logs / "home_conn.json.log").classes == {"unlabelled": 1000}


def test_command(tmp_path: Path) -> None:
    site(tmp_path, "house")
    runner = CliRunner()
    told = runner.invoke(app, ["data", "inspect", str(tmp_path), "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["rows"] == 5
    shown = runner.invoke(app, ["data", "inspect", str(tmp_path)])
    assert shown.exit_code == 0
    assert "house" in shown.stdout
    assert "not a number" in shown.stdout
    assert "Example" in runner.invoke(app, ["data", "inspect", "--help"]).stdout


def test_a_log_in_blocks_by_class_is_told(tmp_path: Path) -> None:
    day = [60.0 * minute for minute in range(1440)]
    for name, times in (("blocks", day[::2] + day[1::2]), ("day", day)):
        path = tmp_path / name / "conn.log.labeled"
        path.parent.mkdir()
        rows = [f"{ts}\t10.0.0.1\t10.0.0.2\t80\ttcp\t-\tS0\tBenign\t-\n" for ts in times]
        path.write_text(FIELDS.replace("\tdetail\n", "\tdetailedlabel\n") + "".join(rows))
    found = inspect(tmp_path)
    assert {one.name: one.order.state for one in found.captures} == {
        "blocks": "disordered",
        "day": "written",
    }
    (warning,) = found.to_json()["warnings"]
    assert "rows not in time order: blocks (up to 50% of a log's rows)" in warning
    assert found.to_json()["captures"][0]["order"] == {"state": "disordered", "late_rows": 716}
    said = CliRunner().invoke(app, ["data", "inspect", str(tmp_path)])
    assert said.exit_code == 0
    assert "disordered" in said.stdout
    assert "warning: rows not in time order" in said.stdout
