"""``gradsense compare`` through the real command line, with its worker processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradsense.cli.compare import show
from gradsense.cli.console import results_console
from gradsense.experiments import results
from gradsense.experiments.references import references
from gradsense.experiments.references.reference import ReferenceMethod
from tests.data.test_groups import BENIGN, SCAN, write_capture

REFERENCES = tuple(references())


def children(pid: int) -> list[int]:
    """The processes that this one started; only where /proc tells."""
    try:
        return [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        return []


def alive(pid: int) -> bool:
    try:
        # A zombie has ended; its new parent just has not looked yet.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], object], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.005)
    return False


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    rows = json.loads((folder / "results.json").read_text())
    for row in rows:
        row.pop("wall_s")
    return {row["algorithm"]: row for row in rows}


@pytest.fixture(scope="module")
def resumed(
    trained: Any,
    start: Callable[..., subprocess.Popen[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Any]]:
    """A comparison whose parent was killed on the way, and which was then resumed."""
    out = tmp_path_factory.mktemp("comparison") / "table"
    args = ("compare", *trained.args[1:], "--algorithms", "fedavg,gsfs", "--seeds", "1")
    at = args.index("--algorithm")
    command = (*args[:at], *args[at + 2 :], "--jobs", "1", "--out", out, "--json")
    process = start(*command)
    try:
        # One run is through and the next has begun.
        assert wait_for((out / "fedavg-seed3" / "results.json").exists, 120)
        assert wait_for((out / "gsfs-seed3" / "settings.json").exists, 60)
        workers = children(process.pid)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    gone = wait_for(lambda: not any(alive(worker) for worker in workers), 20)
    _, complaints = process.communicate()
    finished = (out / "fedavg-seed3" / "results.json").stat().st_mtime_ns
    partial = not (out / "results.json").exists()
    again = start(*command, "--resume")
    said, complained = again.communicate(timeout=200)
    kept = (out / "fedavg-seed3" / "results.json").stat().st_mtime_ns == finished
    return out, {
        "workers": workers,
        "gone": gone,
        "complaints": complaints,
        "partial": partial,
        "kept": kept,
        "code": again.returncode,
        "out": said,
        "err": complained,
        "command": command,
    }


def test_workers_end_with_the_comparison(resumed: tuple[Path, dict[str, Any]]) -> None:
    _, story = resumed
    assert story["gone"]
    assert story["complaints"] == ""
    if Path("/proc/self/task").exists():
        assert len(story["workers"]) == 1


def test_killed_comparison_resumes_where_it_was(resumed: tuple[Path, dict[str, Any]]) -> None:
    out, story = resumed
    assert story["partial"]
    assert (story["code"], story["err"]) == (0, "")
    assert story["kept"], "a finished run is not run again"
    rows = rows_of(out)
    assert list(rows) == ["fedavg", "gsfs", *REFERENCES]
    assert json.loads(story["out"]) == json.loads((out / "results.json").read_text())
    assert (out / "report.html").exists()


def test_comparison_gives_the_rows_and_weights_of_single_runs(
    resumed: tuple[Path, dict[str, Any]], trained: Any
) -> None:
    out, _ = resumed
    assert rows_of(out)["gsfs"] == rows_of(trained.out)["gsfs"]
    for name in ("model.safetensors", "head.safetensors"):
        weights = [
            (folder / "model" / name).read_bytes() for folder in (out / "gsfs-seed3", trained.out)
        ]
        assert weights[0] == weights[1]


def test_rows_keep_to_the_contract_and_to_equal_compute(
    resumed: tuple[Path, dict[str, Any]],
) -> None:
    rows = rows_of(resumed[0])
    assert {rows[name]["kind"] for name in REFERENCES} == {"reference"}
    assert rows["local-only"]["central"] is None
    assert rows["forest"]["uplink_bytes"] is None
    assert rows["onehot-federated"]["uplink_bytes"] > 0
    assert all(rows[name]["alarms"] for name in REFERENCES if rows[name]["central"])
    assert all(row["synthetic"] for row in rows.values())
    # What an algorithm may spend at most is what training in one place and alone do spend.
    full = rows["centralised"]["samples_trained"]
    assert rows["local-only"]["samples_trained"] == full
    assert all(rows[name]["samples_trained"] <= full for name in ("fedavg", "gsfs"))


def test_table_is_printed_whole_into_a_file(
    resumed: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = resumed
    show(results.load(out / "results.json"), ["a note"], out, results_console())
    said = capsys.readouterr().out
    for name in ("fedavg", "gsfs", *REFERENCES):
        assert f" {name} " in said, "a name is not broken over two lines"
    assert str(out / "report.html") in said
    assert "note: a note" in said


def test_comparison_into_a_used_folder_loses_nothing(
    resumed: tuple[Path, dict[str, Any]], trained: Any, gradsense: Callable[..., Any]
) -> None:
    out, story = resumed
    before = (out / "results.json").read_bytes()
    gradsense(*story["command"]).complaint(str(out), "--resume")
    gradsense(*trained.args, "--out", out).complaint(str(out), "results.json")
    assert (out / "results.json").read_bytes() == before
    whole = (trained.out / "results.json").read_bytes()
    for more in ((), ("--resume",)):
        compare = ("compare", *trained.args[1:3], "--out", trained.out, *more)
        gradsense(*compare).complaint(str(trained.out), "single run")
    assert (trained.out / "results.json").read_bytes() == whole


def test_networks_are_left_out_and_resumed(gradsense: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("x__1", "x__2", "y__1"):
        write_capture(tmp_path / "data", name, [BENIGN, SCAN] * 20)
    out = tmp_path / "out"
    command = ("compare", "--data", tmp_path / "data", "--split", "network", "--seeds", "1")
    command = (*command, "--out", out, "--no-references")
    told = gradsense(*command)
    assert (told.code, told.err) == (0, "")
    assert "AUROC by group left out" in told.out
    assert "networks.md" in told.out
    rows = json.loads((out / "results.json").read_text())
    assert [(row["method"], row["group"]) for row in rows] == [("gsfs", "x"), ("gsfs", "y")]
    gradsense(*command).complaint(str(out), "--resume")
    again = gradsense(*command, "--resume", "--json")
    assert json.loads(again.out) == rows
    gradsense(*command[:-3], "--out", tmp_path / "other", "--algorithms", "fedavg").complaint(
        "'fedavg' would have to train once for every group left out"
    )
    train = ("train", "--data", tmp_path / "data", "--split", "network", "--out", tmp_path / "t")
    gradsense(*train).complaint("gradsense compare --split network")


class Missing(ReferenceMethod):
    name = "missing"
    library = "no_such_library_anywhere"

    def run(self, bench: Any, on_progress: Any) -> Any:
        raise AssertionError("it cannot run")


def test_a_reference_without_its_library_is_named_and_not_left_out_in_silence(
    gradsense: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"missing": Missing()}
    monkeypatch.setattr("gradsense.experiments.compare.all_references", lambda: known)
    monkeypatch.setattr("gradsense.experiments.networks_left_out.references", lambda: known)
    for name in ("x__1", "y__1"):
        write_capture(tmp_path / "data", name, [BENIGN, SCAN] * 20)
    common = ("compare", "--data", tmp_path / "data", "--algorithms", "gsfs", "--seeds", "1")
    for place, split in enumerate(("grouped", "network")):
        told = gradsense(
            *common,
            "--view",
            "binary",
            "--split",
            split,
            "--rounds",
            "1",
            "--out",
            tmp_path / str(place),
        )
        assert told.code == 0
        words = " ".join(told.out.split())
        assert "'missing' is absent, because no_such_library_anywhere is not installed" in words
        assert "pip install 'gradsense[train]'" in words
