"""The file of a log, read forwards as whole lines: a stored one, or one that grows."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import select
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, Field

from gradsense.data.sources.lines import MAX_LINE_BYTES
from gradsense.errors import InputError

GZIP_MAGIC = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"
#: How much of a stored log's beginning decides on the format.
SNIFFED_BYTES = 1 << 16
#: How much of a file's beginning identifies it: a Zeek header with its #open time and
#: some records, or about three JSON records.
HEAD_BYTES = 1024
#: Fewer bytes are the same in many logs ("#separator \\x09") and identify nothing.
MIN_HEAD_BYTES = 64

_NEVER = 2**63  # later than every time of a file


class WholeLines:
    """Cuts a stream of bytes after its newlines and keeps the unfinished last line back.

    ``pending`` is that line's length so far. Of a line over ``MAX_LINE_BYTES`` just so much is
    kept that it is still seen to be over it, so memory stays bounded.
    """

    def __init__(self) -> None:
        self.pending = 0
        self._rest: list[bytes] = []
        self._kept = 0

    def add(self, buffer: bytearray, end: int) -> bytes:
        """Take in ``buffer[:end]``; returns the lines that are now whole, or nothing."""
        cut = buffer.rfind(b"\n", 0, end) + 1
        view = memoryview(buffer)
        whole = b""
        if cut:
            whole = b"".join([*self._rest, view[:cut]])
            self._clear()
        self.pending += end - cut
        tail = bytes(view[cut:end][: MAX_LINE_BYTES + 2 - self._kept])  # 2: room for "\r"
        if tail:
            self._rest.append(tail)
            self._kept += len(tail)
        return whole

    def finish(self) -> bytes:
        """The unfinished line with a newline at the end of the file; nothing if there is none."""
        last = b"".join([*self._rest, b"\n"]) if self._rest else b""
        self._clear()
        return last

    def _clear(self) -> None:
        self.pending, self._rest, self._kept = 0, [], 0


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file unpacked. An error of the operating system or zlib becomes an InputError."""
    try:
        with path.open("rb") as raw:
            magic = raw.read(2)
            raw.seek(0)
            if magic == GZIP_MAGIC:  # the name may lie, the first bytes do not
                with gzip.GzipFile(fileobj=raw) as stream:
                    yield stream  # type: ignore[misc]
            else:
                yield raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"the gzip data is cut short or damaged ({error})",
            hint="copy the file again and check it with `gzip -t`",
            file=path,
        ) from error
    except FileNotFoundError as error:
        raise InputError("no such file", hint="check the path", file=path) from error
    except IsADirectoryError as error:
        raise InputError(
            "is a folder, not a log file", hint="name a conn.log inside it", file=path
        ) from error
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror or error})",
            hint="check the file and its permissions",
            file=path,
        ) from error


def read_head(path: Path) -> bytes:
    """The first ``SNIFFED_BYTES`` of the unpacked file, without a byte order mark.

    Raises:
        InputError: the file cannot be read, or its gzip data is damaged.
    """
    with _opened(path) as stream:
        return stream.read(SNIFFED_BYTES).removeprefix(BOM)


def read_blocks(path: Path, block_bytes: int) -> Iterator[bytes]:
    """Blocks of whole lines, each ending in a newline, together the whole file as it is.

    A line over ``MAX_LINE_BYTES`` comes cut but still over it, so that the parser can count it.

    Raises:
        InputError: the file cannot be read, or its gzip data is damaged.
    """
    with _opened(path) as stream:
        lines = WholeLines()
        # One buffer for all reads: fresh memory costs more than the reading itself.
        buffer = bytearray(block_bytes)
        while size := stream.readinto(buffer):  # type: ignore[attr-defined]
            if whole := lines.add(buffer, size):
                yield whole
        if last := lines.finish():
            yield last


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
            if whole := self._lines.add(buffer, size):
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

    @classmethod
    def at(cls, path: Path) -> Rotated:
        """Raises OSError."""
        status = path.stat()
        return cls(path, (status.st_dev, status.st_ino), status.st_mtime_ns, status.st_size)
