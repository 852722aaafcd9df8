"""One growing log as flows: followed, parsed, and put into context."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from gradsense.data.context import ContextWindow
from gradsense.data.flows import Flows
from gradsense.data.sources.following import STDIN, Follower, Position
from gradsense.data.sources.stream import LogStream
from gradsense.data.tally import Tally
from gradsense.errors import InputError

#: What is read again before the place of a restart, so that the first flows after it are not
#: judged as if their hosts had just appeared.
WARM_UP_BYTES = 1 << 20


class LiveLog:
    """A log that grows.

    Args:
        log: its path, or ``-`` for standard input; its name in alerts and in the journal.
        place: the value of ``place`` that was last committed; None begins at the beginning.
        archive: a folder that its rotated files are moved to.

    Raises:
        InputError: ``log`` is a folder, or ``place`` is damaged.
    """

    def __init__(
        self, log: Path, place: dict[str, Any] | None = None, *, archive: Path | None = None
    ) -> None:
        self.log = log
        self.context = ContextWindow()
        self._position: Position | None = None
        if place is None:
            self.stream = LogStream(log)
        else:
            try:
                self._position = Position.model_validate(place["position"])
                self.stream = LogStream.restore(log, place["stream"])
            except (KeyError, ValidationError) as error:
                raise InputError(
                    "its remembered place is damaged",
                    hint="give another --state; the log is then read from its beginning",
                    file=log,
                ) from error
        self.follower = Follower(log, self._position, archive=archive)
        if place is not None and self._position is not None:
            self._warm_up(LogStream.restore(log, place["stream"]), self._position)

    @property
    def ended(self) -> bool:
        """Whether nothing can come any more."""
        return self.follower.ended

    def read(self, limit: int, tally: Tally, *, final: bool) -> Flows | None:
        """The next flows, maybe none of them; None where nothing new is there.

        Args:
            limit: bytes at most.
            tally: takes what is dropped.
            final: the end of the log is its end, even in the middle of a line.
        """
        chunk = self.follower.read(limit, final=final)
        if chunk is None:
            return None
        self._position = chunk.position
        if chunk.begins:  # the log goes on in another file, so the context stays
            self.stream.restart()
        return self._in_context(self.stream, chunk.data, tally)

    def place(self) -> dict[str, Any] | None:
        """Where it is read up to, as JSON values; None where no place can be found again."""
        if self._position is None or self.log == STDIN:
            return None
        return {"position": self._position.model_dump(mode="json"), "stream": self.stream.state()}

    def _in_context(self, stream: LogStream, data: bytes, tally: Tally) -> Flows:
        flows = stream.parse(data, tally)
        if isinstance(flows, pl.DataFrame):
            return self.context.add(flows)
        return [self.context.add_row(flow) for flow in flows]

    def _warm_up(self, stream: LogStream, position: Position) -> None:
        """Show the context what stands before the place; its lines were counted long ago."""
        before = _before(self.log, position)
        if before:
            self._in_context(stream, before, Tally())


def _before(log: Path, position: Position) -> bytes:
    """The whole lines before a place; none where the log is another file by now."""
    start = max(0, position.offset - WARM_UP_BYTES)
    try:
        with log.open("rb") as file:
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) != (position.device, position.inode):
                return b""
            file.seek(start)
            lines = file.read(position.offset - start)
    except OSError:  # the follower will count it
        return b""
    return lines[lines.find(b"\n") + 1 :] if start else lines
