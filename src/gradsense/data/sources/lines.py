"""The lines of one block of a log: numbers, bounds, and which of them can be read at all."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gradsense.data.sources.blocks import MAX_LINE_BYTES
from gradsense.data.sources.cells import CellErrors

TOO_LONG = "line too long"
UNDECODABLE = "undecodable bytes"

#: So much of a line is decoded for an example of a fault.
SHOWN_BYTES = 480

_NEWLINE = 10


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

    def starting_with(self, mark: bytes) -> Iterator[int]:
        """Byte offsets of the lines that start with the byte ``mark``, which should be rare."""
        begin = self.block.find(mark)
        while begin >= 0:
            if begin == 0 or self.block[begin - 1] == _NEWLINE:
                yield begin
            begin = self.block.find(mark, begin + 1)

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
