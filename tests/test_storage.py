"""Folders and transactions that are written whole or not at all."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from gradsense.storage.folders import replacing, transaction


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


def test_it_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with replacing(tmp_path / "deep" / "it") as fresh:
            (fresh / "file").write_text(text)
    assert (tmp_path / "deep" / "it" / "file").read_text() == "two"
    assert names(tmp_path / "deep") == ["it"]


def test_what_was_there_stays_if_anything_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with replacing(tmp_path / "it") as fresh:
        (fresh / "file").write_text("old")
    with contextlib.suppress(RuntimeError), replacing(tmp_path / "it") as fresh:
        (fresh / "file").write_text("half")
        raise RuntimeError
    assert (tmp_path / "it" / "file").read_text() == "old"
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.name.endswith(".new"):
            raise OSError("the disk is gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="gone"), replacing(tmp_path / "it") as fresh:
        (fresh / "file").write_text("new")
    assert (tmp_path / "it" / "file").read_text() == "old"
    assert names(tmp_path) == ["it"]


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".it.new").mkdir()
    (tmp_path / ".it.old").mkdir()
    with replacing(tmp_path / "it") as fresh:
        assert names(fresh) == []
    assert names(tmp_path) == ["it"]


def test_a_transaction_is_all_or_nothing() -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("CREATE TABLE things (name TEXT)")
    with transaction(db):
        db.execute("INSERT INTO things VALUES ('kept')")
    with contextlib.suppress(RuntimeError), transaction(db):
        db.execute("INSERT INTO things VALUES ('lost')")
        raise RuntimeError
    assert db.execute("SELECT name FROM things").fetchall() == [("kept",)]
    assert not db.in_transaction
