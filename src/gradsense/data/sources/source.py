"""What a record source is, and the registry of all sources.

A source is one format of logs: one file in this folder, with one public class that derives from
``RecordSource``. It is found by being there, and serves logs that grow as well as stored ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import polars as pl

from gradsense import registry
from gradsense.data.sources.cells import CellErrors, Row
from gradsense.data.sources.lines import Lines

#: One line without its newline, and its number in the file, to a flow, to the reason for which it
#: is dropped, or to None where the block parser has to decide.
RowParser = Callable[[bytes, int], Row | str | None]
#: The work on a block: calls that may run later and in other threads.
Calls = list[Callable[[], pl.DataFrame]]


class RecordSource(ABC):
    """One format of logs. An instance reads the lines of one log, in file order.

    Args:
        path: the log's name in messages.

    Attributes:
        name: in the stored position of a log.
        rank: the lowest rank goes first where two sources would read a log, or a folder holds
            logs of several.
        logs: the names of its logs in a capture's folder, best first.
        lasting: whether the format stays for the whole of a file once a record was found, so
            that blocks are not looked at for other formats.
    """

    name: ClassVar[str]
    rank: ClassVar[int]
    logs: ClassVar[tuple[str, ...]] = ()
    lasting: ClassVar[bool] = True

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    @abstractmethod
    def sniff(cls, path: Path, lines: Sequence[bytes]) -> bool:
        """Whether a stored log that begins with these lines is of this format.

        Raises:
            InputError: it is, but cannot be read.
        """

    @classmethod
    def begins(cls, line: bytes) -> bool:
        """Whether this line of a growing log, not a comment, is surely a record of the format."""
        return False

    @property
    def ready(self) -> bool:
        """Whether lines can be read as they are, without a header first."""
        return True

    def directive(self, comment: Lines, faults: CellErrors) -> bool:
        """Take in one line that starts with ``#``; returns whether the format begins there."""
        return False

    @abstractmethod
    def plan(self, lines: Lines, faults: CellErrors) -> Calls:
        """The work on one block; every call gives a frame with ``FLOW_SCHEMA``."""

    @abstractmethod
    def row_parser(self) -> RowParser | None:
        """The parser of single lines as things stand; None where there is none now."""

    def state(self) -> dict[str, Any]:
        """What ``restore`` needs to go on after a restart, JSON values under keys of its own."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Go on from ``state``. Raises ValueError if it is damaged."""


@cache
def sources() -> tuple[type[RecordSource], ...]:
    """All sources, the lowest rank first."""
    found = registry.members(__package__, RecordSource)  # type: ignore[type-abstract]
    return tuple(sorted(found.values(), key=lambda source: source.rank))


def log_names() -> dict[str, int]:
    """File names of a capture's log, best first, to the rank of their source."""
    found: dict[str, int] = {}
    for source in sources():
        for name in source.logs:
            found.setdefault(name, source.rank)
    return found
