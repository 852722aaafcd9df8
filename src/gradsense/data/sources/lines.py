"""The lines of a log: read from its file as blocks in bounded memory, numbered, and checked."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from gradsense.data.sources.cells import CellErrors
from gradsense.errors import InputError

#: A longer line is no connection record; it is cut here, so that memory stays bounded.
MAX_LINE_BYTES = 1 << 20
#: How much of the beginning decides on the format.
HEAD_BYTES = 1 << 16

GZIP_MAGIC = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"

TOO_LONG = "line too long"
UNDECODABLE = "undecodable bytes"

#: So much of a line is decoded for an example of a fault.
SHOWN_BYTES = 480

_NEWLINE = 10


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
    """Turn an error of the operating system or zlib about ``path`` into an InputError."""
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


class Lines:
    """Lines ``first_line`` and following of a file; ``block`` ends in a newline.

    Lines are addressed by their index within the block. ``numbers``, ``starts`` and ``ends``
    have shape ``(lines,)``: the file's line number and the line's byte range in ``block``.
    The byte ranges are found only when asked for: a block without faults needs none.
    """

    def __init__(self, block: bytes, first_line: int) -> None:
        if block.find(b"\r") >= 0:
            block = block.replace(b"\r\n", b"\n")
        self.block = block
        self.first_line = first_line
        self.bytes = np.frombuffer(block, np.uint8)
        self._count = int(np.count_nonzero(self.bytes == _NEWLINE))

    def __len__(self) -> int:
        return self._count

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.bytes == _NEWLINE)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        return np.concatenate(([0], self.ends[:-1] + 1))

    @cached_property
    def numbers(self) -> NDArray[np.int64]:
        return np.arange(self.first_line, self.first_line + len(self))

    def raw(self, index: int) -> bytes:
        return self.block[self.starts[index] : self.ends[index]]

    def sound(self) -> bool:
        """True only if no line is undecodable or too long; blank lines are not looked for."""
        return not (self._holds_garbled() or self._may_hold_too_long())

    def legible(self, faults: CellErrors) -> NDArray[np.bool_]:
        """Which lines are neither blank nor too long nor undecodable; the latter are counted."""
        sizes = self.ends - self.starts
        good = sizes > 0
        too_long = sizes > MAX_LINE_BYTES
        if too_long.any():
            self.drop(too_long, TOO_LONG, faults)
            good &= ~too_long
        if self._holds_garbled():
            garbled = np.zeros_like(good)
            for index in np.flatnonzero(good).tolist():
                line = self.raw(index)
                garbled[index] = b"\0" in line or undecodable(line)
            self.drop(garbled, UNDECODABLE, faults)
            good &= ~garbled
        return good

    def _holds_garbled(self) -> bool:
        return self.block.find(b"\0") >= 0 or undecodable(self.block)

    def _may_hold_too_long(self) -> bool:
        """A line over ``MAX_LINE_BYTES`` fills one of these windows, leaving it no newline."""
        window = MAX_LINE_BYTES // 2
        return any(
            self.block.find(b"\n", begin, begin + window) < 0
            for begin in range(0, len(self.block) - window + 1, window)
        )

    def runs(self, mark: bytes) -> Iterator[tuple[bool, Lines]]:
        """The block cut at the lines that start with the byte ``mark``, which should be rare.

        Yields ``(True, one such line)`` and ``(False, the lines up to the next)``, in order.
        """
        begin, number = 0, self.first_line
        place = self.block.find(mark)
        while place >= 0:
            if place and self.block[place - 1] != _NEWLINE:
                place = self.block.find(mark, place + 1)
                continue
            if place > begin:
                between = Lines(self.block[begin:place], number)
                yield False, between
                number += len(between)
            begin = self.block.index(b"\n", place) + 1
            yield True, Lines(self.block[place:begin], number)
            number += 1
            place = self.block.find(mark, begin)
        if not begin:
            yield False, self
        elif begin < len(self.block):
            yield False, Lines(self.block[begin:], number)

    def drop(self, mask: NDArray[np.bool_], reason: str, faults: CellErrors) -> None:
        """Count the lines of ``mask`` as dropped for ``reason``."""
        if mask.any():
            index = int(np.flatnonzero(mask)[0])
            text = self.raw(index)[:SHOWN_BYTES].decode(errors="replace")
            faults.add(reason, int(self.numbers[index]), None, text, int(mask.sum()))

    def join(self, good: NDArray[np.bool_]) -> bytes:
        """The bytes of the good lines."""
        if good.all():
            return self.block
        picked = np.flatnonzero(good).tolist()
        return b"".join(self.block[self.starts[i] : self.ends[i] + 1] for i in picked)


def undecodable(data: bytes) -> bool:
    """Whether ``data`` is not UTF-8."""
    if data.isascii():
        return False
    try:
        data.decode()
    except UnicodeDecodeError:
        return True
    return False


def legible(line: bytes) -> str | None:
    """The line as text; None where it is too long, escaped or not plain UTF-8 text."""
    if len(line) > MAX_LINE_BYTES or b"\\" in line or b"\0" in line or b"\r" in line:
        return None
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None
