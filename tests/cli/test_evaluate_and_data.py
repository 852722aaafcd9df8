"""``gradsense evaluate``, ``data inspect`` and ``data synth`` through the real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Outcome


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


FULL_DISK = """
import resource, sys
from gradsense.cli import main
import gradsense.experiments.evaluate  # whose files are read before the disk is full
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
main()
"""


@pytest.mark.parametrize("before", [None, "mine"])
def test_verdicts_that_do_not_fit_on_the_disk(
    before: str | None, trained: Any, sample: Path, tmp_path: Path
) -> None:
    out = tmp_path / "verdicts.jsonl"
    if before is not None:
        out.write_text(before)
    command = ("evaluate", "--model", trained.model, "--data", sample, "--out", out)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    Outcome(done.returncode, done.stdout, done.stderr).complaint(
        str(out), "cannot be written", "free some space"
    )
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == (
        {} if before is None else {out.name: before}
    )


def test_a_device_is_not_replaced_by_verdicts(
    trained: Any, sample: Path, gradsense: Callable[..., Any], tmp_path: Path
) -> None:
    os.mkfifo(out := tmp_path / "pipe")
    done = gradsense("evaluate", "--model", trained.model, "--data", sample, "--out", out)
    done.complaint(str(out), "device", "give a file")
    assert out.is_fifo()


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


def test_suricata_with_classes_of_ones_own_from_inspect_to_evaluate(
    gradsense: Callable[..., Any], tmp_path: Path
) -> None:
    for site in ("porch", "garden"):
        kinds = [("Benign", 53, "UDP", 1), ("PortScan", 23, "TCP", 0)] * 40
        log = tmp_path / "captures" / site / "eve.json"
        log.parent.mkdir(parents=True)
        log.write_text("".join(suricata_event(n, *kind) for n, kind in enumerate(kinds)))
    data = tmp_path / "captures"
    seen = json.loads(gradsense("data", "inspect", data, "--json").out)
    assert (seen["rows"], seen["classes"]) == (160, {"Benign": 80, "PortScan": 80})
    train = ("train", "--data", data, "--out", tmp_path / "run", "--rounds", 2, "--seed", 0)
    # Few prompts are distinct here, so a grouped split would leave a class without flows.
    train = (*train, "--split", "random")
    gradsense(*train).complaint("'PortScan' is not known", "--labels")
    done = gradsense(*train, "--labels", "Benign,DDoS,PortScan", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["classes"] == ["Benign", "DDoS", "PortScan"]
    found = gradsense("evaluate", "--model", tmp_path / "run" / "model", "--data", data, "--json")
    assert found.code == 0, found.err
    result = json.loads(found.out)
    assert (result["labelled"], result["unknown_classes"]) == (160, {})
    assert result["scores"]["per_class"]["PortScan"]["recall"] > 0.9
    assert result["scores"]["per_class"]["Benign"]["recall"] > 0.9


@pytest.mark.parametrize("labels", ["Benign", "Benign,DDoS,Benign"])
def test_labels_that_are_no_classes(
    labels: str, fleet: Path, gradsense: Callable[..., Any], tmp_path: Path
) -> None:
    train = ("train", "--data", fleet, "--out", tmp_path / "run", "--labels", labels)
    gradsense(*train).complaint("'--labels'", "two classes or more")


def suricata_event(number: int, label: str, port: int, proto: str, answers: int) -> str:
    """A labelled flow event, whose sizes vary a little."""
    start, size = f"2026-11-22T10:{number // 60:02d}:{number % 60:02d}", 60 + number % 7
    event = {
        "event_type": "flow",
        "flow_id": number,
        "src_ip": "192.168.1.5",
        "src_port": 40000,
        "dest_ip": f"198.51.100.{number % 200}",
        "dest_port": port,
        "proto": proto,
        "flow": {
            "pkts_toserver": 1,
            "pkts_toclient": answers,
            "bytes_toserver": size,
            "bytes_toclient": answers * size,
            "start": f"{start}.000000+0000",
            "end": f"{start}.100000+0000",
        },
        "tcp": {"tcp_flags_ts": "02", "tcp_flags_tc": "00"},
        "label": label,
    }
    return json.dumps(event) + "\n"
