"""A local fleet that is fed by hand and whose books can be audited while it runs.

Its devices may be reached by the lines of ``fleet_lines``.
"""

from __future__ import annotations

import json
import socket
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gradsense.agent.store import FILE as MEMORY
from gradsense.coordinator.opening import open_run
from gradsense.data.datasets.captures import discover, load
from gradsense.data.synthetic.traffic import write_fleet
from gradsense.fleet.enrolment import create
from gradsense.fleet.jobs import RUNS, Job
from gradsense.localfleet.local_fleet import LocalDevice, LocalFleet
from tests.support.fleet_lines import Line, Proxy


class Rig(LocalFleet):
    """A local fleet that only learns, whose devices are reached by lines, and which is fed by hand.

    Args:
        out: a new folder.
        devices: how many.
        flows: lines that each device's log may grow by.
        host: address of the broker; None for this machine only.
        algorithm: with floor 0 every flow is told, so what was told can be counted.
        size: of the model.
        options: of ``gradsense edge``, for every device.

    Attributes:
        within: device to the line in whose namespace it is started.
        port: of the broker.
    """

    def __init__(
        self,
        out: Path,
        devices: int,
        *,
        flows: int,
        host: str | None = None,
        algorithm: str = "gsfs:floor=0.0",
        size: str = "nano",
        options: Sequence[str] = (),
    ) -> None:
        def job(labels: tuple[str, ...]) -> Job:
            return Job(
                run="network",
                algorithm=algorithm,
                labels=labels,
                min_devices=devices,
                interval_s=0.0,
                upload_gap_s=0.0,
            )

        super().__init__(out, devices, flows=flows, job=job)
        self.host, self._size, self._options = host, size, options
        self.within: dict[str, Line] = {}

    def prepare(self, on_step: Callable[[str], None] = lambda step: None) -> None:
        """Make captures, fleet, run and bundles."""
        captures = self.out / "captures"
        sites = max(self.devices, 3)  # fewer may hold benign traffic alone
        write_fleet(captures, sites=sites, flows=self.flows, seed=self.seed)
        job = self.job(load(captures, cap=50, seed=self.seed).classes)
        self.run = job.run
        with socket.socket() as probe:
            probe.bind(("", 0))
            self.port: int = probe.getsockname()[1]
        create(self.fleet, self.host, self.port, now=time.time())
        open_run(self.fleet, job, size=self._size, on_step=on_step)
        for number, capture in enumerate(discover(captures)[: self.devices], 1):
            name = f"site-{number:02d}"
            site = LocalDevice(name, capture.path, self.out / "devices" / name)
            self._enrol(site)
            self.sites.append(site)

    def start_device(self, site: LocalDevice, *options: str) -> None:
        """Start a device, in the namespace of its line if it has one."""
        line = self.within.get(site.name)
        within = [] if line is None else ["ip", "netns", "exec", line.name]
        self._spawn(
            site.name,
            [
                *(*within, sys.executable, "-m", "gradsense", "edge", "--no-detect"),
                *("--bundle", str(site.folder / "bundle"), "--logs", str(site.log)),
                *("--state", str(site.folder / "state"), "--settle", "0.5", "--cpu", "1"),
                *(*self._options, *options),
            ],
        )

    def through(self, site: LocalDevice, proxy: Proxy) -> None:
        """Have a device that was not started yet reach the broker by a proxy."""
        file = site.folder / "bundle" / "device" / "device.json"
        about = json.loads(file.read_bytes())
        about["broker"]["port"] = proxy.port
        file.write_text(json.dumps(about), encoding="utf-8")

    def feed(self, site: LocalDevice, flows: int) -> None:
        """Append so many lines to a device's log, as long as there are any."""
        until = min(site.played + flows, len(site.lines))
        with site.log.open("ab") as log:
            log.writelines(site.lines[site.played : until])
        site.played = until

    @property
    def journal(self) -> Path:
        """Of the run."""
        return self.fleet / RUNS / self.run / "journal.sqlite3"

    def audit(self) -> Audit:
        """What journal and devices say now."""
        return Audit(self)

    def presence(self) -> Presence:
        """Who is there, as the journal has it."""
        return Presence(self)

    def wait(self, done: Callable[[], bool], seconds: float) -> float | None:
        """Seconds until ``done``; None if it took longer than that."""
        began = time.monotonic()
        while not done():
            if (ended := self.ended()) or time.monotonic() - began > seconds:
                if ended:
                    raise RuntimeError(f"ended by themselves: {ended}")
                return None
            time.sleep(0.05)
        return time.monotonic() - began


def query(file: Path, text: str) -> list[tuple[Any, ...]]:
    """Rows of a database that another process may be writing; none before it has its tables."""
    if not file.exists():
        return []
    db = sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)
    try:
        return db.execute(text).fetchall()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return []
        raise
    finally:
        db.close()


class Audit:
    """Counts both ends' books.

    Attributes:
        pooled: (device, sequence) to how often it is in the journal.
        samples: flows of pooled updates, by device.
        refused: updates that the journal refused.
        acknowledged, labelled: the devices' own counters.
        waiting: updates in their outboxes.
        played: labelled flows that the logs have.
    """

    def __init__(self, rig: Rig) -> None:
        memories = {site.name: site.folder / "state" / MEMORY for site in rig.sites}
        # The devices first: what they call acknowledged must be in the journal already.
        counters = {
            name: Counter(dict(query(file, "SELECT name, value FROM counters")))
            for name, file in memories.items()
        }
        self.acknowledged = {name: one["acknowledged"] for name, one in counters.items()}
        self.labelled = {name: one["labelled:log"] for name, one in counters.items()}
        self.waiting = {
            name: sum(count for (count,) in query(file, "SELECT count(*) FROM outbox"))
            for name, file in memories.items()
        }
        rows = query(rig.journal, "SELECT device, sequence, samples, kind FROM events")
        updates = [row[:3] for row in rows if row[3] == "update"]
        self.pooled = Counter((device, sequence) for device, sequence, _ in updates)
        self.samples = dict.fromkeys(memories, 0)
        for device, _, samples in updates:
            self.samples[device] += samples
        self.refused = sum(row[3] == "refused" for row in rows)
        self.played = {site.name: site.played for site in rig.sites}

    @property
    def pooled_of(self) -> dict[str, int]:
        """Distinct updates by device."""
        count = Counter(device for device, _ in self.pooled)
        return {name: count[name] for name in self.played}

    @property
    def twice(self) -> int:
        """Updates that were counted more than once."""
        return sum(times - 1 for times in self.pooled.values())

    @property
    def lost(self) -> int:
        """Updates that a device was told are safe, and that are not there."""
        pooled = self.pooled_of
        return sum(max(0, told - pooled[name]) for name, told in self.acknowledged.items())

    @property
    def told(self) -> bool:
        """Whether everything that was played is pooled and acknowledged."""
        return (
            self.labelled == self.played
            and self.samples == self.played
            and self.acknowledged == self.pooled_of
            and not any(self.waiting.values())
        )


class Presence:
    """Who is online, and with which model.

    Attributes:
        seen: by device, when it was last heard, in the run's time.
    """

    def __init__(self, rig: Rig) -> None:
        devices = query(rig.journal, "SELECT name, held, seen FROM devices")
        events = query(
            rig.journal,
            "SELECT device, kind FROM events WHERE kind IN ('join', 'leave') ORDER BY id",
        )
        self._kinds = dict(events)
        self._held = {name: held for name, held, _ in devices}
        self.seen = {name: seen for name, _, seen in devices}
        ((self._version,),) = query(rig.journal, "SELECT max(version) FROM models")

    def online(self, names: Sequence[str], before: Presence | None = None) -> bool:
        """Whether these are, and were heard since ``before``."""
        return all(
            self._kinds.get(name) == "join"
            and (before is None or self.seen[name] > before.seen.get(name, -1.0))
            for name in names
        )

    def offline(self, names: Sequence[str]) -> bool:
        """Whether none of these is."""
        return all(self._kinds.get(name) != "join" for name in names)

    def current(self, names: Sequence[str]) -> bool:
        """Whether these hold the newest model."""
        return all(self._held.get(name) == self._version for name in names)
