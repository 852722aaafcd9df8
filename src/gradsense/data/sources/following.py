"""Follow one log as it grows, through rotations and restarts, losing no line and repeating none.

Files are polled: nothing here waits, and no thread runs. A log is known again by its device and
inode, or by a fingerprint of its first bytes where it was packed or copied. The file in hand is
left only when its successor has its first bytes, so that lines written between the renaming of
the old file and the opening of the new one are read.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gradsense.data.flows import ContextWindow, Flows
from gradsense.data.sources.lines import Tally
from gradsense.data.sources.logfile import LogFile, LogHead, Rotated
from gradsense.data.sources.rotation import rotated
from gradsense.data.sources.stream import LogStream
from gradsense.errors import InputError

#: The name that means standard input.
STDIN = Path("-")
BLOCK_BYTES = 4 << 20
#: So many finished files are remembered, so that none is taken for a new one when it is packed.
_FINISHED = 8
#: What is read again before the place of a restart, so that the first flows after it are not
#: judged as if their hosts had just appeared.
WARM_UP_BYTES = 1 << 20


class Position(BaseModel):
    """A place in a log, always at the end of a line.

    ``model_dump`` gives it as JSON, ``model_validate`` takes it back.

    Args:
        device, inode: of the file.
        modified: when it was last written as far as was known, ns since the epoch.
        offset: bytes from its beginning, unpacked.
        head: fingerprint of the first bytes up to ``offset``.
        finished: the heads of the files read before it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: int
    inode: int
    modified: int
    offset: int = Field(ge=0)
    head: LogHead
    finished: tuple[LogHead, ...] = Field((), max_length=_FINISHED)


@dataclass(frozen=True)
class LogChunk:
    """Whole lines, the place after them, and whether they are the first of another file.

    With ``begins``, call ``LogStream.restart`` before parsing.
    """

    data: bytes
    position: Position
    begins: bool


@dataclass
class FollowCounts:
    """What happened to the log.

    ``rotations``: turned to a newer file. ``truncations``: the file was emptied or written anew.
    ``unreadable``: it could not be opened or read for a while. ``damaged``: gzip files that ended
    early. ``lost``: the file read last was gone after a restart, with what of it was unread.
    """

    rotations: int = 0
    truncations: int = 0
    unreadable: int = 0
    damaged: int = 0
    lost: int = 0

    def to_json(self) -> dict[str, int]:
        return asdict(self)


class Follower:
    """Reads one log forwards, from its beginning or from ``position``.

    Args:
        path: the log, which need not exist yet; ``-`` is standard input.
        position: where to go on, from the last chunk whose flows are safe.
        archive: a folder that rotated files are moved to, as it is or by date.

    Raises:
        InputError: ``path`` is a folder.
    """

    def __init__(
        self, path: Path, position: Position | None = None, *, archive: Path | None = None
    ) -> None:
        if _is_folder(path):
            raise InputError(
                "is a folder, not a log file", hint="name a conn.log inside it", file=path
            )
        self.path = path
        self.counts = FollowCounts()
        self._archive = archive
        self._position = position
        self._file: LogFile | None = None
        self._begins = False
        self._failing: set[Path] = set()
        self._buffer = bytearray()

    @property
    def ended(self) -> bool:
        """Whether standard input is at its end, so that no chunk will come any more."""
        return self.path == STDIN and self._file is not None and self._file.over

    def read(self, limit: int = BLOCK_BYTES, *, final: bool = False) -> LogChunk | None:
        """The next whole lines, about ``limit`` bytes at most; None if there is nothing new now.

        Args:
            final: take a last line without a newline as whole: nobody writes any more.
        """
        if len(self._buffer) != limit:
            self._buffer = bytearray(limit)
        try:
            return self._next(final)
        except OSError:
            self._fails(self.path)
            self.close()
            return None

    def close(self) -> None:
        """Let go of the file; a later ``read`` opens it again at the same place."""
        if self._file is not None and self.path != STDIN:
            self._file.close()
            self._file = None

    def _next(self, final: bool) -> LogChunk | None:
        while True:
            file = self._file or self._open()
            if file is None:
                return None
            data = self._lines(file)
            if file.emptied():
                self.close()
                continue
            if data:
                return self._chunk(file, data)
            successor = self._successor(file)
            if successor is not None and (data := self._lines(file)):
                return self._chunk(file, data)  # written before the successor was there
            whole = successor is not None or final or file.over
            if whole and (last := file.finish()):
                return self._chunk(file, last)
            if successor is None or not self._turn_to(successor, file):
                return None

    def _lines(self, file: LogFile) -> bytes:
        before = file.over
        data = file.read(self._buffer)
        self.counts.damaged += file.damaged and file.over and not before
        return data

    def _chunk(self, file: LogFile, data: bytes) -> LogChunk:
        self._failing.clear()
        begins, self._begins = self._begins, False
        self._position = self._place(file)
        return LogChunk(data, self._position, begins)

    def _place(self, file: LogFile) -> Position:
        device, inode = file.identity
        before = self._position
        return Position(
            device=device,
            inode=inode,
            modified=file.modified,
            offset=file.offset,
            head=file.head,
            finished=before.finished if before else (),
        )

    # --- opening -----------------------------------------------------------------------------

    def _open(self) -> LogFile | None:
        if self.path == STDIN:
            self._begins = True
            self._file = LogFile(os.dup(0), pipe=True)
        elif self._position is None:
            self._file = self._opened(self.path)
            self._begins = True
        else:
            self._file = self._resumed(self._position)
        if self._file is not None:
            self._position = self._place(self._file)
        return self._file

    def _opened(self, path: Path) -> LogFile | None:
        """The file, or None where it is not there or cannot be opened now, which is counted."""
        try:
            return LogFile.open(path)
        except FileNotFoundError:
            return None
        except OSError:
            self._fails(path)
            return None

    def _fails(self, path: Path) -> None:
        """Count once until lines come again; it is tried again at every call."""
        self.counts.unreadable += path not in self._failing
        self._failing.add(path)

    def _resumed(self, position: Position) -> LogFile | None:
        """The file of ``position`` at its place, or what came after it if it is gone."""
        current = _status(self.path)
        same = current is not None and current.identity == (position.device, position.inode)
        file = self._found(position, current)
        if file is not None:
            self.counts.truncations += same and file.identity != (position.device, position.inode)
            self._begins = position.offset == 0
            return file
        successor = self._later(position, current)
        if successor is None:
            return None
        file = self._opened(successor)
        if file is not None:
            self.counts.truncations += same
            self.counts.lost += not same
            self._position = _finished(position)
            self._begins = True
        return file

    def _found(self, position: Position, current: Rotated | None) -> LogFile | None:
        """By inode first; by its fingerprint alone if the inode is another, as of an archive."""
        others = rotated(self.path, self._archive, position.modified)
        own = [current] if current is not None else []
        identity = (position.device, position.inode)
        candidates = [file for file in own + others if file.identity == identity]
        if position.head.identifies:
            candidates += [file for file in others + own if file.identity != identity]
        for candidate in candidates:
            file = self._opened(candidate.path)
            if file is not None and file.resume(position.offset, position.head, position.modified):
                return file
            if file is not None:
                file.close()
        return None

    # --- what comes after a file ---------------------------------------------------------------

    def _successor(self, file: LogFile) -> Path | None:
        """The next file, once it has its first bytes; None while ``file`` may still grow."""
        if file.pipe:
            return None
        current = _status(self.path)
        if current is not None and current.identity == file.identity:
            return None
        return self._later(self._place(file), current)

    def _later(self, place: Position, current: Rotated | None) -> Path | None:
        """The oldest file that was written after the one of ``place``, or else the log itself."""
        known = [head for head in (*place.finished, place.head) if head.identifies]
        now = current.identity if current is not None else None
        for other in rotated(self.path, self._archive, place.modified):
            newer = other.modified > place.modified and other.identity != now and other.size
            if newer and not self._was_read(other.path, known):
                return other.path
        return self.path if current is not None and current.size else None

    def _was_read(self, path: Path, known: list[LogHead]) -> bool:
        file = self._opened(path)
        if file is None:
            return True
        first = file.first()
        file.close()
        return any(head.begins(first) for head in known)

    def _turn_to(self, successor: Path, file: LogFile) -> bool:
        opened = self._opened(successor)
        if opened is None:
            return False
        self.counts.rotations += 1
        self._position = _finished(self._place(file))
        self.close()
        self._file, self._begins = opened, True
        self._position = self._place(opened)
        return True


def _finished(position: Position) -> Position:
    """With the head of its own file among those that have been read."""
    heads = (*position.finished, position.head)
    return position.model_copy(update={"finished": heads[-_FINISHED:]})


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except PermissionError:  # counted as unreadable when it is read, and tried again
        return False


def _status(path: Path) -> Rotated | None:
    try:
        return Rotated.at(path)
    except FileNotFoundError:
        return None


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
            # Show the context what stands before the place; its lines were counted long ago.
            before = _before(log, self._position)
            if before:
                self._in_context(LogStream.restore(log, place["stream"]), before, Tally())

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
