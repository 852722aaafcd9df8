"""Training that does not get in the way: low priority, a share of a core, memory, temperature.

The agent trains in a process of its own, so what is measured here is training and nothing else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from gradsense.errors import GradsenseError

#: The CPU share is an average over this: idling saves up no more than that much of it.
_AVERAGED_S = 10.0
#: Memory and temperature are looked at no more often than this.
_LOOK_S = 1.0
#: The longest sleep before asking again whether something newer came.
_NAP_S = 0.5
#: After a pause for heat, training goes on so many degrees below the limit.
_COOLER_BY = 5.0
#: The kernel takes this process first where memory runs out, and never detection instead.
_OOM_SCORE = 500
_MB = 1 << 20


class ResourceLimits(BaseModel):
    """What training may take of its machine.

    Args:
        nice: added to the process's niceness.
        cpu_share: of one core, averaged over ten seconds.
        memory_mb: the most that the process may hold; it stops beyond.
        least_free_mb: training waits while the machine has less memory available.
        temperature_c: training waits while the hottest sensor shows more; None never waits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    nice: int = Field(default=10, ge=0, le=19)
    cpu_share: float = Field(default=0.25, gt=0, le=1024)
    memory_mb: int = Field(default=1024, ge=1)
    least_free_mb: int = Field(default=128, ge=0)
    temperature_c: float | None = Field(default=80, ge=0, le=200)


class TooMuchMemory(GradsenseError):
    """The process holds more memory than it may."""


class Interrupted(Exception):
    """Something newer came in the middle of training. No fault: whoever trains catches it."""


class Host:
    """What Linux reports of this process and its machine; None where it reports nothing.

    ``proc`` and ``sys`` are in ``root``.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def cpu_s(self) -> float:
        """Seconds that this process has computed, all threads together."""
        return time.process_time()

    def resident_mb(self) -> float | None:
        """Memory that this process holds, MiB."""
        pages = _numbers([self._root / "proc/self/statm"], place=1)
        return pages[0] * os.sysconf("SC_PAGESIZE") / _MB if pages else None

    def available_mb(self) -> float | None:
        """Memory that the machine can still give, MiB."""
        with suppress(OSError, ValueError, IndexError):
            for line in (self._root / "proc/meminfo").read_text().splitlines():
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) / 1024
        return None

    def temperature_c(self) -> float | None:
        """The hottest sensor, °C."""
        zones = (self._root / "sys/class/thermal").glob("thermal_zone*/temp")
        return max((milli / 1000 for milli in _numbers(zones)), default=None)


class Throttle:
    """Holds training back. ``between`` is called between its blocks.

    Args:
        wanted: whether something newer came that training must make way for.
        clock: monotonic seconds.

    Attributes:
        paused: seconds slept, by reason: ``cpu``, ``temperature``, ``memory``.
    """

    def __init__(
        self,
        limits: ResourceLimits,
        *,
        wanted: Callable[[], bool] = lambda: False,
        machine: Host | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.limits = limits
        self.paused = dict.fromkeys(("cpu", "temperature", "memory"), 0.0)
        self._wanted, self._machine = wanted, machine or Host()
        self._clock, self._sleep = clock, sleep
        self._at, self._cpu = clock(), self._machine.cpu_s()
        self._ahead = 0.0  # CPU seconds taken beyond the share; negative: saved up
        self._hot = False
        self._next_look = self._at

    def between(self) -> None:
        """Return when training may go on.

        Raises:
            Interrupted: something newer came, before this or while waiting.
            TooMuchMemory: the process has outgrown its limit.
        """
        self._make_way()
        if self._clock() >= self._next_look:
            while reason := self._in_the_way():
                self._nap(_LOOK_S, reason)
            self._next_look = self._clock() + _LOOK_S
        self._account()
        if self._ahead > 0:
            self._nap(self._ahead / self.limits.cpu_share, "cpu")

    def _make_way(self) -> None:
        if self._wanted():
            raise Interrupted

    def _in_the_way(self) -> str | None:
        """Why training must wait now, if it must."""
        held = self._machine.resident_mb()
        if held is not None and held > self.limits.memory_mb:
            raise TooMuchMemory(
                f"training holds {held:.0f} MiB of memory, more than the {self.limits.memory_mb} "
                "that it may"
            )
        if self._is_hot():
            return "temperature"
        available = self._machine.available_mb()
        return "memory" if available is not None and available < self.limits.least_free_mb else None

    def _is_hot(self) -> bool:
        shown, limit = self._machine.temperature_c(), self.limits.temperature_c
        if shown is None or limit is None:
            self._hot = False
        else:
            self._hot = shown > limit - (_COOLER_BY if self._hot else 0.0)
        return self._hot

    def _account(self) -> None:
        """A bucket that fills with the share: computing takes from it, time fills it up."""
        now, cpu, share = self._clock(), self._machine.cpu_s(), self.limits.cpu_share
        ahead = self._ahead + (cpu - self._cpu) - share * (now - self._at)
        self._ahead = max(ahead, -share * _AVERAGED_S)
        self._at, self._cpu = now, cpu

    def _nap(self, seconds: float, reason: str) -> None:
        """Sleep, but no longer than it takes for something newer to come."""
        began = self._clock()
        try:
            while (left := began + seconds - self._clock()) > 0:
                self._sleep(min(left, _NAP_S))
                self._make_way()
        finally:
            self.paused[reason] += self._clock() - began


def lower_priority(limits: ResourceLimits, root: Path = Path("/")) -> None:
    """Let everything else on the machine go first, and let the kernel kill this process first.

    For the process that calls it and its children; it cannot be undone without privileges.
    ``proc`` is in ``root``.
    """
    os.nice(limits.nice)
    with suppress(OSError):  # not Linux, or forbidden: then the kernel chooses by itself
        (root / "proc/self/oom_score_adj").write_text(str(_OOM_SCORE))


def _numbers(files: Iterable[Path], place: int = 0) -> list[int]:
    """The number at ``place`` of each file that can be read and has a number there."""
    numbers = []
    for file in files:
        with suppress(OSError, ValueError, IndexError):
            numbers.append(int(file.read_text().split()[place]))
    return numbers
