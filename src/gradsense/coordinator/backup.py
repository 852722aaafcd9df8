"""A consistent copy of a fleet's folder, also while its coordinator works.

The registry and each run's journal are copied with SQLite's backup API: each copy is of one
moment. A journal names the snapshots that belong to it; they are copied after it, and should the
coordinator have removed one meanwhile, that run is copied again. Commands that change the fleet
wait until the copy is made.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from gradsense.coordinator import journal
from gradsense.coordinator.lookup import snapshot_files
from gradsense.coordinator.snapshots import FOLDER
from gradsense.errors import GradsenseError, InputError
from gradsense.fleet import enrolment
from gradsense.fleet.jobs import MODEL, RUNS, START
from gradsense.storage.files import replacing

_REGISTRY = "registry.sqlite3"
#: What only a fleet's commands write, which wait; and what of a run never changes.
_PARTS, _OF_RUN = ("fleet.json", "ca", "coordinator", "broker"), (START, MODEL)
#: A run's snapshots are removed one model at a time, so the second attempt mostly succeeds.
_ATTEMPTS = 10


def backup(fleet: Path, out: Path) -> list[str]:
    """Copy a fleet's folder; the names of its runs.

    The copy has no broker's queues, status and locks: they are of the moment.

    Args:
        out: the new folder, which only its owner may read; whole or not made at all.

    Raises:
        InputError: no fleet, a damaged run, or ``out`` is there.
        GradsenseError: it cannot be written, or a run changes faster than it can be copied.
    """
    if out.exists():
        raise InputError("is there already", hint="give a new folder", file=out)
    if out.absolute().is_relative_to(fleet.absolute()):
        raise InputError("is in the fleet's folder", hint="give one elsewhere", file=out)
    with enrolment.opened(fleet):
        try:
            with replacing(out) as fresh:
                fresh.chmod(0o700)
                for name in _PARTS:
                    _copy(fleet / name, fresh / name)
                (fresh / "broker" / "data").mkdir(mode=0o700)
                (fresh / RUNS).mkdir(mode=0o700)
                _copy_database(fleet / _REGISTRY, fresh / _REGISTRY)
                runs = sorted((fleet / RUNS).glob("[!.]*"))
                for run in runs:
                    _copy_run(run, fresh / RUNS / run.name)
        except (OSError, sqlite3.Error) as error:
            raise GradsenseError(f"{out}: the backup cannot be written: {error}") from error
    return [run.name for run in runs]


def _copy(source: Path, to: Path) -> None:
    if source.is_dir():
        # data/ holds the broker's own queues, which may belong to another user.
        shutil.copytree(source, to, ignore=shutil.ignore_patterns("data", ".*"))
    elif source.exists():
        shutil.copy2(source, to)


def _copy_run(run: Path, to: Path) -> None:
    to.mkdir(mode=0o700)
    for name in _OF_RUN:
        _copy(run / name, to / name)
    for _ in range(_ATTEMPTS):
        _copy_database(run / journal.FILE, to / journal.FILE)
        shutil.rmtree(to / FOLDER, ignore_errors=True)
        (to / FOLDER).mkdir(mode=0o700)
        try:
            for name in snapshot_files(to):
                shutil.copy2(run / FOLDER / name, to / FOLDER / name)
        except FileNotFoundError:
            continue  # removed since the journal was copied
        return
    raise GradsenseError(f"{run}: models are made faster than they can be copied; try again")


def _copy_database(source: Path, to: Path) -> None:
    to.unlink(missing_ok=True)
    to.touch(mode=0o600)
    with (
        closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=10)) as live,
        closing(sqlite3.connect(to)) as copy,
    ):
        live.backup(copy)
