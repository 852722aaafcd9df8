"""What a run must not forget, in one SQLite file: every event, every model issued, half uploads.

The file is an event log. ``Coordinator`` is pure, so its state is the last snapshot, which every
aggregation makes, and the events since, played again. One transaction takes in a whole batch of
messages and all that follows from them; only after it may anything be acknowledged. SQLite runs
in WAL mode with ``synchronous=FULL``: what was committed survives a loss of power.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from gradsense.coordinator.records import (
    DeviceRecord,
    IssuedModel,
    JournalEntry,
    JournalEvent,
    Outcome,
    Piece,
)
from gradsense.errors import GradsenseError, InputError
from gradsense.storage.folders import migrate, transaction

FILE = "journal.sqlite3"
#: Snapshots that keep their file, beside that of version 0.
KEPT_MODELS = 5

#: One for each version of the schema, in order; each brings the file from one to the next.
MIGRATIONS = [
    """
    CREATE TABLE run (
        one INTEGER PRIMARY KEY CHECK (one = 1), job TEXT NOT NULL, now REAL NOT NULL,
        widest INTEGER NOT NULL);
    CREATE TABLE events (
        id INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, device TEXT NOT NULL,
        sequence INTEGER, body_sha256 TEXT NOT NULL, refusal TEXT NOT NULL, size INTEGER NOT NULL,
        samples INTEGER NOT NULL, body BLOB);
    CREATE UNIQUE INDEX once ON events (device, sequence) WHERE sequence IS NOT NULL;
    CREATE TABLE models (
        version INTEGER PRIMARY KEY, hash TEXT NOT NULL, at REAL NOT NULL, event INTEGER NOT NULL,
        contributors TEXT NOT NULL, took_s REAL NOT NULL, file TEXT,
        file_sha256 TEXT, state TEXT);
    CREATE TABLE pieces (
        device TEXT NOT NULL, message BLOB NOT NULL, place INTEGER NOT NULL,
        count INTEGER NOT NULL, total INTEGER NOT NULL, digest BLOB NOT NULL, at REAL NOT NULL,
        piece BLOB NOT NULL, PRIMARY KEY (device, message, place));
    CREATE TABLE devices (
        name TEXT PRIMARY KEY, held INTEGER, seen REAL NOT NULL, bytes INTEGER NOT NULL,
        sequence INTEGER NOT NULL);
    CREATE TABLE counts (
        device TEXT NOT NULL, name TEXT NOT NULL, value INTEGER NOT NULL,
        PRIMARY KEY (device, name)) WITHOUT ROWID;
    """,
]
#: "GSRJ": tells a run's journal from any other SQLite file.
_APPLICATION = 0x4753524A
_HINT = "restore the run's folder from its backup, or make a new run"


class JournalFull(GradsenseError):
    """The disk is full or failed for now. Nothing of the batch was taken in or acknowledged."""


def _columns(row: type) -> str:
    return ", ".join(column.name for column in fields(row))


def _insert(table: str, row: type, how: str = "INSERT") -> str:
    marks = ", ".join("?" * len(fields(row)))
    return f"{how} INTO {table} ({_columns(row)}) VALUES ({marks})"


def _values(row: Any) -> tuple[Any, ...]:
    return tuple(vars(row).values())


class RunJournal:
    """One run's file. One process at a time has it open.

    Args:
        folder: the run's.
        make: the file, with mode 0600, if it is not there.

    Raises:
        InputError: the file is missing, damaged, foreign, of a newer gradsense, or in use.
        JournalFull: it cannot be opened for now.
    """

    def __init__(self, folder: Path, *, make: bool = False) -> None:
        self.file = folder / FILE
        if not (make or self.file.exists()):
            raise InputError("there is no run", hint="gradsense fleet run makes one", file=folder)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (folder / "lock").touch(mode=0o600)
            self._guard = (folder / "lock").open("r+")
            fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.file.touch(mode=0o600)  # SQLite gives its side files the same mode
        except BlockingIOError:
            self._guard.close()
            raise InputError(
                "another coordinator works on this run", hint="stop it first", file=folder
            ) from None
        except OSError as error:
            raise JournalFull(f"{self.file}: cannot open the journal: {error}") from error
        try:
            with self._guarded():
                self._db = sqlite3.connect(self.file, timeout=10, isolation_level=None)
                self._migrate()
        except BaseException:
            self.close()
            raise

    def _migrate(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != _APPLICATION and (application or version or tables):
            raise InputError("is no run's journal", hint=_HINT, file=self.file)
        if version > len(MIGRATIONS):
            raise InputError(
                f"the journal has version {version}, this gradsense knows {len(MIGRATIONS)}",
                hint="use the gradsense that wrote it",
                file=self.file,
            )
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        # What a batch of large bodies leaves on disk; it is cut back to this.
        self._db.execute("PRAGMA journal_size_limit=67108864")
        migrate(self._db, MIGRATIONS, also=f"PRAGMA application_id={_APPLICATION};")

    def close(self) -> None:
        """Close the file. Nothing is lost if this is never called."""
        if hasattr(self, "_db"):
            self._db.close()
        self._guard.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise JournalFull(f"{self.file}: the journal cannot be used now: {error}") from error
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"the journal is damaged, or is none ({error})", hint=_HINT, file=self.file
            ) from error

    def _all(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._guarded():
            return self._db.execute(query, values).fetchall()

    # Changes --------------------------------------------------------------------------------

    def begin(self, job: str, first: IssuedModel) -> None:
        """Write down the run itself and its version 0.

        Raises:
            InputError: the journal has a run.
        """
        with self._guarded(), transaction(self._db):
            if self._db.execute("SELECT 1 FROM run").fetchone():
                raise InputError("the run exists", hint="give another name", file=self.file)
            self._db.execute("INSERT INTO run VALUES (1, ?, 0, 0)", (job,))
            self._insert_models([first])

    def commit(self, batch: JournalEntry) -> None:
        """Take in one step; once this returns, it is durable.

        Raises:
            JournalFull: it could not be written, no part of it.
        """
        with self._guarded(), transaction(self._db):
            db = self._db
            db.execute(
                "UPDATE run SET now = max(now, ?), widest = max(widest, ?)",
                (batch.now, batch.widest),
            )
            if batch.forget is not None:
                (done,) = db.execute("SELECT max(event) FROM models").fetchone()
                db.execute(
                    "UPDATE events SET body = NULL WHERE id > ? AND id <= ?", (done, batch.forget)
                )
            db.executemany(_insert("events", JournalEvent), map(_values, batch.events))
            self._insert_models(batch.models)
            db.executemany("DELETE FROM pieces WHERE device = ? AND message = ?", batch.gone)
            db.executemany(_insert("pieces", Piece, "INSERT OR IGNORE"), map(_values, batch.pieces))
            db.executemany(
                _insert("devices", DeviceRecord, "INSERT OR REPLACE"),
                map(_values, batch.devices.values()),
            )
            db.executemany(
                "INSERT INTO counts VALUES (?, ?, ?) "
                "ON CONFLICT (device, name) DO UPDATE SET value = value + excluded.value",
                [(*key, value) for key, value in batch.counts.items()],
            )

    def _insert_models(self, models: list[IssuedModel]) -> None:
        rows = []
        for model in models:
            row = vars(model) | {"contributors": json.dumps(model.contributors)}
            rows.append(tuple(row.values()))
        self._db.executemany(_insert("models", IssuedModel), rows)
        if rows:
            self._db.execute(
                "UPDATE models SET file = NULL, file_sha256 = NULL, state = NULL WHERE version "
                "IN (SELECT version FROM models WHERE file IS NOT NULL AND version > 0 "
                "ORDER BY version DESC LIMIT -1 OFFSET ?)",
                (KEPT_MODELS,),
            )

    # Questions ------------------------------------------------------------------------------

    def run(self) -> tuple[str, float]:
        """The job's text, and the largest time that was ever written down.

        Raises:
            InputError: whoever made the run was stopped before it was done.
        """
        rows = self._all("SELECT job, now FROM run")
        if not rows:
            raise InputError(
                "the run was not made completely", hint="make it again", file=self.file
            )
        return str(rows[0][0]), float(rows[0][1])

    def last_event(self) -> int:
        """Id of the newest event; 0 where there is none."""
        ((newest,),) = self._all("SELECT coalesce(max(id), 0) FROM events")
        return int(newest)

    def events(self, after: int) -> list[JournalEvent]:
        """The events behind that id, in order."""
        query = f"SELECT {_columns(JournalEvent)} FROM events WHERE id > ? ORDER BY id"
        return [JournalEvent(*row) for row in self._all(query, (after,))]

    def verdict(self, device: str, sequence: int) -> Outcome | None:
        """What became of this update; None: it never was whole."""
        query = "SELECT body_sha256, refusal FROM events WHERE device = ? AND sequence = ?"
        rows = self._all(query, (device, sequence))
        return Outcome(*rows[0]) if rows else None

    def newest(self) -> IssuedModel:
        """The last model issued; its snapshot is there."""
        (row,) = self._all(
            f"SELECT {_columns(IssuedModel)} FROM models ORDER BY version DESC LIMIT 1"
        )
        issued = dict(zip((column.name for column in fields(IssuedModel)), row, strict=True))
        return IssuedModel(**issued | {"contributors": tuple(json.loads(issued["contributors"]))})

    def hashes(self) -> dict[int, str]:
        """Version to hash, of every model ever issued."""
        return dict(self._all("SELECT version, hash FROM models"))

    def widest(self) -> int:
        """Most messages that any model was published in."""
        ((most,),) = self._all("SELECT widest FROM run")
        return int(most)

    def files(self) -> set[str]:
        """Names of the snapshots that must not be removed."""
        return {name for (name,) in self._all("SELECT file FROM models WHERE file IS NOT NULL")}

    def pieces(self) -> list[Piece]:
        """Of every upload that is not whole, grouped by upload."""
        query = f"SELECT {_columns(Piece)} FROM pieces ORDER BY device, message, place"
        return [Piece(*row) for row in self._all(query)]

    def devices(self) -> dict[str, DeviceRecord]:
        """All that ever spoke, by name."""
        rows = self._all(f"SELECT {_columns(DeviceRecord)} FROM devices ORDER BY name")
        return {row[0]: DeviceRecord(*row) for row in rows}

    def counts(self) -> Counter[tuple[str, str]]:
        """(device or nothing, name) to number, since the run was made."""
        rows = self._all("SELECT device, name, value FROM counts")
        return Counter({(device, name): value for device, name, value in rows})

    def size(self) -> int:
        """Bytes on disk, with what SQLite keeps beside the file."""
        names = (self.file, self.file.with_name(f"{FILE}-wal"))
        return sum(file.stat().st_size for file in names if file.exists())


def newest_snapshot(folder: Path) -> tuple[int, str, str]:
    """Version, file and SHA-256 of a run's newest snapshot, without the coordinator's lock."""
    db = sqlite3.connect(f"file:{folder / FILE}?mode=ro", uri=True, timeout=10)
    try:
        row: tuple[int, str, str] = db.execute(
            "SELECT version, file, file_sha256 FROM models ORDER BY version DESC LIMIT 1"
        ).fetchone()
    finally:
        db.close()
    return row
