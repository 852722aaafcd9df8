"""Keeps the training agent alive beside detection, as a process of its own.

Detection must not suffer from anything that training does: not from its memory, not from a fault in
a library. So the two share nothing but the disk, and the agent is started again when it ends.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

from gradsense.errors import InputError

#: Seconds until it is started again: after the first end, and at most.
_FIRST_S, _MOST_S = 1.0, 60.0
#: An agent that ran for so long was well; its next end is a first one again.
_WELL_S = 120.0
_STOP_S = 15.0
_LOOK_S = 0.5
_PR_SET_PDEATHSIG = 1
#: By default one: a thread for each core would make training slower, and detection too.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}

_log = logging.getLogger(__name__)


class Supervisor:
    """One child process, started again with growing pauses.

    Args:
        command: its arguments after the interpreter.
        timer: monotonic seconds.
        on_refusal: called when it exited because its input is wrong.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        timer: Callable[[], float],
        on_refusal: Callable[[], None] = lambda: None,
    ) -> None:
        self._command, self._timer = [sys.executable, *command], timer
        self._on_refusal = on_refusal
        self._process: subprocess.Popen[bytes] | None = None
        self._began = self._next = timer()
        self._pause = _FIRST_S
        self.starts = 0  # how often it was started
        self.refusals = 0  # how often it exited because its input is wrong

    def keep(self, stop: threading.Event) -> None:
        """Look after it until ``stop`` is set. For a thread."""
        try:
            while not stop.wait(_LOOK_S):
                self.look()
        finally:
            self.stop()

    def look(self) -> None:
        """Start it if it does not run and its pause is over; call this now and then."""
        now = self._timer()
        if self._process is None:
            if now >= self._next:
                self._process = subprocess.Popen(self._command, env=_ENVIRONMENT | os.environ)
                self._began, self.starts = now, self.starts + 1
            return
        code = self._process.poll()
        if code is None:
            return
        self._process = None
        if code == InputError.exit_code:
            # Another start helps only if its input was mended, so the longest pause; until then
            # detection goes on with the model that it has.
            self.refusals += 1
            self._next, self._pause = now + _MOST_S, _FIRST_S
            _log.error(
                "the training agent cannot work, see its message above; detection goes on without "
                "learning, and the agent is tried again in %.0f s",
                _MOST_S,
            )
            self._on_refusal()
            return
        if now - self._began > _WELL_S:
            self._pause = _FIRST_S
        _log.warning("the training agent ended (%d); it starts again in %.0f s", code, self._pause)
        self._next, self._pause = now + self._pause, min(_MOST_S, 2 * self._pause)

    def stop(self) -> None:
        """End it: terminate, then kill."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when its parent ends, however that ends (Linux).

    Args:
        parent: the process id that the parent had when it started this one.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the call above
        os.kill(os.getpid(), signal.SIGTERM)
