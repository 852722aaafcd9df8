"""The coordinator's process: one broker connection, any number of runs, and their status.

One loop in one thread. What has come since the last turn is taken in with one commit for each run;
only then is it acknowledged, to the broker and to the devices. Should the process be killed in
between, the broker or the device sends again, and the journal knows what it has.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gradsense.coordinator.doorkeeper import QOS_0, RETAINED, Doorkeeper, device_of
from gradsense.coordinator.flags import Flags
from gradsense.coordinator.run import Run
from gradsense.errors import GradsenseError, InputError
from gradsense.fleet import broker_process
from gradsense.fleet.enrolment import publish_rules
from gradsense.fleet.jobs import RUNS
from gradsense.fleet.registry import Registry
from gradsense.storage import files
from gradsense.storage.sqlite import StorageFull
from gradsense.transport import identity, revocations
from gradsense.transport.connection import Arrival, Link, size
from gradsense.transport.messages import Message
from gradsense.transport.protocol import ROOT

STATUS_FILE = "status.json"
#: Format of that file; a change of its fields is a new one.
STATUS_FORMAT = 2
#: Messages of one commit. More make a device wait longer for its acknowledgement.
_BATCH = 64
#: Messages that the broker may have on the way to us without an acknowledgement.
_RECEIVE = 128
#: The broker keeps for us what comes while this process is restarted.
_SESSION_S = 3600
_SUBSCRIPTIONS = (f"{ROOT}/+/up/#",)
#: Polling intervals in seconds: when idle, for new runs, on a full disk.
_POLL_S, _LOOK_S, _RETRY_S = 0.25, 5.0, 1.0

_log = logging.getLogger(__name__)


class CoordinatorService:
    """Coordinates all runs of a fleet until ``stop`` is set.

    Args:
        fleet: the fleet's folder.
        rng: jitter of reconnections.
        status_s: seconds between two writes of the status file.
        timer: monotonic seconds; the runs' own time goes on with them.
        wall: seconds since 1970, for the ends of certificates.

    Raises:
        InputError: no fleet, or of its runs none can be opened: damaged, or at work elsewhere.
    """

    def __init__(
        self,
        fleet: Path,
        *,
        rng: random.Random,
        status_s: float = 1.0,
        timer: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.fleet, self._timer, self._wall, self._status_s = fleet, timer, wall, status_s
        self.stop = threading.Event()
        self.counts: Counter[str] = Counter()
        #: The status as last written; other threads may read it.
        self.latest: Mapping[str, Any] = {}
        self._identity = identity.of_coordinator(fleet)
        self._registry = Registry(fleet / "registry.sqlite3")
        self._runs: dict[str, Run] = {}
        self.unreadable: dict[str, str] = {}  # runs that cannot be opened, and why
        self._versions: dict[str, int] = {}  # the newest models that were reported
        self._offsets: dict[str, float] = {}  # run's own time minus the timer's
        self._door: Doorkeeper[Arrival] = Doorkeeper()
        self._crl = self._identity.crl.read_bytes() if self._identity.crl else b""
        self._flags = Flags(fleet)
        self._denied: Mapping[str, float] = {}  # by the broker, as last written
        self._batch: list[Arrival] = []  # what is being taken in
        self._connected = threading.Event()
        self._greeted = False
        self.link = Link(
            self._identity,
            subscriptions=_SUBSCRIPTIONS,
            on_message=self._receive,
            on_qos_0=lambda topic: self._door.refuse(device_of(topic), 0, QOS_0, self._timer()),
            retain_as_published=True,
            on_connect=lambda resumed: self._connected.set(),
            session_s=_SESSION_S,
            receive_maximum=_RECEIVE,
            rng=rng,
        )
        self._next_status = self._next_look = 0.0
        self._began = timer()
        self._look_for_runs(must=True)
        self._obey()
        self.latest = self.status()

    # Runs -----------------------------------------------------------------------------------

    def _look_for_runs(self, *, must: bool = False) -> list[str]:
        """Open what was made since the last look; their names.

        One that cannot be opened does not stop the others. It is tried again with each look.

        Args:
            must: raise if none opens.

        Raises: as ``Run``.
        """
        fresh: list[str] = []
        errors: dict[str, GradsenseError] = {}
        for folder in sorted((self.fleet / RUNS).glob("[!.]*")):
            name = folder.name
            if name in self._runs:
                continue
            try:
                keys, now = self._registry.signing_key, self._wall()
                run = Run(folder, key_of=keys, identity=self._identity, wall=now)
            except (InputError, StorageFull) as error:
                errors[name] = error
                if self.unreadable.get(name) != str(error):
                    _log.error("run %s cannot be opened: %s", name, error)
                continue
            self._runs[name] = run
            self._door.expect(run.body_limit)
            self._offsets[name] = run.now - self._timer()
            fresh.append(name)
        self.unreadable = {name: str(error) for name, error in errors.items()}
        if must and errors and not fresh:
            raise next(iter(errors.values()))
        return fresh

    def _now(self, name: str) -> float:
        return self._offsets[name] + self._timer()

    # The loop -------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until ``stop`` is set."""
        self.link.start()
        self._flags.start()
        try:
            while not self.stop.is_set():
                self.step()
        finally:
            self._write_status()
            self._flags.stopping.set()
            self.link.stop()
            for run in self._runs.values():
                run.close()
            self._registry.close()

    def step(self) -> None:
        """One turn: take in what has come, do what is due, write the status."""
        try:
            if self._greet():
                self._arrived()
                self._take()
            else:
                self._connected.wait(_POLL_S)
            for name, run in list(self._runs.items()):
                due = run.deadline()
                if due is not None and self._now(name) >= due:
                    with self._alone(name):
                        self._publish(run.tick(self._now(name)))
                        self._report(name, run)
            self._look_after()
        except StorageFull as full:
            # What could not be taken in is still at hand, and was not acknowledged.
            self.counts["stalls"] += 1
            _log.warning("%s; trying again", full)
            self.stop.wait(_RETRY_S)

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """What is damaged or too large of one run ends the work on that run, and on no other."""
        try:
            yield
        except (InputError, MemoryError) as error:
            what = str(error) or "it needs more memory than there is"
            _log.error("run %s cannot go on: %s", name, what)
            self.unreadable = {**self.unreadable, name: what}
            self._runs.pop(name).close()

    def _greet(self) -> bool:
        """Announce the models on a new connection; False before the first.

        Nothing is acknowledged before that, so that devices hear of a restored run's epoch first.
        """
        if self._connected.is_set():
            self._connected.clear()
            self._greeted = True
            self._announce(self._runs)
        return self._greeted

    def _look_after(self) -> None:
        """Periodic work."""
        self._deny()
        real = self._timer()
        if real >= self._next_look:
            self._next_look = real + _LOOK_S
            self._announce(self._look_for_runs())
            self._obey()
            self._look_for_revocations()
            for name, run in list(self._runs.items()):
                with self._alone(name):  # lets go of uploads that were given up
                    self._publish(run.tick(self._now(name)))
        if real >= self._next_status:
            self._write_status()
            # A status of thousands of devices takes its time; it may have a twentieth of it.
            took = self._timer() - real
            self._next_status = real + max(self._status_s, 20 * took)

    def _receive(self, arrival: Arrival) -> None:
        """Called by the link's thread with each message."""
        message, now = arrival.message, self._timer()
        device, topic = device_of(message.topic), message.topic
        if message.retain and not topic.endswith("/presence"):
            # It would come again with every connection, and take the broker's memory.
            if message.payload:
                self._door.refuse(device, size(message), RETAINED, now)
                if device not in self._door.shut_out(now):
                    self._publish([Message(topic, retain=True)])
            self.link.done(arrival)
        elif self._door.arrive(device, size(message), arrival, now):
            self.link.done(arrival)

    def _deny(self) -> None:
        """Have the broker deny those who flood, and let those in again whose time is over."""
        now, wall = self._timer(), self._wall()
        shut_out = self._door.shut_out(now)
        if shut_out.keys() == self._denied.keys():
            return
        self._registry.deny({device: wall + left for device, left in shut_out.items()})
        if not publish_rules(self.fleet, self._registry, wall):
            return  # an operator's command is at work: at the next look
        by_itself = broker_process.reload(self.fleet)
        for device in shut_out.keys() - self._denied.keys():
            _log.warning(
                "%s floods the fleet and is shut out for %.0f s%s",
                *(device, shut_out[device]),
                "" if by_itself else "; have the broker read its access rules again",
            )
        self._denied = shut_out

    def _look_for_revocations(self) -> None:
        """Pass on the list of revoked broker certificates when an operator has changed it."""
        file = self.fleet / "coordinator" / revocations.FILE
        crl = file.read_bytes() if file.is_file() else b""
        if crl == self._crl:
            return
        self._crl = crl
        self.link.trust(file)
        self._announce(self._runs)

    def _obey(self) -> None:
        """Carry out what operators have ordered since the last look."""
        orders = self._registry.orders()
        for name, run in list(self._runs.items()):
            with self._alone(name):
                self._publish(run.obey(orders, now=self._now(name)))
                self._report(name, run)

    def _arrived(self) -> None:
        """Fetch up to a batch of arrivals; wait for the first until something else is due."""
        if self._batch:
            return
        waits = {name: run.deadline() for name, run in self._runs.items()}
        due = [at - self._now(name) for name, at in waits.items() if at is not None]
        wait_s = max(0.0, min([_POLL_S, *due]))
        while len(self._batch) < _BATCH and (arrival := self._door.take(wait_s)) is not None:
            self._batch.append(arrival)
            wait_s = 0.0

    def _take(self) -> None:
        """Take in the batch, with one commit for each run."""
        groups: dict[str, list[Arrival]] = {}
        for arrival in self._batch:
            groups.setdefault(self._run_of(arrival.message), []).append(arrival)
        for name, group in groups.items():
            run = self._runs.get(name)
            if run is None:
                self.counts["unknown-run"] += len(group)
            else:
                messages = [arrival.message for arrival in group]
                with self._alone(name):
                    self._publish(run.take(messages, now=self._now(name), wall=self._wall()))
                    self._report(name, run)
            for arrival in group:
                self.link.done(arrival)
        self._batch = []

    @staticmethod
    def _run_of(message: Message) -> str:
        """The run that a topic seems to name; that run checks the rest of it."""
        parts = message.topic.split("/", 3)
        return parts[2] if len(parts) > 2 else ""

    def _publish(self, messages: Iterable[Message]) -> None:
        """What cannot be sent now is sent on request, or with the next connection."""
        for message in messages:
            if not self.link.publish(message):
                self.counts["unsent"] += 1

    def _announce(self, names: Iterable[str]) -> None:
        for name in names:
            self._publish(self._runs[name].announce())
            if self._crl:
                self._publish(self._runs[name].revocations(self._crl))

    def _report(self, name: str, run: Run) -> None:
        """A line for each new model."""
        newest = run.newest
        if newest.version != self._versions.get(name):
            self._versions[name] = newest.version
            _log.info(
                "run %s: model %d, of %d updates", name, newest.version, len(newest.contributors)
            )

    # Status ---------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The whole status, as JSON values."""
        return {
            "format": STATUS_FORMAT,
            "fleet": str(self.fleet),
            "at": datetime.fromtimestamp(self._wall(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "stopped": self.stop.is_set(),
            "connected": self.link.connected,
            "up_s": round(self._timer() - self._began, 3),
            "counts": dict(self.counts),
            "turned_away": self._door.counted(),
            "contradictions": dict(self._flags.scores),
            "shut_out": dict(self._door.shut_out(self._timer())),
            "link": asdict(self.link.counts),
            "runs": {name: asdict(run.status()) for name, run in self._runs.items()},
            "unreadable": self.unreadable,
        }

    def _write_status(self) -> None:
        file = self.fleet / STATUS_FILE
        self.latest = self.status()
        try:
            files.write(file, json.dumps(self.latest).encode(), sync=False, mode=0o666)
        except OSError as error:  # the status is for people; the journal is what counts
            _log.warning("%s: the status cannot be written: %s", file, error)


def read_status(fleet: Path) -> Mapping[str, Any] | None:
    """The status that the coordinator wrote last; None if it never did.

    Raises:
        InputError: it is of another gradsense.
    """
    try:
        status: Any = json.loads((fleet / STATUS_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(status, dict) or status.get("format") != STATUS_FORMAT:
        raise InputError(
            f"is no status of format {STATUS_FORMAT}",
            hint="start this version's coordinator, which writes it anew",
            file=fleet / STATUS_FILE,
            field="format",
        )
    return status
