"""What rests on a disk is written whole or not at all: folders and database transactions."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A fresh folder to fill, which takes the place of ``path`` if the block ends well.

    A folder cannot be swapped in one call: for a moment there is none, but never a half one. What
    a killed process left is cleared away by the next, as the names are fixed.

    Raises:
        OSError: it cannot be written; ``path`` is as it was.
    """
    fresh, stale = (path.parent / f".{path.name}.{end}" for end in ("new", "old"))
    for leftover in (fresh, stale):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        if path.exists():
            path.rename(stale)
        try:
            fresh.rename(path)
        except OSError:
            if stale.exists():
                stale.rename(path)
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(stale, ignore_errors=True)


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All that the block does to ``db``, or nothing if it ends with an error.

    Args:
        db: opened with ``isolation_level=None``.

    Raises:
        sqlite3.OperationalError: it cannot be written.
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite itself rolls back on some errors
            db.execute("ROLLBACK")
        raise


def migrate(db: sqlite3.Connection, migrations: Sequence[str], *, also: str = "") -> None:
    """Bring a database from the version that it has to the newest, a transaction a step.

    Args:
        db: of a version that is not beyond ``migrations``; a new file has version 0.
        migrations: one for each version of the schema, in order.
        also: statements that belong to every step.

    Raises:
        sqlite3.OperationalError: it cannot be written.
    """
    (version,) = db.execute("PRAGMA user_version").fetchone()
    for number, step in enumerate(migrations[version:], version + 1):
        db.executescript(f"BEGIN IMMEDIATE; {step} PRAGMA user_version={number}; {also} COMMIT;")
