"""The files of one log: an open file or pipe, read forwards as whole lines, and rotated files."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import select
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from gradsense.data.sources.lines import GZIP_MAGIC, WholeLines

#: How much of a file's beginning identifies it: a Zeek header with its #open time and
#: some records, or about three JSON records.
HEAD_BYTES = 1024
#: Fewer bytes are the same in many logs ("#separator \\x09") and identify nothing.
MIN_HEAD_BYTES = 64

_DATED_FOLDER = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
#: What a rotation adds to a name: a number, a date, a time or a range of times.
_ADDED = re.compile(r"[-_.:TZ0-9]*(\.old|\.bak)?")
_NUMBER = re.compile(r"\.([0-9]{1,4})$")
#: Some packers keep only whole seconds of a file's time.
_SLACK_NS = 2 * 10**9

_NEVER = 2**63  # later than every time of a file


class LogHead(BaseModel):
    """The fingerprint of the first ``size`` bytes of a file, unpacked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=0, le=HEAD_BYTES)
    sha256: str

    @classmethod
    def of(cls, first: bytes) -> LogHead:
        return cls(size=len(first), sha256=hashlib.sha256(first).hexdigest())

    def begins(self, first: bytes) -> bool:
        """Whether a file whose first bytes are ``first`` begins with these."""
        return len(first) >= self.size and LogHead.of(first[: self.size]) == self

    @property
    def identifies(self) -> bool:
        return self.size >= MIN_HEAD_BYTES


class LogFile:
    """One log from its beginning, or from where ``resume`` puts it.

    Opening and reading raise OSError. A gzip file is read once through; a damaged one ends where
    the damage is. A plain file may grow: its end is only the end so far.

    Attributes:
        identity: device and inode.
        packed: whether it is a gzip file.
        over: whether nothing can come any more: the end of a gzip file or a pipe.
        damaged: whether a gzip file ended where it should not.
        consumed: bytes read so far, unpacked.
    """

    def __init__(self, descriptor: int, *, pipe: bool = False) -> None:
        self._raw = io.FileIO(descriptor, "rb")
        status = os.fstat(descriptor)
        self.identity = (status.st_dev, status.st_ino)
        self.pipe = pipe
        self.packed = not pipe and os.pread(descriptor, 2, 0) == GZIP_MAGIC
        self._gzip = gzip.GzipFile(fileobj=self._raw) if self.packed else None
        self.over = False
        self.damaged = False
        self.consumed = 0
        self._first = b""
        self._lines = WholeLines()
        self._seen: tuple[int, int] | None = None  # size and time at the last check
        self._written = _NEVER

    @classmethod
    def open(cls, path: Path) -> LogFile:
        # Without O_NONBLOCK, opening a named pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(f"{path} is not a regular file")
            return cls(descriptor)
        except OSError:
            os.close(descriptor)
            raise

    @property
    def offset(self) -> int:
        """The end of the last whole line read, unpacked."""
        return self.consumed - self._lines.pending

    @property
    def head(self) -> LogHead:
        return LogHead.of(self._first[: self.offset])

    @property
    def modified(self) -> int:
        """When the log was last written, in ns since the epoch."""
        return min(os.fstat(self._raw.fileno()).st_mtime_ns, self._written)

    def resume(self, offset: int, head: LogHead, modified: int) -> bool:
        """Go to ``offset`` if the file begins with ``head`` and is that long; or False.

        Only for a file of which nothing has been read; after False it is of no use.

        Args:
            modified: when the log was known to be written; a packed file may instead bear the
                time of its packing.
        """
        if self.packed:
            self._written = modified
        buffer = bytearray(1 << 16)
        self._first = self._fill(buffer, min(offset, HEAD_BYTES))
        if not head.begins(self._first):
            return False
        self.consumed = len(self._first)
        if not self.packed:
            self.consumed = self._raw.seek(offset)
            return os.fstat(self._raw.fileno()).st_size >= offset
        while self.consumed < offset:
            skipped = len(self._fill(buffer, min(offset - self.consumed, len(buffer))))
            if not skipped:
                return False
            self.consumed += skipped
        return True

    def first(self) -> bytes:
        """The first ``HEAD_BYTES``; only for a file of which nothing has been read."""
        return self._fill(bytearray(HEAD_BYTES), HEAD_BYTES)

    def read(self, buffer: bytearray) -> bytes:
        """The lines that became whole, at most about one ``buffer``; nothing at the end."""
        while not self.over and (size := self._read_into(memoryview(buffer))):
            if len(self._first) < HEAD_BYTES:
                self._first += bytes(buffer[: min(size, HEAD_BYTES - len(self._first))])
            self.consumed += size
            if whole := self._lines.add(buffer, 0, size):
                return whole
        return b""

    def finish(self) -> bytes:
        """The last line, which has no newline; nothing if there is none."""
        return self._lines.finish()

    def emptied(self) -> bool:
        """Whether a plain file was cut, or written anew, under what has been read of it."""
        if self.packed or self.pipe:
            return False
        descriptor = self._raw.fileno()
        status = os.fstat(descriptor)
        now = (status.st_size, status.st_mtime_ns)
        if now == self._seen:
            return False
        self._seen = now
        return (
            status.st_size < self.consumed
            or os.pread(descriptor, len(self._first), 0) != self._first
        )

    def close(self) -> None:
        self._raw.close()

    def _fill(self, buffer: bytearray, size: int) -> bytes:
        """The next ``size`` bytes, or fewer at the end."""
        filled = 0
        with memoryview(buffer) as view:
            while filled < size and (more := self._read_into(view[filled:size])):
                filled += more
        return bytes(buffer[:filled])

    def _read_into(self, view: memoryview) -> int:
        if self._gzip is not None:
            return self._unpack_into(self._gzip, view)
        if self.pipe and not select.select([self._raw], [], [], 0)[0]:
            return 0
        size = self._raw.readinto(view) or 0
        self.over = self.pipe and not size
        return size

    def _unpack_into(self, stream: gzip.GzipFile, view: memoryview) -> int:
        filled = 0
        try:
            # readinto1 keeps what comes before the damage; readinto would lose it.
            while not self.damaged and filled < len(view):
                more = stream.readinto1(view[filled:])
                if not more:
                    break
                filled += more
        except (EOFError, zlib.error, gzip.BadGzipFile):
            self.damaged = True
        self.over = filled == 0
        return filled


@dataclass(frozen=True)
class Rotated:
    """A file that was once the log. ``modified`` is its last write, ns since the epoch."""

    path: Path
    identity: tuple[int, int]
    modified: int
    size: int


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
        status = _status(entry) if dated else None
        if status is not None and status.st_mtime_ns >= since - _SLACK_NS:
            yield Path(entry.path)


def _of(folder: Path, log: str) -> Iterator[Rotated]:
    entries = _entries(folder)
    names = {entry.name for entry in entries}
    for entry in entries:
        packing = entry.name.endswith(".gz") and entry.name.removesuffix(".gz") in names
        if entry.name == log or packing or not _belongs(entry.name, log):
            continue
        status = _status(entry)
        if status is not None and entry.is_file():
            identity = (status.st_dev, status.st_ino)
            yield Rotated(Path(entry.path), identity, status.st_mtime_ns, status.st_size)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """None where the file went away after its folder was listed."""
    try:
        return entry.stat()
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
