"""Files and folders that are written whole or not at all, locks between processes, SQLite files.

A store over SQLite says what its file is (``Schema``) and keeps its own statements. Its file has
mode 0600 and runs in WAL mode: a killed process loses nothing that was committed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydantic import BaseModel, ValidationError

from gradsense.errors import InputError

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
