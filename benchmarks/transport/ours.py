"""Uploads with gradsense: Mosquitto, mutual TLS, the real coordinator, a durable outbox.

An upload's time begins where training ends and ends where the device holds the coordinator's
signed acknowledgement, so it has in it: sensing, packing, compression, the signature, the device's
own journal (fsync), the way through the broker, verification, and the coordinator's journal
(fsync). Nothing is aggregated meanwhile, as in the other systems: the pool also waits for a device
that says nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import Watch
from gradsense.coordinator.run import Run
from gradsense.fleet.enrolment import create, opened
from gradsense.fleet.jobs import JOB_FILE, RUNS, START, Job
from gradsense.localfleet.local_broker import await_listener, free_port, program
from gradsense.transport import identity
from gradsense.transport.connection import Link
from gradsense.transport.messages import presence
from gradsense.transport.payloads import ONLINE
from gradsense.transport.protocol import NO_MODEL

CENTRE, BROKER = "centre", "broker"
_DEVICE = (sys.executable, "-m", "benchmarks.transport.ours_device")
_LARGE = 20_000_000
_IDLE_S, _SETTLE_S, _SAMPLE_S, _START_S = 5.0, 1.0, 0.05, 20.0
_ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Fleet:
    """All processes, connected and idle."""

    roots: dict[str, int]
    devices: list[subprocess.Popen[str]]

    def upload(self, repeats: int) -> list[list[dict[str, int]]]:
        """All devices send at once; each one's uploads."""
        for device in self.devices:
            assert device.stdin is not None
            device.stdin.write(f"{repeats}\n")
            device.stdin.flush()
        return [json.loads(_line(device)) for device in self.devices]


def run(sizes: Sequence[int], repeats: int, folder: Path) -> list[dict[str, Any]]:
    """Time and CPU seconds of one device's uploads, a row for each size.

    The centre's seconds are the coordinator's and the broker's together.
    """
    rows = []
    for size in sizes:
        times = repeats if size < _LARGE else max(3, repeats // 2)
        with deployed(folder / f"run-{size}", size, 1) as fleet, Watch(fleet.roots, 0.2) as watch:
            fleet.upload(1)
            time.sleep(_SETTLE_S)
            quiet = time.time()
            time.sleep(_IDLE_S)
            start = time.time()
            uploads = fleet.upload(times)[0]
            time.sleep(_SETTLE_S)  # what the processes do after the acknowledgement counts too
            end = time.time()
            taken = {
                name: (
                    watch.cpu_s(name, start, end)
                    - watch.cpu_s(name, quiet, start) * (end - start) / (start - quiet)
                )
                / times
                for name in fleet.roots
            }
        took = [(upload["answered"] - upload["decided"]) / 1e6 for upload in uploads]
        rows.append(
            {
                "system": "gradsense",
                "bytes": size,
                "n": times,
                "upload_ms_median": statistics.median(took),
                "upload_ms_max": max(took),
                "roundtrip_ms_median": statistics.median(took),
                "cpu_s_device": taken["device-0"],
                "cpu_s_centre": taken[CENTRE] + taken[BROKER],
            }
        )
    return rows


def memory(sizes: Sequence[int], devices: int, folder: Path) -> list[dict[str, Any]]:
    """Megabytes (proportional set size) idle and at most while all upload at once."""
    rows = []
    for size in sizes:
        place = folder / f"memory-{devices}-{size}"
        with deployed(place, size, devices) as fleet, Watch(fleet.roots, _SAMPLE_S) as watch:
            start = time.time()
            time.sleep(_IDLE_S)
            idle = _memory(watch, fleet, start)
            start = time.time()
            fleet.upload(1)
            peak = _memory(watch, fleet, start)
        rows.append(
            {
                "system": "gradsense",
                "bytes": size,
                "devices": devices,
                "device_idle_mb": idle[0],
                "device_peak_mb": peak[0],
                "centre_idle_mb": idle[1],
                "centre_peak_mb": peak[1],
            }
        )
    return rows


def _memory(watch: Watch, fleet: Fleet, start: float) -> tuple[float, float]:
    peaks = {name: watch.peak_mb(name, start, time.time()) for name in fleet.roots}
    own = [peak for name, peak in peaks.items() if name not in {CENTRE, BROKER}]
    return statistics.mean(own), peaks[CENTRE] + peaks[BROKER]


@contextlib.contextmanager
def deployed(folder: Path, size: int, devices: int) -> Iterator[Fleet]:
    """A fleet whose model has ``size`` bytes of float32; gone afterwards."""
    fleet, port = folder / "fleet", free_port()
    folder.mkdir(parents=True)
    create(fleet, None, port, now=time.time())
    job = Job(
        run="bench",
        algorithm="fedavg",
        labels=("no", "yes"),
        max_norm=1e6,
        min_devices=devices + 1,
        interval_s=0.0,
        upload_gap_s=0.0,
    )
    place = fleet / RUNS / job.run
    Run.create(place, job, {"w": np.zeros(size // 4, np.float32)})
    (place / START).mkdir()
    (place / START / JOB_FILE).write_text(job.text())
    bundles = []
    with opened(fleet) as open_fleet:
        for name in (*(f"device-{number}" for number in range(devices)), "silent"):
            bundles.append(folder / name)
            open_fleet.enroll(name, bundles[-1], now=time.time(), days=1, run=place / START)
    with contextlib.ExitStack() as stack:
        conf = str(fleet / "broker" / "mosquitto.conf")
        broker = stack.enter_context(_process([program(), "-c", conf], folder))
        await_listener(port)
        command = [sys.executable, "-m", "gradsense", "coordinator", "--fleet", str(fleet)]
        centre = stack.enter_context(_process(command, folder))
        stack.enter_context(_silent(bundles[-1]))
        ends = [
            stack.enter_context(_process([*_DEVICE, str(bundle), str(bundle / "state")], folder))
            for bundle in bundles[:-1]
        ]
        for end in ends:
            _line(end)
        roots = {f"device-{number}": end.pid for number, end in enumerate(ends)}
        yield Fleet(roots | {CENTRE: centre.pid, BROKER: broker.pid}, ends)


@contextlib.contextmanager
def _process(command: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(
            command,
            env=_ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def _silent(bundle: Path) -> Iterator[None]:
    """A device that is there and says nothing, for which the pool waits."""
    me, greeted = identity.of_device(bundle), threading.Event()
    link = Link(
        me,
        subscriptions=["gradsense/v2/bench/device/silent/#"],
        on_message=lambda arrival: None,
        on_connect=lambda _: greeted.set(),
        rng=random.Random(0),
    )
    link.start()
    greeted.wait(_START_S)
    link.publish(presence("bench", "silent", ONLINE, NO_MODEL, me.signing_key))
    try:
        yield
    finally:
        link.stop()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    if not (line := process.stdout.readline()):
        raise RuntimeError("a device stopped before it answered; see the folder's log")
    return line.strip()
