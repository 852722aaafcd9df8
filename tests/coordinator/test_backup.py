"""A fleet's backup: taken while the coordinator works, it starts again at what it had then."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradsense.coordinator import backup
from gradsense.coordinator.backup import back_up
from gradsense.coordinator.journal import FILE, RunJournal
from gradsense.coordinator.run import Run
from gradsense.coordinator.snapshots import FOLDER
from gradsense.errors import GradsenseError, InputError
from gradsense.fleet import enrolment
from gradsense.fleet.jobs import RUNS, Job
from gradsense.transport.payloads import model_hash
from tests.support.live_coordinator import Teller, eventually, new_run, working
from tests.support.tls_broker import TlsBroker
from tests.support.toys import tensor, update

START = {"w": tensor(0.0, 0.0)}
JOB = Job(run="porch", algorithm="fedavg", labels=("no", "yes"))


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    enrolment.create(tmp_path / "fleet", None, 8883, now=1e9)
    Run.create(tmp_path / "fleet" / RUNS / "porch", JOB, START)
    return tmp_path / "fleet"


def test_a_backup_has_every_file_and_nobody_else_may_read_it(fleet: Path, tmp_path: Path) -> None:
    assert back_up(fleet, tmp_path / "copy") == ["porch"]
    skip = {"lock", f"{FILE}-wal", f"{FILE}-shm"}
    skip |= {"registry.sqlite3-wal", "registry.sqlite3-shm"}

    def names(root: Path) -> set[str]:
        return {str(p.relative_to(root)) for p in root.rglob("*") if p.name not in skip}

    assert names(tmp_path / "copy") == names(fleet)
    for path in (tmp_path / "copy", *(tmp_path / "copy").rglob("*")):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    found = [entry.name for entry in enrolment.members(tmp_path / "copy")]
    assert found == [entry.name for entry in enrolment.members(fleet)]


@pytest.mark.parametrize("out", ["there", "fleet/inside", "dangling"])
def test_what_must_not_be_written_is_not(fleet: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError):
        back_up(fleet, tmp_path / out)
    assert not list((tmp_path / "there").iterdir())
    assert not (fleet / "inside").exists()


def test_a_damaged_model_makes_no_backup(fleet: Path, tmp_path: Path) -> None:
    (model,) = (fleet / RUNS / "porch" / FOLDER).iterdir()
    model.write_bytes(b"rubbish")
    with pytest.raises(InputError, match="damaged"):
        back_up(fleet, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(("times", "made"), [(2, True), (3, False)])
def test_a_model_removed_meanwhile_makes_it_begin_anew(
    fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, made: bool
) -> None:
    (model,) = (fleet / RUNS / "porch" / FOLDER).iterdir()
    left, real = [times], shutil.copy2

    def copy(source: Path, place: Path) -> None:
        if source == model and left[0]:
            left[0] -= 1
            raise FileNotFoundError(source)
        real(source, place)

    monkeypatch.setattr(backup.shutil, "copy2", copy)
    if made:
        assert back_up(fleet, tmp_path / "copy") == ["porch"]
    else:
        with pytest.raises(GradsenseError, match="faster"):
            back_up(fleet, tmp_path / "copy")
    assert (tmp_path / "copy").exists() == made


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[TlsBroker]:
    made = TlsBroker(tmp_path)
    yield made
    made.stop()


@pytest.mark.broker
def test_a_copy_of_a_coordinator_at_work_is_a_run_of_that_moment(
    broker: TlsBroker, tmp_path: Path
) -> None:
    new_run(broker.fleet, JOB, START)
    with working(broker.fleet) as process:

        def version() -> object:
            return process.latest["runs"].get("porch", {}).get("version")

        cam = Teller(broker, "porch", "cam")
        eventually(lambda: process.latest["runs"].get("porch", {}).get("online") == 1)
        cam.tell(update("cam", sequence=1, delta={"w": tensor(1.0, 1.0)}), model_hash(START))
        eventually(lambda: version() == 1)
        back_up(broker.fleet, tmp_path / "copy")
        said = update("cam", sequence=2, base_version=1, delta={"w": tensor(1.0, 1.0)})
        cam.tell(said, model_hash({"w": tensor(1.0, 1.0)}))
        eventually(lambda: version() == 2)
        cam.link.stop()
    journal = RunJournal(tmp_path / "copy" / RUNS / "porch")
    newest = journal.newest()
    assert (newest.version, newest.hash) == (1, model_hash({"w": tensor(1.0, 1.0)}))
    assert journal.verdict("cam", 1) is not None
    assert journal.verdict("cam", 2) is None
    journal.close()
