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

_GZIP_MAGIC = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"


@contextmanager
def _faults_named(path: Path) -> Iterator[None]:
    """Turn what the operating system or zlib says about ``path`` into an InputError."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"the gzip data is cut short or damaged ({error})",
            mend="copy the file again and check it with `gzip -t`",
            file=path,
        ) from error
    except FileNotFoundError as error:
        raise InputError("no such file", mend="check the path", file=path) from error
    except IsADirectoryError as error:
        raise InputError(
            "is a folder, not a log file", mend="name a conn.log inside it", file=path
        ) from error
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror or error})",
            mend="check the file and its permissions",
            file=path,
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with _faults_named(path), path.open("rb") as raw:
        magic = raw.read(2)
        raw.seek(0)
        if magic == _GZIP_MAGIC:  # the name may lie, the first bytes do not
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
        return _read_up_to(stream, HEAD_BYTES).removeprefix(_BOM)


def read_blocks(path: Path, block_bytes: int) -> Iterator[bytes]:
    """Blocks of whole lines, each ending in a newline, together the whole file.

    A line over ``MAX_LINE_BYTES`` comes cut but still over it, so that the parser can count it.

    Raises:
        InputError: the file cannot be read, or its gzip data is damaged.
    """
    with _opened(path) as stream:
        rest: list[bytes] = []  # pieces of the unfinished last line
        rest_size = 0
        # One buffer for all reads: fresh memory costs more than the reading itself.
        buffer = bytearray(max(block_bytes, len(_BOM)))
        view = memoryview(buffer)
        first = True
        while size := stream.readinto(buffer):  # type: ignore[attr-defined]
            begin = len(_BOM) if first and buffer.startswith(_BOM) else 0
            first = False
            cut = buffer.rfind(b"\n", begin, size) + 1
            if cut:
                yield b"".join([*rest, view[begin:cut]])
                rest, rest_size, begin = [], 0, cut
            tail = bytes(view[begin:size][: MAX_LINE_BYTES + 2 - rest_size])  # 2: room for "\r"
            if tail:
                rest.append(tail)
                rest_size += len(tail)
        if rest:
            yield b"".join([*rest, b"\n"])
