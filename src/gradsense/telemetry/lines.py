"""The lines of one block of a log: numbers, bounds, and which of them can be read at all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradsense.telemetry.blocks import MAX_LINE_BYTES
from gradsense.telemetry.cells import Faults

TOO_LONG = "line too long"
UNDECODABLE = "undecodable bytes"

_NEWLINE = 10
_SHOWN_BYTES = 480


class Lines:
    """Lines ``first_line`` and following of a file; ``block`` ends in a newline.

    Lines are addressed by their index within the block. ``numbers``, ``starts`` and ``ends``
    have shape ``(lines,)``: the file's line number and the line's byte range in ``block``.
    """

    def __init__(self, block: bytes, first_line: int) -> None:
        if block.find(b"\r") >= 0:
            block = block.replace(b"\r\n", b"\n")
        self.block = block
        self.bytes = np.frombuffer(block, np.uint8)
        self.ends = np.flatnonzero(self.bytes == _NEWLINE)
        self.starts = np.concatenate(([0], self.ends[:-1] + 1))
        self.numbers = np.arange(first_line, first_line + len(self.ends))

    def __len__(self) -> int:
        return len(self.ends)

    def raw(self, index: int) -> bytes:
        return self.block[self.starts[index] : self.ends[index]]

    def legible(self, faults: Faults) -> NDArray[np.bool_]:
        """Which lines are neither blank nor too long nor undecodable; the latter are counted."""
        sizes = self.ends - self.starts
        good = sizes > 0
        too_long = sizes > MAX_LINE_BYTES
        if too_long.any():
            self.drop(too_long, TOO_LONG, faults)
            good &= ~too_long
        if self.block.find(b"\0") >= 0 or undecodable(self.block):
            garbled = np.zeros_like(good)
            for index in np.flatnonzero(good).tolist():
                line = self.raw(index)
                garbled[index] = b"\0" in line or undecodable(line)
            self.drop(garbled, UNDECODABLE, faults)
            good &= ~garbled
        return good

    def drop(self, mask: NDArray[np.bool_], reason: str, faults: Faults) -> None:
        """Count the lines of ``mask`` as dropped for ``reason``."""
        if mask.any():
            index = int(np.flatnonzero(mask)[0])
            text = self.raw(index)[:_SHOWN_BYTES].decode(errors="replace")
            faults.add(reason, int(self.numbers[index]), None, text, int(mask.sum()))

    def join(self, lo: int, hi: int, good: NDArray[np.bool_]) -> bytes:
        """The bytes of the good lines among lines ``lo`` to ``hi``."""
        if good[lo:hi].all():
            return self.block[self.starts[lo] : self.ends[hi - 1] + 1]
        picked = (np.flatnonzero(good[lo:hi]) + lo).tolist()
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
