"""Uploads with Flower (SuperLink, SuperNodes, TLS, node authentication) on this machine.

A device cannot begin in Flower: the centre asks and the node polls. An upload's time begins where
the ClientApp, asked and running, begins to make its answer, and ends where the ServerApp holds it;
the round trip begins where the centre asks. ``flower`` waits with Flower's own
``send_and_receive`` (it looks every 3 s); ``flower-eager`` looks for the answer every 50 ms.
``compare.py`` runs it.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import Watch
from benchmarks.transport.flower_fleet import CENTRE, Fleet, deployed

IDLE_S = 15.0
_SYSTEMS = {False: "flower", True: "flower-eager"}
_LARGE = 20_000_000


def run(
    sizes: Sequence[int], repeats: int, python: Path, folder: Path, *, disk: bool = False
) -> list[dict[str, Any]]:
    """Time and CPU seconds of one device's uploads, a row for each size and way to wait.

    ``repeats`` uploads each, half of them (three at least) above 20 MB. CPU seconds are those of
    the SuperLink's and the SuperNode's process trees while they upload, less what they take idle.
    """
    windows = [
        {"eager": eager, "bytes": size, "repeats": _repeats(size, repeats)}
        for eager, size in itertools.product((False, True), sizes)
    ]
    with deployed(python, folder, 1, disk=disk) as fleet, Watch(fleet.roots, 1.0) as watch:
        idle = _idle(watch, fleet)
        return [_row(window, watch, idle, disk=disk) for window in fleet.run(1, windows)]


def memory(
    sizes: Sequence[int], devices: int, python: Path, folder: Path, *, disk: bool = False
) -> list[dict[str, Any]]:
    """Memory idle and at its most while ``devices`` upload at once, a row for each size.

    Megabytes of proportional set size; a device's are the mean over the devices.
    """
    windows = [{"eager": False, "bytes": size, "repeats": 1} for size in sizes]
    with deployed(python, folder, devices, disk=disk) as fleet, Watch(fleet.roots) as watch:
        quiet = time.time()
        time.sleep(IDLE_S)
        idle = _memory(watch, fleet, quiet, time.time())
        peaks = [
            (window["bytes"], _memory(watch, fleet, window["start"], window["end"]))
            for window in fleet.run(devices, windows)
        ]
    return [
        {
            "system": _SYSTEMS[False] + "-disk" * disk,
            "bytes": size,
            "devices": devices,
            "device_idle_mb": idle[0],
            "device_peak_mb": peak[0],
            "centre_idle_mb": idle[1],
            "centre_peak_mb": peak[1],
        }
        for size, peak in peaks
    ]


def _repeats(size: int, repeats: int) -> int:
    return repeats if size < _LARGE else max(3, repeats // 2)


def _idle(watch: Watch, fleet: Fleet) -> dict[str, float]:
    """CPU seconds a second of each tree while nobody uploads."""
    start = time.time()
    time.sleep(IDLE_S)
    end = time.time()
    return {name: watch.cpu_s(name, start, end) / (end - start) for name in fleet.roots}


def _row(
    window: Mapping[str, Any], watch: Watch, idle: Mapping[str, float], *, disk: bool
) -> dict[str, Any]:
    start, end, uploads = window["start"], window["end"], window["uploads"]
    taken = {
        name: (watch.cpu_s(name, start, end) - rate * (end - start)) / len(uploads)
        for name, rate in idle.items()
    }
    times = [upload["upload_ms"] for upload in uploads]
    return {
        "system": _SYSTEMS[window["eager"]] + "-disk" * disk,
        "bytes": window["bytes"],
        "n": len(uploads),
        "upload_ms_median": statistics.median(times),
        "upload_ms_max": max(times),
        "roundtrip_ms_median": statistics.median(upload["roundtrip_ms"] for upload in uploads),
        "cpu_s_device": taken["device-0"],
        "cpu_s_centre": taken[CENTRE],
    }


def _memory(watch: Watch, fleet: Fleet, start: float, end: float) -> tuple[float, float]:
    peaks = {name: watch.peak_mb(name, start, end) for name in fleet.roots}
    return statistics.mean(peaks[name] for name in peaks if name != CENTRE), peaks[CENTRE]
