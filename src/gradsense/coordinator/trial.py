"""A message that once ended the process is tried in a child before it is handled again.

Before an update is opened and handled, a small file names it; afterwards the name is taken away.
A name that is still there at the next start is of a message during which the process ended: by it,
or by chance, such as a loss of power. The broker or the device sends it again, and then a forked
child opens and checks it first. If the child survives, the message is as good as any other. Only
what nobody could say by opening it, and what ended the process thrice, is set aside all the same.

The file is written in place and not synced: it must outlive the process, not the machine.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gradsense.errors import UpdateRefused
from gradsense.storage.sqlite import StorageFull
from gradsense.transport.protocol import Properties

T = TypeVar("T")

FILE = "handling"
#: The file's size; it holds 25 lines of the longest names.
_FILE_BYTES, _MOST = 4096, 25
#: By chance the process never ends so often during the same message.
_ENDS = 3
#: What a child may use beside the memory that it is born with. All of it would be ours, too.
_CHILD_BYTES = 512 << 20


class SetAside(UpdateRefused):
    """The process ended over this update, and so did the child that tried it, or twice more."""


@dataclass(frozen=True)
class Suspect:
    """An update as its signed properties name it; the hash, hex, is of its body as it travels."""

    device: str
    sequence: int
    body_sha256: str

    @classmethod
    def of(cls, properties: Properties) -> Suspect:
        """The update that came with these properties."""
        header = properties.header
        return cls(header.device, header.sequence, properties.body_sha256)


class Trials:
    """Marks what is being handled, and tries what ended the process before.

    Args:
        folder: the run's, which nobody else works on.
        timeout_s: real seconds that a child may take.

    Raises:
        StorageFull: the file cannot be opened for now.
    """

    def __init__(self, folder: Path, *, timeout_s: float = 60.0) -> None:
        self._timeout_s = timeout_s
        try:
            self._file = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            text = os.pread(self._file, _FILE_BYTES, 0).decode("ascii", "replace")
        except OSError as error:
            raise StorageFull(f"{folder}: the run cannot be opened: {error}") from error
        self.suspects: list[Suspect] = []
        for line in text.splitlines():
            with suppress(ValueError):  # no name of ours
                device, sequence, digest = line.split()
                self.suspects.append(Suspect(device, int(sequence), digest))

    def close(self) -> None:
        """Close the file; what it names stays."""
        os.close(self._file)

    def handle(self, suspect: Suspect, rehearsal: Callable[[], object], work: Callable[[], T]) -> T:
        """The result of ``work``, which opens and handles this update.

        Args:
            rehearsal: as much of it as uses neither files nor connections: a child has none.
            work: all of it.

        Raises:
            UpdateRefused: ``SetAside``, or what ``work`` raises.
            StorageFull: there is no room for the mark.
        """
        ends = self.suspects.count(suspect)
        if ends >= _ENDS or (ends and not _survives(rehearsal, self._timeout_s)):
            self._clear(suspect)
            raise SetAside(f"update {suspect.sequence} of '{suspect.device}'")
        self._write([*self.suspects, suspect])
        try:
            result = work()
        except UpdateRefused:
            self._clear(suspect)
            raise
        except BaseException:
            # Whoever catches this may go on in this process, which the update did not end yet.
            self.suspects = [*self.suspects, suspect][-_MOST:]
            raise
        self._clear(suspect)
        return result

    def _clear(self, suspect: Suspect) -> None:
        self.suspects = [one for one in self.suspects if one != suspect]
        self._write(self.suspects)

    def _write(self, named: list[Suspect]) -> None:
        lines = [f"{one.device} {one.sequence} {one.body_sha256}\n" for one in named[-_MOST:]]
        try:
            os.pwrite(self._file, "".join(lines).ljust(_FILE_BYTES, "\n").encode("ascii"), 0)
        except OSError as error:
            raise StorageFull(f"what is being handled cannot be written down: {error}") from error


def _survives(rehearsal: Callable[[], object], timeout_s: float) -> bool:
    """Whether a child that does this on its copy of our memory ends as it should."""
    child = os.fork()
    if child == 0:
        # Only this thread is here. Nothing is closed, flushed or written on the way out.
        code = 1
        try:
            _restrain(timeout_s)
            with suppress(UpdateRefused):
                rehearsal()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def _restrain(timeout_s: float) -> None:
    """Let a child have neither connections, locks, all memory nor time without end."""
    for one in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
        signal.signal(one, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)  # which ends it, even in foreign code
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # where there is no /proc
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * os.sysconf("SC_PAGE_SIZE") + _CHILD_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
