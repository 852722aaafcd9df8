"""The rotated files of a log."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from gradsense.data.sources.logfile import Rotated

_DATED_FOLDER = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
#: What a rotation adds to a name: a number, a date, a time or a range of times.
_ADDED = re.compile(r"[-_.:TZ0-9]*(\.old|\.bak)?")
_NUMBER = re.compile(r"\.([0-9]{1,4})$")
#: Some packers keep only whole seconds of a file's time.
_SLACK_NS = 2 * 10**9


def rotated(path: Path, archive: Path | None, since: int) -> list[Rotated]:
    """The rotated files of the log ``path`` that were last written at ``since`` or later.

    They stand in the log's own folder, or in ``archive`` and its dated folders
    (``2026-11-22/``, as zeekctl makes them), under names such as ``conn.log.1``,
    ``conn.2026-11-22-23-00-00.log`` or ``conn.23:00:00-00:00:00.log.gz``. Where a file stands
    beside its own ``.gz``, it is still being packed, and only the file itself counts.

    Returns:
        Oldest first, by their last write; of the same time the higher number first.
    """
    found = [
        file
        for folder in _folders(path, archive, since)
        for file in _of(folder, path.name)
        if file.modified >= since - _SLACK_NS
    ]
    return sorted(found, key=lambda file: (file.modified, -_number(file.path.name), file.path))


def _folders(path: Path, archive: Path | None, since: int) -> Iterator[Path]:
    yield path.parent
    if archive is None:
        return
    yield archive
    for entry in _entries(archive):
        # A folder's own time is that of the last file put into it.
        dated = _DATED_FOLDER.fullmatch(entry.name) and entry.is_dir()
        found = _still_there(entry) if dated else None
        if found is not None and found.modified >= since - _SLACK_NS:
            yield found.path


def _of(folder: Path, log: str) -> Iterator[Rotated]:
    entries = _entries(folder)
    names = {entry.name for entry in entries}
    for entry in entries:
        packing = entry.name.endswith(".gz") and entry.name.removesuffix(".gz") in names
        if entry.name == log or packing or not _belongs(entry.name, log):
            continue
        found = _still_there(entry)
        if found is not None and entry.is_file():
            yield found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _still_there(entry: os.DirEntry[str]) -> Rotated | None:
    """None where it went away after its folder was listed."""
    try:
        return Rotated.at(Path(entry.path))
    except OSError:
        return None


def _belongs(name: str, log: str) -> bool:
    """Whether ``name`` is the log's name with a number or a date added to it."""
    stem, *endings = log.split(".")
    if not name.startswith(stem):
        return False
    rest = name[len(stem) :].removesuffix(".gz")
    for ending in endings:
        rest = rest.replace(f".{ending}", "", 1)
    return _ADDED.fullmatch(rest) is not None


def _number(name: str) -> int:
    match = _NUMBER.search(name.removesuffix(".gz"))
    return int(match[1]) if match else 0
