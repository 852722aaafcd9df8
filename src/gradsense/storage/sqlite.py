"""SQLite files under the stores: opening, migrations, transactions, and errors in plain words.

A store says what its file is (``Schema``) and keeps its own statements. Its file has mode 0600 and
runs in WAL mode: a killed process loses nothing that was committed.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from gradsense.errors import GradsenseError, InputError, input_errors
from gradsense.storage import files

Rows = list[tuple[Any, ...]]


class StorageFull(GradsenseError):
    """The disk is full or failed for now. Nothing of the transaction was taken in; try again."""


@dataclass(frozen=True)
class Schema:
    """What all files of one store have in common.

    Attributes:
        what: the file's name in messages, such as "run's journal".
        application: SQLite's application id, which distinguishes these files from others'.
        migrations: statements for each version of the schema, in order; each brings a file from
            one version to the next.
        hint: what to do about a file that is damaged or foreign.
        synchronous: FULL survives a loss of power; NORMAL may then lose the last transactions.
        keep_bytes: of the write-ahead log that stay on disk after a large transaction.
        oldest: files of a version before this one are refused, and stay as they are.
    """

    what: str
    application: int
    migrations: Sequence[str]
    hint: str
    synchronous: Literal["FULL", "NORMAL"] = "FULL"
    keep_bytes: int = 4 << 20
    oldest: int = 1


class Database:
    """One open file. Threads may share it; a lock serialises them.

    Args:
        make: the file, if it is not there; else it must be there, and not empty.

    Raises:
        InputError: it is damaged, foreign, or of a newer or too old a gradsense; or it is missing
            or empty, and is not to be made.
        StorageFull: it cannot be opened for now.
    """

    def __init__(self, file: Path, schema: Schema, *, make: bool = True) -> None:
        self.file, self._schema, self._lock = file, schema, threading.RLock()
        self._guard: BinaryIO | None = None
        try:
            # SQLite takes an empty file for a new one; a full disk or a kill may have emptied it.
            if not make and not (file.exists() and file.stat().st_size):
                raise InputError(
                    f"the {schema.what} is missing or empty", hint=schema.hint, file=file
                )
            file.touch(mode=0o600)  # SQLite gives its side files the same mode
        except OSError as error:
            raise StorageFull(f"{file}: cannot be opened: {error}") from error
        with _translated(file, schema):
            self.connection = sqlite3.connect(
                file, timeout=10, check_same_thread=False, isolation_level=None
            )
        try:
            with _translated(file, schema):
                self._migrate()
        except BaseException:
            self.close()
            raise

    @classmethod
    def of_state(
        cls, folder: Path, name: str, schema: Schema, *, lock: str | None, busy: str
    ) -> Database:
        """A file in a state folder, which is made if it is not there.

        Args:
            lock: a file beside it that keeps other processes out until this one closes the
                database; None lets them in.
            busy: what to say them.

        Raises:
            InputError: the folder cannot be used, another process holds the lock, or the file is
                damaged, foreign or of a newer gradsense.
            StorageFull: it cannot be opened for now.
        """
        hint = "give a writable folder as --state"
        with input_errors("cannot keep its state there", hint=hint, file=folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            taken = InputError(busy, hint="stop it, or give another --state", file=folder)
            guard = None if lock is None else files.lock(folder / lock, taken)
        try:
            database = cls(folder / name, schema)
        except BaseException:
            if guard is not None:
                guard.close()
            raise
        database._guard = guard
        return database

    def _pragma(self, name: str) -> int:
        return int(self.connection.execute(f"PRAGMA {name}").fetchone()[0])

    def _migrate(self) -> None:
        db, schema = self.connection, self._schema
        version, application = self._pragma("user_version"), self._pragma("application_id")
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        # The first versions of some stores had no application id.
        ours = application == schema.application or (not application and (version or not tables))
        if not ours:
            raise InputError(f"is no {schema.what}", hint=schema.hint, file=self.file)
        known = range(schema.oldest, len(schema.migrations) + 1)
        if version and version not in known:
            raise InputError(
                f"the {schema.what} has version {version}, "
                f"this gradsense knows {' to '.join(map(str, sorted({known[0], known[-1]})))}",
                hint=f"use the gradsense that wrote it, or {schema.hint}",
                file=self.file,
            )
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={schema.synchronous}")
        db.execute(f"PRAGMA journal_size_limit={schema.keep_bytes}")
        for number, step in enumerate(schema.migrations[version:], version + 1):
            db.executescript(
                f"BEGIN IMMEDIATE; {step} PRAGMA user_version={number}; "
                f"PRAGMA application_id={schema.application}; COMMIT;"
            )

    def close(self) -> None:
        """Close the file. Nothing is lost if this is never called."""
        with self._lock:
            self.connection.close()
        if self._guard is not None:
            self._guard.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that the block does, or nothing if it ends with an error.

        Raises:
            StorageFull: it could not be written, no part of it.
            InputError: the file is damaged.
        """
        db = self.connection
        with self._lock, _translated(self.file, self._schema):
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # SQLite itself rolls back on some errors
                    db.execute("ROLLBACK")
                raise

    def all(self, query: str, values: Sequence[object] = ()) -> Rows:
        """Every row of a query.

        Raises: as ``transaction``.
        """
        with self._lock, _translated(self.file, self._schema):
            return self.connection.execute(query, values).fetchall()


def read_only(file: Path, schema: Schema, query: str, values: tuple[object, ...] = ()) -> Rows:
    """Rows of a file that another process may have open and be writing to.

    Raises:
        InputError: it is damaged.
        StorageFull: it cannot be read for now.
    """
    with _translated(file, schema):
        db = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=10)
        try:
            return db.execute(query, values).fetchall()
        finally:
            db.close()


@contextmanager
def _translated(file: Path, schema: Schema) -> Iterator[None]:
    """SQLite's errors as ours; a broken constraint is a defect of the store and stays as it is."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StorageFull(f"{file}: the {schema.what} cannot be used now: {error}") from error
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise
    except sqlite3.DatabaseError as error:
        raise InputError(
            f"is damaged, or is no {schema.what} ({error})", hint=schema.hint, file=file
        ) from error
