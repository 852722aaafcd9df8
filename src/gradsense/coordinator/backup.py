"""A copy of a fleet's folder while its coordinator works: every part of it of one moment.

SQLite files are copied by SQLite's online backup, one read transaction each, and before the files
that they name. Of a run, its models come after its journal; a model that the coordinator removed
in between makes the copy begin anew. The fleet's lock is held, so no enrolment or revocation is
half in it. A coordinator may work on; it is not waited for.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from gradsense.coordinator.journal import FILE
from gradsense.coordinator.lookup import newest_snapshot
from gradsense.coordinator.snapshots import FOLDER
from gradsense.errors import GradsenseError, InputError
from gradsense.fleet.enrolment import opened
from gradsense.fleet.jobs import RUNS
from gradsense.storage import files

#: A copy is begun so often; each time five models were made while it was under way.
_TRIES = 3


class _Moved(Exception):
    """A model that the copied journal names was removed before it was copied."""


def back_up(fleet: Path, out: Path) -> list[str]:
    """Copy a fleet's folder to ``out``, which becomes a fleet's folder, mode 0700, or is not made.

    Returns:
        the names of the runs in it.

    Raises:
        InputError: ``out`` exists or is in the fleet's folder, ``fleet`` is none, or a run's
            journal or newest model is damaged.
        GradsenseError: it cannot be written, or models are made faster than they can be copied.
    """
    if out.exists() or out.is_symlink():
        raise InputError("is there already", hint="give the backup another name", file=out)
    if out.absolute().resolve().is_relative_to(fleet.absolute().resolve()):
        raise InputError("is in the fleet's folder", hint="give a folder elsewhere", file=out)
    with opened(fleet):
        for _ in range(_TRIES):
            try:
                with files.replacing(out) as fresh:
                    fresh.chmod(0o700)
                    return _copy(fleet, fresh)
            except _Moved:
                continue
            except (OSError, shutil.Error, sqlite3.Error) as error:
                raise GradsenseError(f"{out}: the backup cannot be written: {error}") from error
    raise GradsenseError(f"{fleet}: models are made faster than they are copied; try again")


def _copy(fleet: Path, fresh: Path) -> list[str]:
    # The registry last: no journal may have carried out an order that its copy does not know.
    paths = sorted(fleet.rglob("*"), key=lambda path: (path.name == "registry.sqlite3", path))
    for folder in filter(Path.is_dir, paths):  # a parent comes before what is in it
        (fresh / folder.relative_to(fleet)).mkdir(mode=0o700)
    for file in paths:
        if file.name.endswith(".sqlite3"):
            _copy_database(file, fresh / file.relative_to(fleet))
    for file in sorted(fleet.rglob("*")):  # afresh, since models may have come
        if file.is_file() and not _left_out(file):
            with suppress(FileNotFoundError):  # what a journal names is looked for below
                shutil.copy2(file, fresh / file.relative_to(fleet))
    runs = sorted(file.parent.name for file in fresh.glob(f"{RUNS}/*/{FILE}"))
    for run in runs:
        _check(fresh / RUNS / run)
    return runs


def _left_out(path: Path) -> bool:
    """SQLite's files, which are copied otherwise, locks, and what a killed process left."""
    side = path.name.endswith((".sqlite3", ".sqlite3-wal", ".sqlite3-shm", ".sqlite3-journal"))
    return side or path.name == "lock" or (path.name[0] == "." and path.name.endswith(".new"))


def _copy_database(file: Path, place: Path) -> None:
    place.touch(mode=0o600)
    with (
        closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as db,
        closing(sqlite3.connect(place)) as copy,
    ):
        db.backup(copy)  # all pages in one step: of one moment, whoever writes


def _check(run: Path) -> None:
    """Whether every model that the journal names was copied, and the newest is whole."""
    with closing(sqlite3.connect(run / FILE)) as db:
        named = db.execute("SELECT file FROM models WHERE file IS NOT NULL").fetchall()
    if not all((run / FOLDER / name).is_file() for (name,) in named):
        raise _Moved
    newest_snapshot(run)
