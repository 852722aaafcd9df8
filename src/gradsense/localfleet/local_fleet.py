"""Runs a whole fleet on this machine: broker, coordinator and devices as processes over TLS.

    OUT/fleet/              the fleet's folder, with one run
    OUT/devices/ID/         bundle/, logs/ that grow while it is played, state/
    OUT/*.log               output of each process

The devices' logs are played: their lines are appended over some seconds, as on a live gateway.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

from gradsense.coordinator.opening import open_run
from gradsense.coordinator.service import read_status
from gradsense.data.datasets.captures import discover, load
from gradsense.data.synthetic.traffic import write_fleet
from gradsense.errors import GradsenseError, InputError
from gradsense.fleet.enrolment import create, opened
from gradsense.fleet.jobs import RUNS, START, Job
from gradsense.gateway.store import FILE as WATCH_JOURNAL
from gradsense.gateway.store import GatewayStore
from gradsense.localfleet.local_broker import await_listener, free_port, program

_STOP_S = 20.0
#: Synthetic sites that have more than one class between them.
_LEAST_SITES = 4
#: One thread a library: there are more processes here than cores.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


@dataclass
class LocalDevice:
    """One device: its id, the log that it plays, and how many lines of it are played."""

    name: str
    source: Path
    folder: Path
    lines: list[bytes] = field(default_factory=list)
    played: int = 0

    @property
    def log(self) -> Path:
        return self.folder / "logs" / self.source.name


@dataclass
class LocalFleet:
    """Creates, starts, observes and stops a fleet. A ``with`` block ends all of its processes.

    Args:
        out: a new folder.
        devices: how many.
        captures: labelled logs, one capture a device; None makes synthetic ones.
        flows: most lines of each log that are played.
        play_s: seconds that playing takes; 0 plays all at once.
        job: how to run; its labels are replaced by those of the captures.
        seed: of synthetic captures.

    Raises:
        InputError: no broker is installed, ``out`` is not empty, or there are too few captures.
    """

    out: Path
    devices: int
    _: KW_ONLY
    captures: Path | None = None
    flows: int = 2000
    play_s: float = 20.0
    job: Callable[[tuple[str, ...]], Job]
    seed: int = 0

    def __post_init__(self) -> None:
        self._program = program()
        if self.out.exists() and any(self.out.iterdir()):
            raise InputError("is not empty", hint="give a new folder as --out", file=self.out)
        self.fleet = self.out / "fleet"
        self.sites: list[LocalDevice] = []
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._outputs: list[BinaryIO] = []
        self._began = 0.0
        self.run = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Before ---------------------------------------------------------------------------------

    def prepare(self, on_step: Callable[[str], None] = lambda step: None) -> None:
        """Make captures, fleet, run and bundles."""
        captures = self.captures
        if captures is None:
            on_step("making synthetic traffic")
            captures = self.out / "captures"
            sites = max(self.devices, _LEAST_SITES)
            write_fleet(captures, sites=sites, flows=self.flows, seed=self.seed)
        found = discover(captures)
        if len(found) < self.devices:
            raise InputError(
                f"holds {len(found)} captures for {self.devices} devices",
                hint="give fewer --devices",
                file=captures,
            )
        job = self.job(load(captures, cap=50, seed=self.seed).classes)
        self.run = job.run
        on_step("making certificates")
        create(self.fleet, None, free_port(), now=time.time())
        open_run(self.fleet, job, on_step=on_step)
        for number, capture in enumerate(found[: self.devices], 1):
            site = LocalDevice(
                f"site-{number:02d}", capture.path, self.out / "devices" / f"site-{number:02d}"
            )
            self._enrol(site)
            self.sites.append(site)

    def _enrol(self, site: LocalDevice) -> None:
        with opened(self.fleet) as fleet:
            fleet.enroll(
                site.name,
                site.folder / "bundle",
                now=time.time(),
                days=1,
                run=self.fleet / RUNS / self.run / START,
            )
        site.log.parent.mkdir(parents=True)
        with site.source.open("rb") as source:
            for line in source:
                if not line.startswith(b"#"):
                    site.lines.append(line)
                elif not site.lines:  # the header; Zeek's last line begins so too
                    with site.log.open("ab") as log:
                        log.write(line)
                if len(site.lines) >= self.flows:
                    break

    # Processes ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start broker, coordinator and devices."""
        self.start_broker()
        self.start_coordinator()
        for site in self.sites:
            self.start_device(site)
        self._began = time.monotonic()

    def start_broker(self) -> None:
        """Start the broker and wait until it listens.

        Raises:
            GradsenseError: it does not.
        """
        self._spawn("broker", [self._program, "-c", str(self.fleet / "broker" / "mosquitto.conf")])
        port = json.loads((self.fleet / "fleet.json").read_bytes())["broker"]["port"]
        broker = self._processes["broker"]
        try:
            await_listener(port, lambda: broker.poll() is not None)
        except GradsenseError as error:
            raise GradsenseError(
                f"the broker did not start; see {self.out / 'broker.log'}"
            ) from error

    def start_coordinator(self) -> None:
        """Start the coordinator."""
        self._gradsense("coordinator", "coordinator", "--fleet", str(self.fleet))

    def start_device(self, site: LocalDevice, *options: str) -> None:
        """Start a device."""
        self._gradsense(
            site.name,
            *("edge", "--bundle", str(site.folder / "bundle"), "--logs", str(site.log)),
            *("--state", str(site.folder / "state"), "--settle", "1", "--cpu", "1", *options),
        )

    def _gradsense(self, name: str, *arguments: str) -> None:
        self._spawn(name, [sys.executable, "-m", "gradsense", *arguments])

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        output = (self.out / f"{name}.log").open("ab")
        self._outputs.append(output)
        self._processes[name] = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | _ENVIRONMENT,
            start_new_session=True,  # Ctrl-C reaches this process, which stops them in order
        )

    def process(self, name: str) -> subprocess.Popen[bytes]:
        """A process by name: broker, coordinator or a device's id."""
        return self._processes[name]

    def ended(self) -> dict[str, int]:
        """Exit codes of the processes that ended by themselves."""
        codes = {name: process.poll() for name, process in self._processes.items()}
        return {name: code for name, code in codes.items() if code is not None}

    def last_line(self, name: str) -> str:
        """The last line of a process's output."""
        lines = (self.out / f"{name}.log").read_text(errors="replace").splitlines()
        return lines[-1] if lines else "none"

    def stop(self) -> None:
        """Stop devices first, then the coordinator, then the broker; wait for each."""
        order = [name for name in self._processes if name not in {"coordinator", "broker"}]
        for names in (order, ["coordinator"], ["broker"]):
            alive = [self._processes[name] for name in names if name in self._processes]
            for process in alive:
                if process.poll() is None:
                    process.terminate()
            for process in alive:
                try:
                    process.wait(_STOP_S)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        self._processes.clear()
        for output in self._outputs:
            output.close()
        self._outputs.clear()

    # While it runs --------------------------------------------------------------------------

    def play(self) -> bool:
        """Append the lines that are due; False when all are played. Call it periodically."""
        passed = time.monotonic() - self._began
        share = 1.0 if self.play_s <= 0 else min(1.0, passed / self.play_s)
        for site in self.sites:
            until = round(share * len(site.lines))
            if until > site.played:
                with site.log.open("ab") as log:
                    log.writelines(site.lines[site.played : until])
                site.played = until
        return share < 1.0

    def status(self) -> Mapping[str, Any]:
        """The coordinator's status of the run; empty before the first one."""
        status = read_status(self.fleet)
        run: Mapping[str, Any] = {} if status is None else status["runs"].get(self.run, {})
        return run

    def detected(self, site: LocalDevice) -> dict[str, int]:
        """Counters of a device's watch: flows, alarms, alerts."""
        folder = site.folder / "state"
        if not (folder / WATCH_JOURNAL).is_file():
            return {}
        journal = GatewayStore(folder, exclusive=False)
        try:
            return journal.counters()
        finally:
            journal.close()
