"""Processor time and memory of process trees, read from ``/proc`` (Linux only)."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
# A process may end between two reads of it: no longer there, or there without an owner.
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


@dataclass(frozen=True)
class Process:
    """One row of ``/proc/PID/stat``: its parent, and CPU seconds with those of reaped children."""

    parent: int
    cpu_s: float


def processes() -> dict[int, Process]:
    """Every process that runs now, by its id."""
    found = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(*_GONE):
                # The name, in brackets, may itself hold brackets and spaces.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                ticks = sum(int(field) for field in fields[11:15])
                found[int(entry.name)] = Process(int(fields[1]), ticks / _TICKS)
    return found


def tree(root: int, running: Mapping[int, Process]) -> list[int]:
    """``root`` and all that descends from it."""
    children = defaultdict(list)
    for pid, process in running.items():
        children[process.parent].append(pid)
    found = [root] if root in running else []
    for pid in found:
        found.extend(children[pid])
    return found


def cpu_s(pid: int) -> float:
    """Processor seconds that a process has taken, without those of its children.

    Raises:
        FileNotFoundError, ProcessLookupError: it has ended.
    """
    fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:13]) / _TICKS


def pss_mb(*pids: int) -> float:
    """Proportional set size in megabytes: shared pages count by halves, thirds and so on."""
    total = 0
    for pid in pids:
        with contextlib.suppress(*_GONE):
            for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                total += int(line.split()[1]) * 1024 if line.startswith("Pss:") else 0
    return total / 1e6


@dataclass(frozen=True)
class Sample:
    """CPU seconds so far and memory of each watched tree at one moment (``time.time()``)."""

    at: float
    cpu_s: dict[str, float]
    memory_mb: dict[str, float]


class Watch:
    """Samples the trees under ``roots`` (name to process id) from a thread, until closed."""

    def __init__(self, roots: Mapping[str, int], every_s: float = 0.2) -> None:
        self._roots = dict(roots)
        self._every_s = every_s
        self._samples: list[Sample] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> Watch:
        self._samples.append(self._sample())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def cpu_s(self, name: str, start: float, end: float) -> float:
        """Processor seconds that the tree ``name`` took between two moments."""
        return self._nearest(end).cpu_s[name] - self._nearest(start).cpu_s[name]

    def peak_mb(self, name: str, start: float, end: float) -> float:
        """Most memory of the tree ``name`` in any sample between two moments."""
        within = [sample for sample in self._samples if start <= sample.at <= end]
        return max(sample.memory_mb[name] for sample in within or [self._nearest(end)])

    def _nearest(self, at: float) -> Sample:
        index = bisect_left(self._samples, at, key=lambda sample: sample.at)
        return self._samples[min(index, len(self._samples) - 1)]

    def _loop(self) -> None:
        while not self._stop.wait(self._every_s):
            self._samples.append(self._sample())

    def _sample(self) -> Sample:
        at = time.time()
        running = processes()
        trees = {name: tree(root, running) for name, root in self._roots.items()}
        return Sample(
            at,
            {name: sum(running[pid].cpu_s for pid in pids) for name, pids in trees.items()},
            {name: pss_mb(*pids) for name, pids in trees.items()},
        )


@contextlib.contextmanager
def marked(mark: str) -> Iterator[dict[str, str]]:
    """An environment for child processes; whatever still carries it at the end is killed.

    By the environment and not by process group: Flower's helpers open sessions of their own. A
    SIGTERM ends the benchmark the same way. Main thread only, as signals are.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield {**os.environ, "TRANSPORT_BENCHMARK": mark}
    finally:
        signal.signal(signal.SIGTERM, before)
        for pid in _carrying(f"TRANSPORT_BENCHMARK={mark}".encode()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _carrying(variable: bytes) -> list[int]:
    found = []
    for entry in PROC.iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(*_GONE):
                if variable in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found
