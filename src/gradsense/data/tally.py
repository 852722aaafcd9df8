"""What a reader kept and what it dropped, by reason, with the first example of each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

#: Examples are cut to this many characters: enough to recognise a line, little to carry about.
EXAMPLE_CHARS = 120


@dataclass(frozen=True)
class Drop:
    """``count`` lines dropped for one reason; the rest is the first of them.

    ``field`` is the column at fault under the log's own name, None where the whole line is.
    """

    count: int
    file: str
    line: int
    field: str | None
    text: str


@dataclass
class Tally:
    """Lines kept (``read``) and lines dropped, by reason."""

    read: int = 0
    dropped: dict[str, Drop] = field(default_factory=dict)

    @property
    def total_dropped(self) -> int:
        return sum(drop.count for drop in self.dropped.values())

    def add(  # noqa: PLR0917
        self, reason: str, file: Path | str, line: int, field: str | None, text: str, count: int = 1
    ) -> None:
        """Count ``count`` lines as dropped for ``reason``; the example is a file's first line."""
        new = Drop(count, str(file), line, field, text[:EXAMPLE_CHARS])
        known = self.dropped.get(reason)
        if known is not None:
            earlier = new.file == known.file and line < known.line
            new = replace(new if earlier else known, count=known.count + count)
        self.dropped[reason] = new

    def merge(self, other: Tally) -> None:
        """Add ``other``'s counts to these; examples already here win."""
        self.read += other.read
        for reason, drop in other.dropped.items():
            known = self.dropped.get(reason)
            count = drop.count + (known.count if known else 0)
            self.dropped[reason] = replace(known or drop, count=count)

    def to_json(self) -> dict[str, Any]:
        """``{"read": n, "dropped": {reason: {count, file, line, field, text}}}``."""
        return {
            "read": self.read,
            "dropped": {reason: vars(drop).copy() for reason, drop in self.dropped.items()},
        }

    def lines(self) -> list[str]:
        """One line for people per reason, most frequent first; empty when nothing was dropped."""
        ordered = sorted(self.dropped.items(), key=lambda item: (-item[1].count, item[0]))
        return [
            f"{drop.count:,} x {reason}, first at {drop.file}:{drop.line}"
            + (f", field '{drop.field}'" if drop.field else "")
            + f": {drop.text!r}"
            for reason, drop in ordered
        ]
