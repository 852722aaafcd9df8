"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path

import pytest

from gradsense.errors import InputError
from gradsense.storage.files import fresh, lock, replacing, temporary, write


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


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    file = tmp_path / "it"
    temporary(file).write_bytes(b"left by a killed process, and longer than the next")
    for body in (b"one", b"two"):
        write(file, body)
    with contextlib.suppress(RuntimeError), fresh(file) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert file.read_bytes() == b"two"
    assert names(tmp_path) == ["it"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    busy = InputError("is in use", hint="wait")
    guard = lock(tmp_path / "lock", busy)
    with pytest.raises(InputError, match="in use"):
        lock(tmp_path / "lock", busy)
    guard.close()
    lock(tmp_path / "lock", busy).close()
