"""``gradsense evaluate``, ``data inspect`` and ``data synth`` through the real command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_evaluate_says_scores_and_speed_as_json(
    trained: Any, fleet: Path, gradsense: Callable[..., Any]
) -> None:
    done = gradsense("evaluate", "--model", trained.model, "--data", fleet, "--json")
    assert (done.code, done.err) == (0, "")
    result = json.loads(done.out)
    assert result["captures"] == 3
    assert result["synthetic"] is True
    assert result["labelled"] == result["flows"] == sum(result["verdicts"].values())
    scores = result["scores"]
    assert scores.keys() >= {"accuracy", "precision", "recall", "f1_weighted", "f1_macro"}
    assert sum(map(sum, scores["confusion"])) == result["flows"]
    latency = result["latency"]
    assert latency["requests_per_min"] == pytest.approx(60_000 / latency["mean_ms"])


def test_evaluate_writes_a_verdict_a_flow_of_an_unlabelled_log(
    trained: Any, sample: Path, gradsense: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "verdicts.jsonl"
    done = gradsense("evaluate", "--model", trained.model, "--data", sample, "--out", out)
    assert done.code == 0, done.err
    verdicts = [json.loads(line) for line in out.read_text().splitlines()]
    flows = [line for line in sample.read_text().splitlines() if not line.startswith("#")]
    assert len(verdicts) == len(flows) > 60
    assert verdicts[0].keys() >= {"file", "line", "verdict", "score"}
    assert all(0 < one["score"] <= 1 for one in verdicts)
    assert "Verdicts" in done.out
    assert list(tmp_path.iterdir()) == [out]


def test_inspect_counts_what_synth_wrote(gradsense: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "captures"
    wrote = gradsense("data", "synth", out, "--sites", 2, "--flows", 60, "--seed", 5)
    assert (wrote.code, wrote.err) == (0, "")
    assert "synthetic" in wrote.out
    done = gradsense("data", "inspect", out, "--json")
    assert (done.code, done.err) == (0, "")
    summary = json.loads(done.out)
    assert summary["synthetic"] is True
    assert summary["rows"] == sum(summary["classes"].values()) > 60
    assert len(summary["captures"]) == 2
    shown = gradsense("data", "inspect", out)
    assert shown.code == 0
    assert "synthetic" in shown.out


def test_synth_repeats_itself_byte_by_byte(gradsense: Callable[..., Any], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        done = gradsense("data", "synth", folder, "--sites", 1, "--flows", 60, "--seed", seed)
        assert done.code == 0, done.err
    logs = [next(folder.rglob("conn.log*")).read_bytes() for folder in folders]
    assert logs[0] == logs[1] != logs[2]


def test_inspect_reads_a_real_capture(iot23: Path, gradsense: Callable[..., Any]) -> None:
    logs = sorted(iot23.rglob("conn.log.labeled*"), key=lambda path: path.stat().st_size)
    done = gradsense("data", "inspect", logs[0], "--json")
    assert (done.code, done.err) == (0, "")
    summary = json.loads(done.out)
    assert summary["rows"] > 0
    assert summary["synthetic"] is False


def test_inspect_reads_other_networks_logs(zeek_logs: Path, gradsense: Callable[..., Any]) -> None:
    logs = sorted(
        (path for path in zeek_logs.rglob("*conn*.log*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    read = 0
    for log in logs[:4]:
        done = gradsense("data", "inspect", log, "--json")
        if done.code == 0:
            assert json.loads(done.out)["rows"] > 0, log
            read += 1
        else:
            done.complaint(str(log))
    assert read > 0
