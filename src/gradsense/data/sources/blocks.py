"""A log file as byte blocks that end at a line's end, plain or gzip, in bounded memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gradsense.errors import InputError

#: A longer line is no connection record; it is cut here, so that memory stays bounded.
MAX_LINE_BYTES = 1 << 20
#: How much of the beginning decides on the format.
HEAD_BYTES = 1 << 16

GZIP_MAGIC = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"


class WholeLines:
    """Cuts a stream of bytes after its newlines and keeps the unfinished last line back.

    ``pending`` is that line's length so far. Of a line over ``MAX_LINE_BYTES`` just so much is
    kept that it is still seen to be over it, so memory stays bounded.
    """

    def __init__(self) -> None:
        self.pending = 0
        self._rest: list[bytes] = []
        self._kept = 0

    def add(self, buffer: bytearray, begin: int, end: int) -> bytes:
        """Take in ``buffer[begin:end]``; returns the lines that are now whole, or nothing."""
        cut = buffer.rfind(b"\n", begin, end) + 1
        view = memoryview(buffer)
        whole = b""
        if cut:
            whole = b"".join([*self._rest, view[begin:cut]])
            self._clear()
            begin = cut
        self.pending += end - begin
        tail = bytes(view[begin:end][: MAX_LINE_BYTES + 2 - self._kept])  # 2: room for "\r"
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
def _faults_named(path: Path) -> Iterator[None]:
    """Turn what the operating system or zlib says about ``path`` into an InputError."""
    try:
        yield
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


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with _faults_named(path), path.open("rb") as raw:
        magic = raw.read(2)
        raw.seek(0)
        if magic == GZIP_MAGIC:  # the name may lie, the first bytes do not
            with gzip.GzipFile(fileobj=raw) as stream:
                yield stream  # type: ignore[misc]
        else:
            yield raw


def _read_up_to(stream: IO[bytes], size: int) -> bytes:
    pieces: list[bytes] = []
    while size > 0 and (piece := stream.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def read_head(path: Path) -> bytes:
    """The first ``HEAD_BYTES`` of the unpacked file, without a byte order mark.

    Raises:
        InputError: the file cannot be read, or its gzip data is damaged.
    """
    with _opened(path) as stream:
        return _read_up_to(stream, HEAD_BYTES).removeprefix(BOM)


def read_blocks(path: Path, block_bytes: int) -> Iterator[bytes]:
    """Blocks of whole lines, each ending in a newline, together the whole file.

    A line over ``MAX_LINE_BYTES`` comes cut but still over it, so that the parser can count it.

    Raises:
        InputError: the file cannot be read, or its gzip data is damaged.
    """
    with _opened(path) as stream:
        lines = WholeLines()
        # One buffer for all reads: fresh memory costs more than the reading itself.
        buffer = bytearray(max(block_bytes, len(BOM)))
        first = True
        while size := stream.readinto(buffer):  # type: ignore[attr-defined]
            begin = len(BOM) if first and buffer.startswith(BOM) else 0
            first = False
            if whole := lines.add(buffer, begin, size):
                yield whole
        if last := lines.finish():
            yield last
