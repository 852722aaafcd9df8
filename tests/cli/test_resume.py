"""Kill a run at any moment, resume it, and nothing tells it from one that was left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MOMENTS = 6


def row_of(out: Path) -> dict[str, Any]:
    """The only row of a run, without what the clock says."""
    (row,) = json.loads((out / "results.json").read_text())
    row.pop("wall_s")
    return row


def assert_same_run(out: Path, whole: Path) -> None:
    models = [snapshot(folder / "model") for folder in (out, whole)]
    assert models[0] == models[1], "bit for bit, the head beside the base as well"
    assert "head.safetensors" in models[0]
    assert row_of(out) == row_of(whole)
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}


def new_checkpoints(process: subprocess.Popen[str], path: Path) -> Iterator[None]:
    """Yield whenever there is a checkpoint that was not there before, until the process ends."""
    seen = None
    while process.poll() is None:
        try:
            status = path.stat()
        except FileNotFoundError:
            time.sleep(0.001)
            continue
        if (status.st_ino, status.st_mtime_ns) != seen:
            seen = (status.st_ino, status.st_mtime_ns)
            yield
        time.sleep(0.001)


@pytest.fixture(scope="module")
def wrecks(
    trained: Any,
    start: Callable[..., subprocess.Popen[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Path]:
    """The folder of a run as SIGKILL leaves it at several moments; the last kill is real.

    Where the process is only halted, its folder is copied: a killed process leaves those files.
    """
    root = tmp_path_factory.mktemp("wrecks")
    out = root / "run"
    process = start(*trained.args, "--out", out, "--checkpoint-s", 0)
    left = []
    try:
        for moment, _ in enumerate(new_checkpoints(process, out / "checkpoint.zst")):
            os.kill(process.pid, signal.SIGSTOP)
            left.append(shutil.copytree(out, root / f"moment{moment}"))
            if len(left) == MOMENTS:
                break
            os.kill(process.pid, signal.SIGCONT)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(left) == MOMENTS
    assert (out / "checkpoint.zst").exists()
    return [*left, out]


def test_killed_run_resumes_to_the_same_bits(
    wrecks: list[Path], trained: Any, gradsense: Callable[..., Any]
) -> None:
    for out in (wrecks[0], wrecks[len(wrecks) // 2], wrecks[-1]):
        assert (out / "checkpoint.zst").exists()
        assert not (out / "results.json").exists()
        done = gradsense(*trained.args, "--out", out, "--resume")
        assert done.code == 0, done.err
        assert_same_run(out, trained.out)


def test_run_killed_while_it_writes_resumes(
    wrecks: list[Path], trained: Any, gradsense: Callable[..., Any]
) -> None:
    out = wrecks[1]
    whole = (out / "checkpoint.zst").read_bytes()
    (out / ".checkpoint.zst.new").write_bytes(whole[: len(whole) // 2])
    (out / ".model.new").mkdir()
    (out / ".model.new" / "config.json").write_text("{")
    done = gradsense(*trained.args, "--out", out, "--resume")
    assert done.code == 0, done.err
    assert_same_run(out, trained.out)


@pytest.mark.slow
def test_run_killed_before_its_first_checkpoint_starts_again(
    trained: Any, gradsense: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(trained.out / "settings.json", out)
    done = gradsense(*trained.args, "--out", out, "--resume")
    assert done.code == 0, done.err
    assert_same_run(out, trained.out)


def test_resume_of_a_finished_run_only_reads_it(
    wrecks: list[Path], trained: Any, gradsense: Callable[..., Any], tmp_path: Path
) -> None:
    out = shutil.copytree(trained.out, tmp_path / "run")
    # As left by a kill between the results and the end.
    shutil.copy(wrecks[2] / "checkpoint.zst", out)
    before = (out / "results.json").stat().st_mtime_ns
    done = gradsense(*trained.args, "--out", out, "--resume", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == json.loads((out / "results.json").read_text())[0]
    assert (out / "results.json").stat().st_mtime_ns == before
    assert_same_run(out, trained.out)


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [("--lr", "0.01", "lr"), ("--seed", "9", "seed"), ("--algorithm", "fedavg", "algorithm")],
)
def test_resume_with_another_setting_names_it(
    trained: Any, gradsense: Callable[..., Any], option: str, value: str, name: str
) -> None:
    before = snapshot(trained.out)
    done = gradsense(*trained.args, "--out", trained.out, "--resume", option, value)
    done.complaint("settings.json", f"'{name}'", value)
    assert snapshot(trained.out) == before


def test_resume_with_other_data_says_so(
    trained: Any, fleet: Path, gradsense: Callable[..., Any], tmp_path: Path
) -> None:
    captures = shutil.copytree(fleet, tmp_path / "captures")
    out = shutil.copytree(trained.out, tmp_path / "run")
    (out / "results.json").unlink()
    settings = json.loads((out / "settings.json").read_text())
    settings["settings"]["data"] = str(captures)
    (out / "settings.json").write_text(json.dumps(settings))
    log = next(captures.rglob("conn.log.labeled"))
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-20]))
    done = gradsense(*trained.args, "--out", out, "--resume", "--data", captures)
    done.complaint("settings.json", "'data'", "changed")


def test_second_run_into_a_folder_loses_nothing(
    trained: Any, gradsense: Callable[..., Any]
) -> None:
    before = snapshot(trained.out)
    gradsense(*trained.args, "--out", trained.out).complaint(str(trained.out), "--resume")
    assert snapshot(trained.out) == before


def test_damaged_checkpoint_is_named_and_kept(
    wrecks: list[Path], trained: Any, gradsense: Callable[..., Any], tmp_path: Path
) -> None:
    out = shutil.copytree(wrecks[2], tmp_path / "run")
    file = out / "checkpoint.zst"
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    for data in (b"", b"nonsense", bytes(whole), bytes(whole[:100])):
        file.write_bytes(data)
        done = gradsense(*trained.args, "--out", out, "--resume")
        done.complaint(str(file), "damaged", "delete it", code=1)
        assert file.read_bytes() == data


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"settings": 3}', "\0"])
def test_damaged_settings_are_named(
    trained: Any, gradsense: Callable[..., Any], tmp_path: Path, text: str
) -> None:
    (tmp_path / "settings.json").write_text(text)
    done = gradsense(*trained.args, "--out", tmp_path, "--resume")
    done.complaint("settings.json", "damaged")


@pytest.mark.parametrize("text", ["", "[]", "{", '[{"algorithm": 3}]'])
def test_damaged_results_are_named(
    trained: Any, gradsense: Callable[..., Any], tmp_path: Path, text: str
) -> None:
    shutil.copy(trained.out / "settings.json", tmp_path)
    (tmp_path / "results.json").write_text(text)
    done = gradsense(*trained.args, "--out", tmp_path, "--resume")
    done.complaint("results.json")
    assert (tmp_path / "results.json").read_text() == text


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file's bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
