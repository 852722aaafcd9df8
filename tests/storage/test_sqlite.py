"""One SQLite file: all or nothing, migrated, and refused in plain words if it is foreign."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from gradsense.errors import InputError
from gradsense.storage.sqlite import Database, Schema, StorageFull, read_only

SCHEMA = Schema(
    what="list of things",
    application=0x12345678,
    migrations=["CREATE TABLE things (name TEXT UNIQUE);"],
    hint="give another",
)
NEWER = replace(
    SCHEMA, migrations=[*SCHEMA.migrations, "ALTER TABLE things ADD COLUMN size INTEGER;"]
)
ALL = "SELECT name FROM things ORDER BY name"


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "things", SCHEMA)


def add(database: Database, *names: str) -> None:
    with database.transaction() as db:
        db.executemany("INSERT INTO things (name) VALUES (?)", [(name,) for name in names])


def test_a_transaction_is_all_or_nothing(database: Database) -> None:
    add(database, "kept")
    with contextlib.suppress(RuntimeError), database.transaction() as db:
        db.execute("INSERT INTO things VALUES ('lost')")
        raise RuntimeError
    with pytest.raises(sqlite3.IntegrityError):  # a defect of the store, not of the file
        add(database, "lost", "kept")
    assert database.all(ALL) == [("kept",)]
    assert read_only(database.file, SCHEMA, ALL) == [("kept",)]


def test_threads_wait_for_each_other(database: Database) -> None:
    groups = [[f"{number}-{place}" for place in range(50)] for number in range(4)]
    threads = [threading.Thread(target=add, args=(database, *names)) for names in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(database.all(ALL)) == 200


def test_it_is_durable_and_its_owners_alone(database: Database) -> None:
    add(database, "one")
    files = list(database.file.parent.iterdir())
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    wanted = {"journal_mode": "wal", "synchronous": 2, "application_id": SCHEMA.application}
    for pragma, value in wanted.items():
        assert database.all(f"PRAGMA {pragma}") == [(value,)]


def test_a_file_without_an_application_id_is_brought_up_to_date(database: Database) -> None:
    add(database, "one")
    database.connection.execute("PRAGMA application_id=0")
    database.close()
    newer = Database(database.file, NEWER)
    assert newer.all("SELECT name, size FROM things") == [("one", None)]
    newer.close()
    with pytest.raises(InputError, match=r"version 2.*the gradsense that wrote it, or give"):
        Database(database.file, SCHEMA)


def test_a_full_disk_can_be_tried_again(database: Database) -> None:
    database.connection.execute("PRAGMA max_page_count=4")
    with pytest.raises(StorageFull, match="full"):
        add(database, "small", "x" * 100_000)
    assert database.all(ALL) == []
    database.connection.execute("PRAGMA max_page_count=1000")
    add(database, "x" * 100_000)


def test_what_is_foreign_or_damaged_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "theirs"
    with sqlite3.connect(file) as db:
        db.execute("CREATE TABLE theirs (x)")
    with pytest.raises(InputError, match="is no list of things"):
        Database(file, SCHEMA)
    Database(tmp_path / "ours", replace(SCHEMA, application=1)).close()
    with pytest.raises(InputError, match="is no list of things"):
        Database(tmp_path / "ours", SCHEMA)
    file.write_bytes(b"no database " * 1000)
    for opening in (lambda: Database(file, SCHEMA), lambda: read_only(file, SCHEMA, ALL)):
        with pytest.raises(InputError, match="damaged, or is no list of things"):
            opening()


@pytest.mark.parametrize("empty", [False, True])
def test_a_file_that_must_be_there_is_not_made(tmp_path: Path, *, empty: bool) -> None:
    file = tmp_path / "things"
    if empty:
        file.touch()
    with pytest.raises(InputError, match=r"list of things is missing or empty; give another"):
        Database(file, SCHEMA, make=False)
    assert [one.stat().st_size for one in tmp_path.iterdir()] == [0] * empty
    add(Database(file, SCHEMA), "kept")
    assert Database(file, SCHEMA, make=False).all(ALL) == [("kept",)]
