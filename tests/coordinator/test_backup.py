"""A copy of a fleet's folder that a coordinator works on: whole, private, and good to go on."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from gradsense.coordinator import backup as backups
from gradsense.coordinator.backup import backup
from gradsense.errors import GradsenseError, InputError
from gradsense.fleet.enrolment import create, members
from gradsense.fleet.jobs import RUNS
from tests.support.toy_fleet import RUN, new_run, open_run, sent, status
from tests.support.toys import tensor, update


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    folder = tmp_path / "fleet"
    create(folder, None, 8883, now=time.time())
    return folder


def test_a_copy_of_a_run_at_work_goes_on_from_its_moment(fleet: Path, tmp_path: Path) -> None:
    run = new_run(fleet / RUNS / RUN)
    run.take([status("a")], now=1.0, wall=0.0)
    one = update("a", delta={"w": tensor(1.0, 1.0)})
    run.take(sent(one, run.status().hash), now=2.0, wall=0.0)
    then = run.status()
    assert then.version == 1
    assert backup(fleet, tmp_path / "copy") == [RUN]
    two = update("a", sequence=2, base_version=1, delta={"w": tensor(1.0, 1.0)})
    run.take(sent(two, then.hash), now=3.0, wall=0.0)
    run.close()
    again = open_run(tmp_path / "copy" / RUNS / RUN)
    assert (again.status().version, again.status().hash) == (1, then.hash)
    assert members(tmp_path / "copy") == members(fleet)


def test_only_its_owner_may_read_it(fleet: Path, tmp_path: Path) -> None:
    new_run(fleet / RUNS / RUN)
    backup(fleet, tmp_path / "copy")
    modes = {path.stat().st_mode & 0o077 for path in (tmp_path / "copy", tmp_path / "copy" / RUNS)}
    assert modes == {0}
    for path in (tmp_path / "copy").rglob("*.sqlite3"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_nothing_is_overwritten(fleet: Path, tmp_path: Path) -> None:
    for out in (tmp_path, fleet / "copy"):
        with pytest.raises(InputError):
            backup(fleet, out)
    assert not (fleet / "copy").exists()
    with pytest.raises(InputError, match="no fleet"):
        backup(tmp_path / "nowhere", tmp_path / "copy")


def test_a_snapshot_that_never_comes_leaves_nothing_behind(
    fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_run(fleet / RUNS / RUN)
    monkeypatch.setattr(backups, "snapshot_files", lambda folder: ["version-9.safetensors"])
    with pytest.raises(GradsenseError, match="faster"):
        backup(fleet, tmp_path / "copy")
    assert os.listdir(tmp_path) == ["fleet"]


def test_copies_of_a_run_that_makes_models_all_the_while_open(fleet: Path, tmp_path: Path) -> None:
    new_run(fleet / RUNS / RUN).close()
    stop = threading.Event()

    def work() -> None:
        run = open_run(fleet / RUNS / RUN)
        run.take([status("a")], now=1.0, wall=0.0)
        sequence = 0
        while not stop.is_set():
            sequence += 1
            held = run.status()
            one = update(
                "a", sequence=sequence, base_version=held.version, delta={"w": tensor(1.0, 1.0)}
            )
            run.take(sent(one, held.hash), now=2.0, wall=0.0)
        run.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for number in range(5):
            backup(fleet, tmp_path / f"copy-{number}")
    finally:
        stop.set()
        thread.join()
    versions = []
    for number in range(5):
        run = open_run(tmp_path / f"copy-{number}" / RUNS / RUN)
        versions.append(run.status().version)
        run.close()
    assert versions == sorted(versions)
