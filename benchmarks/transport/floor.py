"""The floor: the same bytes over mutual TLS on a plain TCP socket, synced to disk.

One connection stays open; the centre answers each message when it lies on disk.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.processes import Watch, marked
from benchmarks.transport.certificates import Certificates

CENTRE = "centre"
_ENDS = Path(__file__).parent / "floor_ends.py"
_SAMPLE_S = 0.05
_IDLE_S = 1.0


@dataclass(frozen=True)
class Ends:
    """The receiving process and the sending ones, all connected."""

    centre: subprocess.Popen[str]
    devices: list[subprocess.Popen[str]]

    @property
    def roots(self) -> dict[str, int]:
        """Process ids by name."""
        devices = {f"device-{number}": end.pid for number, end in enumerate(self.devices)}
        return {CENTRE: self.centre.pid, **devices}

    def upload(self, size: int, repeats: int) -> list[list[dict[str, int]]]:
        """All devices send at once; each one's messages."""
        for device in self.devices:
            _stdin(device).write(f"{size} {repeats}\n")
            _stdin(device).flush()
        return [json.loads(_line(device)) for device in self.devices]


def run(sizes: Sequence[int], repeats: int, folder: Path) -> list[dict[str, Any]]:
    """Time and CPU seconds of one device's uploads, a row for each size."""
    with connected(folder, 1) as ends:
        ends.upload(100, 1)
        return [_row(size, ends.upload(size, repeats + 1)[0]) for size in sizes]


def memory(sizes: Sequence[int], devices: int, folder: Path) -> list[dict[str, Any]]:
    """Megabytes (proportional set size) idle and at most, a row for each size; device: the mean."""
    rows = []
    with connected(folder, devices) as ends, Watch(ends.roots, _SAMPLE_S) as watch:
        idle = _peak(watch, ends, time.time(), _IDLE_S)
        for size in sizes:
            start = time.time()
            ends.upload(size, 5)
            peak = _peak(watch, ends, start, 0.0)
            rows.append(
                {
                    "system": "floor",
                    "bytes": size,
                    "devices": devices,
                    "device_idle_mb": idle[0],
                    "device_peak_mb": peak[0],
                    "centre_idle_mb": idle[1],
                    "centre_peak_mb": peak[1],
                }
            )
    return rows


@contextlib.contextmanager
def connected(folder: Path, devices: int) -> Iterator[Ends]:
    """The ends with certificates of an authority of their own; gone afterwards."""
    issued = Certificates(folder / "tls")
    with marked(secrets.token_hex(8)) as environment:

        def end(role: str, where: str, own: tuple[Path, Path]) -> subprocess.Popen[str]:
            return subprocess.Popen(
                [sys.executable, "-S", _ENDS, role, where, issued.authority, *own],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )

        centre = end("receive", str(folder), issued.server(CENTRE))
        port = _line(centre)
        names = [f"device-{number}" for number in range(devices)]
        ends = Ends(centre, [end("send", port, issued.client(name)) for name in names])
        try:
            for device in ends.devices:
                _line(device)
            yield ends
        finally:
            for process in (*ends.devices, centre):
                process.kill()
                process.communicate()


def _row(size: int, messages: list[dict[str, int]]) -> dict[str, Any]:
    """The first message only shows where the centre's CPU time stood."""
    centre = [
        after["cpu_centre_so_far"] - before["cpu_centre_so_far"]
        for before, after in pairwise(messages)
    ]
    messages = messages[1:]
    times = [(message["had"] - message["decided"]) / 1e6 for message in messages]
    roundtrips = [(message["answered"] - message["decided"]) / 1e6 for message in messages]
    return {
        "system": "floor",
        "bytes": size,
        "n": len(messages),
        "upload_ms_median": statistics.median(times),
        "upload_ms_max": max(times),
        "roundtrip_ms_median": statistics.median(roundtrips),
        "cpu_s_device": statistics.mean(message["cpu_device"] for message in messages) / 1e9,
        "cpu_s_centre": statistics.mean(centre) / 1e9,
    }


def _peak(watch: Watch, ends: Ends, start: float, wait_s: float) -> tuple[float, float]:
    time.sleep(wait_s)
    peaks = {name: watch.peak_mb(name, start, time.time()) for name in ends.roots}
    return statistics.mean(peaks[name] for name in peaks if name != CENTRE), peaks[CENTRE]


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    if not (line := process.stdout.readline()):
        raise RuntimeError("an end of the floor stopped before it answered")
    return line.strip()


def _stdin(process: subprocess.Popen[str]) -> Any:
    assert process.stdin is not None
    return process.stdin
