"""A coordinator at work in a thread, and devices that say over MQTT what they are told to."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradsense.coordinator.run import Run
from gradsense.coordinator.service import CoordinatorService
from gradsense.federation.update import Update
from gradsense.fleet.jobs import JOB_FILE, RUNS, START, Job
from gradsense.learning.learner import Tensors
from gradsense.transport.connection import Arrival, Link
from gradsense.transport.messages import Message, messages, presence, read, sign_message
from gradsense.transport.payloads import ONLINE, Ack, pack_update
from gradsense.transport.protocol import NO_MODEL, MessageHeader
from tests.support.tls_broker import TlsBroker

WAIT_S = 20.0


def new_run(fleet: Path, job: Job, tensors: Tensors) -> Path:
    """A run's folder as ``fleet run`` makes it, without a model to export."""
    folder = fleet / RUNS / job.run
    Run.create(folder, job, tensors)
    (folder / START).mkdir()
    (folder / START / JOB_FILE).write_text(job.text())
    return folder


def eventually(true: Callable[[], Any]) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def working(fleet: Path) -> Iterator[CoordinatorService]:
    """The coordinator of a fleet; SQLite wants it made in the thread that it works in.

    Other threads may read ``told``, which is new several times a second here.
    """
    made: queue.SimpleQueue[CoordinatorService] = queue.SimpleQueue()

    def work() -> None:
        process = CoordinatorService(fleet, rng=random.Random(0), status_s=0.05)
        made.put(process)
        process.run()

    thread = threading.Thread(target=work)
    thread.start()
    process = made.get(timeout=WAIT_S)
    try:
        yield process
    finally:
        process.stop.set()
        thread.join()


class Teller:
    """A device that says what it is given, and hears what it is answered."""

    def __init__(self, broker: TlsBroker, run: str, name: str) -> None:
        self.identity, self.name, self.run = broker.device(name), name, run
        self.arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        greeted = threading.Event()
        self.link = Link(
            self.identity,
            subscriptions=[f"gradsense/v2/{run}/device/{name}/#"],
            on_message=self.arrivals.put,
            on_connect=lambda _: greeted.set(),
            rng=random.Random(0),
        )
        self.link.start()
        assert greeted.wait(WAIT_S)
        self.say([presence(run, name, ONLINE, NO_MODEL, self.identity.signing_key)])

    def say(self, publishes: list[Message]) -> None:
        for message in publishes:
            assert self.link.publish(message)

    def sent(self, update: Update, base: str, raw: bytes | None = None) -> list[Message]:
        """The publishes of an update, or of another body under its name."""
        header = MessageHeader(
            "update", self.run, self.name, update.sequence, update.base_version, base
        )
        body = pack_update(update) if raw is None else raw
        return messages(sign_message(header, body, self.identity.signing_key))

    def hear(self) -> Ack:
        arrival = self.arrivals.get(timeout=WAIT_S)
        found = read(arrival.message, lambda _: self.identity.coordinator_key)
        self.link.done(arrival)
        return Ack.open(found.body, found.properties.header)

    def tell(self, update: Update, base: str) -> None:
        """Say an update and wait until it is durable."""
        self.say(self.sent(update, base))
        assert self.hear() == Ack(update.sequence)
