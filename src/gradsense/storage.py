"""What rests on a disk is written whole or not at all: folders and database transactions."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
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
