"""Files and folders that are written whole or not at all, locks between processes, SQLite files.

A store over SQLite says what its file is (``Schema``) and keeps its own statements. Its file has
mode 0600 and runs in WAL mode: a killed process loses nothing that was committed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from gradsense.errors import GradsenseError, InputError

_Model = TypeVar("_Model", bound=BaseModel)


def temporary(file: Path) -> Path:
    """Where ``fresh`` writes what is to become ``file``; a killed process may leave it."""
    return file.with_name(f".{file.name}.new")


@contextmanager
def fresh(file: Path, *, sync: bool = True, mode: int = 0o600) -> Iterator[BinaryIO]:
    """A new file to fill, which takes the place of ``file`` if the block ends well.

    Args:
        sync: it survives a loss of power once the block has ended: the file is synced before it is
            renamed, its folder after.
        mode: permissions; by default only the owner may read it.

    Raises:
        OSError: it cannot be written; ``file`` is as it was.
    """
    new = temporary(file)
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w+b") as stream:
            yield stream
            stream.flush()
            if sync:
                os.fsync(descriptor)
        os.rename(new, file)
    finally:
        new.unlink(missing_ok=True)
    if sync:
        parent = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)


def write(file: Path, body: bytes, *, sync: bool = True, mode: int = 0o600) -> None:
    """Write a whole file, as ``fresh`` does."""
    with fresh(file, sync=sync, mode=mode) as stream:
        stream.write(body)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A fresh folder to fill, which takes the place of ``path`` if the block ends well.

    A folder cannot be swapped in one call: for a moment there is none, but never a half one. What
    a killed process left is cleared away by the next, as the names are fixed.

    Raises:
        OSError: it cannot be written; ``path`` is as it was.
    """
    new, stale = (path.parent / f".{path.name}.{end}" for end in ("new", "old"))
    for leftover in (new, stale):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        if path.exists():
            path.rename(stale)
        try:
            new.rename(path)
        except OSError:
            if stale.exists():
                stale.rename(path)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(stale, ignore_errors=True)


def lock(file: Path, busy: InputError) -> BinaryIO:
    """A lock that this process holds until it closes the file or ends.

    Raises:
        InputError: ``busy``, if another process holds it.
        OSError: the file cannot be opened.
    """
    file.touch(mode=0o600)
    guard = file.open("r+b")
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        guard.close()
        raise busy from None
    return guard


def read(file: Path, *, limit: int, hint: str) -> bytes:
    """A whole file of at most ``limit`` bytes.

    Raises:
        InputError: it cannot be read or is larger; ``hint`` says what to do about it.
    """
    try:
        with file.open("rb") as stream:
            found = stream.read(limit + 1)
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror or error})", hint=hint, file=file
        ) from error
    if len(found) > limit:
        raise InputError("is too large for what it should be", hint=hint, file=file)
    return found


def parsed(text: bytes | str, kind: type[_Model], file: Path) -> _Model:
    """What JSON from that file says.

    Raises:
        InputError: names the first field that does not fit.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        raise InputError(
            fault["msg"],
            hint="copy it again, or use the gradsense that wrote it",
            file=file,
            field=".".join(str(part) for part in fault["loc"]) or None,
        ) from error


# SQLite -------------------------------------------------------------------------------------

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
    """

    what: str
    application: int
    migrations: Sequence[str]
    hint: str
    synchronous: Literal["FULL", "NORMAL"] = "FULL"
    keep_bytes: int = 4 << 20


class Database:
    """One open file. Threads may share it; a lock serialises them.

    Args:
        file: made if it is not there.

    Raises:
        InputError: it is damaged, foreign or of a newer gradsense.
        StorageFull: it cannot be opened for now.
    """

    def __init__(self, file: Path, schema: Schema) -> None:
        self.file, self._schema, self._lock = file, schema, threading.RLock()
        try:
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
        if version > len(schema.migrations):
            raise InputError(
                f"the {schema.what} has version {version}, "
                f"this gradsense knows {len(schema.migrations)}",
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


def read_only(file: Path, schema: Schema, query: str) -> Rows:
    """Rows of a file that another process may have open and be writing to.

    Raises:
        InputError: it is damaged.
        StorageFull: it cannot be read for now.
    """
    with _translated(file, schema):
        db = sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)
        try:
            return db.execute(query).fetchall()
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
