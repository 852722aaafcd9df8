"""Detects that the bundle on disk was replaced, and loads the new one in the background."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from gradsense.detection.bundle import GRAPH_FILE, HEAD_FILE, MANIFEST_FILE, TOKENIZER_FILE
from gradsense.detection.detector import Detector
from gradsense.errors import GradsenseError

#: Seconds between two checks of the folder; a check is four calls of ``stat``.
LOOK_S = 1.0

#: Inode, size and modification time of every file of a bundle. A folder that replaces another has
#: other inodes, even if its times are the same.
_Stamp = tuple[tuple[int, int, int], ...]


class Successor:
    """Finds the detector that succeeds the current one.

    Args:
        path: the bundle's folder, which other processes may replace at any moment.
        load: opens the bundle there.
    """

    def __init__(self, path: Path, load: Callable[[], Detector]) -> None:
        self.path, self._load = path, load
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="bundle")
        self._coming: tuple[_Stamp, Future[Detector]] | None = None
        self._next_look = 0.0
        self._seen = self._stamp()  # before the load, so that a change during it is detected
        self._current = load()

    @property
    def current(self) -> Detector:
        """The last detector that could be used."""
        return self._current

    def look(self, now: float) -> Detector | None:
        """The detector of a new bundle once it is loaded, else None at once.

        Args:
            now: monotonic seconds.

        Raises:
            GradsenseError: a new bundle cannot be used: it is damaged, or of another template,
                which baselines and feedback would not fit. Raised once; the bundle is tried again
                when one of its files changes.
        """
        if self._coming is not None:
            return self._arrived(*self._coming) if self._coming[1].done() else None
        if now < self._next_look:
            return None
        self._next_look = now + LOOK_S
        stamp = self._stamp()
        if stamp and stamp != self._seen:
            self._coming = stamp, self._pool.submit(self._load)
        return None

    def close(self) -> None:
        """Load nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _arrived(self, stamp: _Stamp, loaded: Future[Detector]) -> Detector | None:
        self._coming = None
        if self._stamp() != stamp:
            return None  # replaced while it was read; the parts may be of two bundles
        self._seen = stamp
        try:
            fresh = loaded.result()
        except GradsenseError:
            raise
        except Exception as error:  # memory, say: the old one stays in use whatever it was
            raise GradsenseError(
                f"{self.path}: the new bundle cannot be opened: {error}"
            ) from error
        own, other = self._current.template, fresh.template
        if (own.name, own.version) != (other.name, other.version):
            raise GradsenseError(
                f"{self.path}: the new bundle's template is '{other.name}' version "
                f"{other.version}, not '{own.name}' version {own.version}; restart to change it"
            )
        if fresh.manifest.id == self._current.manifest.id:
            return None
        self._current = fresh
        return fresh

    def _stamp(self) -> _Stamp:
        """The stamp of the bundle as it is now; empty while there is none."""
        found = []
        for name in (MANIFEST_FILE, GRAPH_FILE, TOKENIZER_FILE, HEAD_FILE):
            try:
                status = (self.path / name).stat()
            except OSError:
                if name == MANIFEST_FILE:
                    return ()
            else:
                found.append((status.st_ino, status.st_size, status.st_mtime_ns))
        return tuple(found)
