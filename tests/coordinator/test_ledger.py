"""The journal's file: whole batches or nothing, and clear words about files that are none."""

from __future__ import annotations

import sqlite3
import stat
from collections import Counter
from pathlib import Path

import pytest

from gradsense.coordinator.journal import FILE, MIGRATIONS, RunJournal
from gradsense.coordinator.lookup import newest_snapshot
from gradsense.coordinator.records import (
    DeviceRecord,
    IssuedModel,
    JournalEntry,
    JournalEvent,
    Piece,
    UpdateOutcome,
)
from gradsense.errors import InputError
from gradsense.storage.sqlite import StorageFull
from gradsense.transport.chunks import Chunk

FIRST = IssuedModel(0, "00", 0.0, 0, (), file="version-0.safetensors", file_sha256="aa", state="{}")


@pytest.fixture
def ledger(tmp_path: Path) -> RunJournal:
    made = RunJournal(tmp_path, make=True)
    made.begin("{}", FIRST)
    return made


def said(number: int, device: str = "a", **fields: object) -> JournalEvent:
    values = {"kind": "update", "sequence": number, "body_sha256": "ab", "body": b"body"} | fields
    return JournalEvent(number, float(number), device=device, **values)  # type: ignore[arg-type]


def issued(version: int, event: int) -> IssuedModel:
    name = f"version-{version}.safetensors"
    return IssuedModel(
        version, f"h{version}", 1.0, event, ("a",), file=name, file_sha256="aa", state="{}"
    )


def reopened(ledger: RunJournal) -> RunJournal:
    ledger.close()
    return RunJournal(ledger.file.parent)


def test_everything_comes_back_as_it_was(ledger: RunJournal) -> None:
    join = JournalEvent(1, 0.5, "join", "a")
    update = said(2, size=10, samples=3)
    refused = said(3, kind="refused", refusal="bad-body", body=None)
    pieces = [Piece("b", Chunk(b"m", place, 3, 30, b"d", bytes(10)), 1.0) for place in (0, 2)]
    device = DeviceRecord("a", held=4, seen=2.0, bytes=7, sequence=3)
    counts = Counter({("", "duplicates"): 2, ("a", "refused:bad-body"): 1})
    batch = JournalEntry(
        9.0, [join, update, refused], [], pieces, set(), {"a": device}, counts, widest=4
    )
    ledger.commit(batch)
    ledger = reopened(ledger)
    assert ledger.events(0) == [join, update, refused]
    assert ledger.events(2) == [refused]
    assert ledger.events(0)[-1].id == 3
    assert ledger.pieces() == pieces
    assert ledger.devices() == {"a": device}
    assert ledger.counts() == counts
    assert ledger.run() == ("{}", 9.0)
    assert ledger.widest() == 4
    assert ledger.verdict("a", 2) == UpdateOutcome("ab", "")
    assert ledger.verdict("a", 3) == UpdateOutcome("ab", "bad-body")
    assert ledger.verdict("a", 4) is None
    assert ledger.newest() == FIRST


def test_counts_add_up_and_time_never_falls(ledger: RunJournal) -> None:
    for now in (5.0, 3.0):
        ledger.commit(JournalEntry(now, counts=Counter({("", "duplicates"): 2}), widest=int(now)))
    assert ledger.counts() == {("", "duplicates"): 4}
    assert ledger.run()[1] == 5.0
    assert ledger.widest() == 5


def test_pieces_that_came_again_are_kept_once_and_go_together(ledger: RunJournal) -> None:
    piece = Piece("b", Chunk(b"m", 0, 3, 30, b"d", b"x"), 1.0)
    ledger.commit(JournalEntry(1.0, pieces=[piece, piece]))
    ledger.commit(JournalEntry(1.0, pieces=[piece]))
    assert ledger.pieces() == [piece]
    fresh = Piece("b", Chunk(b"m", 1, 3, 30, b"d", b"x"), 1.0)
    ledger.commit(JournalEntry(1.0, pieces=[fresh], gone={("b", b"m")}))
    assert ledger.pieces() == [fresh]


def test_aggregated_bodies_are_forgotten(ledger: RunJournal) -> None:
    ledger.commit(JournalEntry(1.0, [said(1), said(2)]))
    ledger.commit(JournalEntry(1.0, [said(3)], [issued(1, 2)], forget=2))
    assert [event.body for event in ledger.events(0)] == [None, None, b"body"]
    ledger.commit(JournalEntry(1.0, [], [issued(2, 3)], forget=3))
    assert ledger.events(2)[0].body is None


def test_the_last_snapshots_keep_their_files(ledger: RunJournal) -> None:
    ledger.snapshots.kept = 5
    for version in range(1, 8):
        ledger.commit(JournalEntry(1.0, models=[issued(version, 0)]))
    assert ledger.files() == {f"version-{number}.safetensors" for number in (0, 3, 4, 5, 6, 7)}
    assert ledger.hashes() == {0: "00"} | {number: f"h{number}" for number in range(1, 8)}
    assert ledger.newest() == issued(7, 0)


def test_a_batch_that_fails_leaves_nothing(ledger: RunJournal) -> None:
    ledger._db.connection.execute("PRAGMA max_page_count=40")
    large = said(1, body=bytes(1 << 20))
    with pytest.raises(StorageFull, match="full"):
        ledger.commit(JournalEntry(1.0, [large], devices={"a": DeviceRecord("a")}))
    assert ledger.events(0) == []
    assert ledger.devices() == {}
    ledger.commit(JournalEntry(1.0, [said(1)]))
    assert len(ledger.events(0)) == 1


def test_only_the_owner_may_read_it(ledger: RunJournal) -> None:
    ledger.commit(JournalEntry(1.0, [said(1)]))
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in ledger.file.parent.glob("j*")}
    assert modes.keys() >= {FILE, f"{FILE}-wal"}
    assert set(modes.values()) == {0o600}


def test_commits_are_synced(ledger: RunJournal) -> None:
    assert ledger._db.connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert ledger._db.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


# Files that are none ----------------------------------------------------------------------------


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database " * 1000)
    with pytest.raises(InputError, match="damaged, or is no run's journal"):
        RunJournal(tmp_path)


def test_another_programs_database(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / FILE)
    db.execute("CREATE TABLE theirs (x)")
    db.commit()
    db.close()
    with pytest.raises(InputError, match="no run's journal"):
        RunJournal(tmp_path)
    db = sqlite3.connect(tmp_path / FILE)
    assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]


def test_a_newer_gradsense(ledger: RunJournal) -> None:
    ledger._db.connection.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    with pytest.raises(InputError, match="use the gradsense that wrote it"):
        reopened(ledger)


def test_a_journal_of_before_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / FILE
    with sqlite3.connect(file) as db:
        db.executescript(f"{MIGRATIONS[0]} PRAGMA user_version=1;")
    before = file.read_bytes()
    with pytest.raises(InputError, match="has version 1, this gradsense knows 2"):
        RunJournal(tmp_path)
    assert file.read_bytes() == before


def test_a_damaged_page(ledger: RunJournal) -> None:
    events = [said(number, body=bytes(5000)) for number in range(1, 50)]
    ledger.commit(JournalEntry(1.0, events))
    ledger.close()
    data = bytearray(ledger.file.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    ledger.file.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        RunJournal(ledger.file.parent).events(0)


def test_a_run_that_was_made_by_half(tmp_path: Path) -> None:
    made = RunJournal(tmp_path, make=True)
    with pytest.raises(InputError, match="not made completely"):
        made.run()
    made.begin("{}", FIRST)
    with pytest.raises(InputError, match="the run exists"):
        made.begin("{}", FIRST)


def test_an_empty_file_has_no_model(tmp_path: Path) -> None:
    (tmp_path / FILE).touch()
    with pytest.raises(InputError, match="not made completely"):
        newest_snapshot(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no run"):
        RunJournal(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_one_process_at_a_time(ledger: RunJournal) -> None:
    with pytest.raises(InputError, match="another coordinator"):
        RunJournal(ledger.file.parent)
    reopened(ledger).close()
