"""A run's journal: one SQLite file with every event, every model issued, unfinished uploads.

The file is an event log. ``Coordinator`` is pure, so its state is the last snapshot, which every
aggregation makes, and the events since, played again. One transaction takes in a whole batch of
messages and all that follows from them; only after it may anything be acknowledged. What was
committed survives a loss of power.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from gradsense.coordinator.records import (
    DeviceRecord,
    IssuedModel,
    JournalEntry,
    JournalEvent,
    Piece,
    UpdateOutcome,
)
from gradsense.coordinator.snapshots import KEPT_MODELS, Snapshots
from gradsense.errors import InputError
from gradsense.federation.contributions import Contribution
from gradsense.storage import files
from gradsense.storage.sqlite import Database, Schema, StorageFull
from gradsense.transport.chunks import Chunk

FILE = "journal.sqlite3"
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
    # Protocol 2: an update's body does not repeat its base; pieces of version 1 have other names.
    """
    ALTER TABLE events ADD COLUMN base_version INTEGER NOT NULL DEFAULT 0;
    DELETE FROM pieces;
    """,
    # What each device contributed to a sum; snapshots of such a run hold the model alone.
    """
    CREATE TABLE contributions (
        device TEXT PRIMARY KEY, updates INTEGER NOT NULL, records REAL NOT NULL,
        tensors BLOB NOT NULL) WITHOUT ROWID;
    ALTER TABLE run ADD COLUMN last_order INTEGER NOT NULL DEFAULT 0;
    """,
    # By its epoch devices know a run that was restored from a backup.
    """
    ALTER TABLE run ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;
    """,
]
SCHEMA = Schema(
    what="run's journal",
    application=0x4753524A,  # "GSRJ"
    migrations=MIGRATIONS,
    hint="restore the run's folder from its backup, or make a new run",
    keep_bytes=64 << 20,
    oldest=2,  # a run of before is of a job that cannot be read either
)


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
        StorageFull: it cannot be opened for now.
    """

    def __init__(self, folder: Path, *, make: bool = False) -> None:
        self.file, self.snapshots = folder / FILE, Snapshots(folder)
        if not (make or self.file.exists()):
            raise InputError("there is no run", hint="gradsense fleet run makes one", file=folder)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            busy = InputError(
                "another coordinator works on this run", hint="stop it first", file=folder
            )
            self._guard = files.lock(folder / "lock", busy)
        except OSError as error:
            raise StorageFull(f"{folder}: the run cannot be opened: {error}") from error
        try:
            self._db = Database(self.file, SCHEMA)
        except BaseException:
            self._guard.close()
            raise

    def close(self) -> None:
        """Close the file. Nothing is lost if this is never called."""
        self._db.close()
        self._guard.close()

    # Changes --------------------------------------------------------------------------------

    def begin(self, job: str, first: IssuedModel) -> None:
        """Write the run itself and its version 0.

        Raises:
            InputError: the journal has a run.
        """
        with self._db.transaction() as db:
            if db.execute("SELECT 1 FROM run").fetchone():
                raise InputError("the run exists", hint="give another name", file=self.file)
            db.execute("INSERT INTO run (one, job, now, widest) VALUES (1, ?, 0, 0)", (job,))
            _insert_models(db, [first])

    def open(self, wall: float) -> int:
        """Begin a new epoch, later than any before it, and return it once it is durable.

        A journal that was restored from a backup knows nothing of the epochs since then. The wall
        clock keeps the new one above them.

        Args:
            wall: seconds since 1970.

        Raises:
            StorageFull: it could not be written.
        """
        with self._db.transaction() as db:
            db.execute("UPDATE run SET epoch = max(epoch + 1, ?)", (int(wall),))
        rows = self._db.all("SELECT epoch FROM run")
        return int(rows[0][0]) if rows else 0

    def commit(self, batch: JournalEntry) -> None:
        """Take in one step; once this returns, it is durable.

        Raises:
            StorageFull: it could not be written, no part of it.
        """
        with self._db.transaction() as db:
            db.execute(
                "UPDATE run SET now = max(now, ?), widest = max(widest, ?), "
                "last_order = max(last_order, ?)",
                (batch.now, batch.widest, batch.order),
            )
            if batch.forget is not None:
                (done,) = db.execute("SELECT max(event) FROM models").fetchone()
                db.execute(
                    "UPDATE events SET body = NULL WHERE id > ? AND id <= ?", (done, batch.forget)
                )
            db.executemany(_insert("events", JournalEvent), map(_values, batch.events))
            _insert_models(db, batch.models, self.snapshots.kept)
            for device, own in batch.contributions.items():
                db.execute("DELETE FROM contributions WHERE device = ?", (device,))
                if own is not None:
                    row = device, own.updates, own.records, save_tensors(dict(own.tensors))
                    db.execute("INSERT INTO contributions VALUES (?, ?, ?, ?)", row)
            db.executemany("DELETE FROM pieces WHERE device = ? AND message = ?", batch.gone)
            db.executemany(
                "INSERT OR IGNORE INTO pieces (device, at, message, place, count, total, digest, "
                "piece) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(own.device, own.at, *vars(own.chunk).values()) for own in batch.pieces],
            )
            db.executemany(
                _insert("devices", DeviceRecord, "INSERT OR REPLACE"),
                map(_values, batch.devices.values()),
            )
            db.executemany(
                "INSERT INTO counts VALUES (?, ?, ?) "
                "ON CONFLICT (device, name) DO UPDATE SET value = value + excluded.value",
                [(*key, value) for key, value in batch.counts.items()],
            )

    # Questions ------------------------------------------------------------------------------

    def run(self) -> tuple[str, float]:
        """The job's text, and the largest time in the journal.

        Raises:
            InputError: the process that made the run was stopped before it was done.
        """
        rows = self._db.all("SELECT job, now FROM run")
        if not rows:
            raise incomplete(self.file)
        return str(rows[0][0]), float(rows[0][1])

    def events(self, after: int) -> list[JournalEvent]:
        """The events behind that id, in order."""
        query = f"SELECT {_columns(JournalEvent)} FROM events WHERE id > ? ORDER BY id"
        return [JournalEvent(*row) for row in self._db.all(query, (after,))]

    def verdict(self, device: str, sequence: int) -> UpdateOutcome | None:
        """What became of this update; None: it never was whole."""
        query = "SELECT body_sha256, refusal FROM events WHERE device = ? AND sequence = ?"
        rows = self._db.all(query, (device, sequence))
        return UpdateOutcome(*rows[0]) if rows else None

    def newest(self) -> IssuedModel:
        """The last model issued; its snapshot is there."""
        query = f"SELECT {_columns(IssuedModel)} FROM models ORDER BY version DESC LIMIT 1"
        (row,) = self._db.all(query)
        issued = IssuedModel(*row)
        return replace(issued, contributors=tuple(json.loads(str(issued.contributors))))

    def hashes(self) -> dict[int, str]:
        """Version to hash, of every model ever issued."""
        return dict(self._db.all("SELECT version, hash FROM models"))

    def widest(self) -> int:
        """The largest number of messages that any model was published in."""
        ((most,),) = self._db.all("SELECT widest FROM run")
        return int(most)

    def files(self) -> set[str]:
        """Names of the snapshots that must not be removed."""
        return {name for (name,) in self._db.all("SELECT file FROM models WHERE file IS NOT NULL")}

    def pieces(self) -> list[Piece]:
        """Of every upload that is not whole, grouped by upload."""
        rows = self._db.all(
            "SELECT device, at, message, place, count, total, digest, piece FROM pieces "
            "ORDER BY device, message, place"
        )
        return [Piece(device, Chunk(*chunk), at) for device, at, *chunk in rows]

    def last_order(self) -> int:
        """Id of the last of the operator's orders that was carried out."""
        ((last,),) = self._db.all("SELECT last_order FROM run")
        return int(last)

    def issued(self, version: int) -> IssuedModel | None:
        """A model whose snapshot is still there."""
        query = f"SELECT {_columns(IssuedModel)} FROM models WHERE version = ? AND file IS NOT NULL"
        rows = self._db.all(query, (version,))
        return IssuedModel(*rows[0]) if rows else None

    def devices(self) -> dict[str, DeviceRecord]:
        """All that ever sent anything, by name."""
        rows = self._db.all(f"SELECT {_columns(DeviceRecord)} FROM devices ORDER BY name")
        return {row[0]: DeviceRecord(*row) for row in rows}

    def counts(self) -> Counter[tuple[str, str]]:
        """(device or nothing, name) to number, since the run was made."""
        rows = self._db.all("SELECT device, name, value FROM counts")
        return Counter({(device, name): value for device, name, value in rows})

    def size(self) -> int:
        """Bytes on disk, with what SQLite keeps beside the file."""
        names = (self.file, self.file.with_name(f"{FILE}-wal"))
        return sum(file.stat().st_size for file in names if file.exists())


def contribution_of(row: tuple[Any, ...]) -> Contribution:
    updates, records, tensors = row
    try:
        return Contribution(int(updates), float(records), load_tensors(tensors))
    except SafetensorError as error:
        raise InputError(f"a contribution is damaged ({error})", hint=SCHEMA.hint) from error


def _insert_models(
    db: sqlite3.Connection, models: list[IssuedModel], kept: int = KEPT_MODELS
) -> None:
    rows = []
    for model in models:
        row = vars(model) | {"contributors": json.dumps(model.contributors)}
        rows.append(tuple(row.values()))
    db.executemany(_insert("models", IssuedModel), rows)
    if rows:
        db.execute(
            "UPDATE models SET file = NULL, file_sha256 = NULL, state = NULL WHERE version "
            "IN (SELECT version FROM models WHERE file IS NOT NULL AND version > 0 "
            "ORDER BY version DESC LIMIT -1 OFFSET ?)",
            (kept,),
        )


def incomplete(file: Path) -> InputError:
    return InputError("the run was not made completely", hint="make it again", file=file)
