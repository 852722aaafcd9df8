"""One device for ``ours.py``: gradsense's own client, memory, sender and link, without a detector.

Reads ``SIZE REPEATS`` from standard input, uploads so often, and answers with a line of JSON: for
each upload when its training ended (``decided``) and when the coordinator's signed acknowledgement
was here (``answered``), both in nanoseconds since 1970.
"""

from __future__ import annotations

import json
import queue
import random
import sys
import threading
import time
from pathlib import Path

import numpy as np

from gradsense.agent.downlink import Downlink
from gradsense.agent.store import AgentStore
from gradsense.agent.uplink import Uplink
from gradsense.federation.client import Client
from gradsense.federation.update import GlobalModel
from gradsense.fleet import jobs
from gradsense.learning.learner import Observed, Tensors, Trained
from gradsense.transport import identity
from gradsense.transport.chunks import Resume
from gradsense.transport.connection import Arrival, Link
from gradsense.transport.messages import presence, sign_message
from gradsense.transport.pacing import Rate
from gradsense.transport.payloads import ONLINE, Ack, pack_update
from gradsense.transport.protocol import NO_MODEL, MessageHeader, device_filters


class Noise:
    """Moves every number at random, and notes when it was done."""

    samples = distinct = validation_samples = 10
    steps_per_epoch = 1
    done = 0

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def train(self, tensors: Tensors, **_: object) -> Trained:
        moved = {
            name: t + 1e-3 * self._rng.standard_normal(t.shape, np.float32)
            for name, t in tensors.items()
        }
        self.done = time.time_ns()
        return Trained(moved, {}, 0.0)

    def observe(self, tensors: Tensors, **_: object) -> Observed:
        raise NotImplementedError("FedAvg's clients train")

    def score(self, tensors: Tensors) -> float:
        return 0.0


class Device:
    """The agent's exchange with the coordinator, and uploads on command."""

    def __init__(self, bundle: Path, state: Path) -> None:
        self.me, self.job = identity.of_device(bundle), jobs.read(bundle / jobs.RUN)
        self.memory = AgentStore(state)
        self.learner = Noise(len(self.me.name))
        self.client = Client(self.me.name, self.learner, self.job.rules)
        rng = random.Random(0)
        self.down = Downlink(self.job.run, self.me.name, self.me.coordinator_key, held=None)
        self.up = Uplink(self.memory, self.me.signing_key, Rate(None, 1 << 20), rng=rng)
        self.inbox: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self.greeted = threading.Event()
        self.link = Link(
            self.me,
            subscriptions=device_filters(self.job.run, self.me.name),
            on_message=self.inbox.put,
            on_connect=lambda _: self.greeted.set(),
            rng=rng,
        )
        self.link.start()
        self.greeted.wait()
        self.up.on_connect(time.monotonic())
        key = self.me.signing_key
        self.link.publish(presence(self.job.run, self.me.name, ONLINE, NO_MODEL, key))
        while self.client.version < 0:
            self.exchange()

    def exchange(self) -> Ack | None:
        """Send what may go, and wait for a message or for what is due."""
        now = time.monotonic()
        for message in self.up.due(now, connected=True, unacked=self.link.unacked):
            self.link.publish(message)
        try:
            # The link frees its window without a word, so a window that is full is looked at soon.
            arrival = self.inbox.get(timeout=0.002 if self.link.unacked else 0.05)
        except queue.Empty:
            return None
        found = self.down.take(arrival.message, now)
        self.link.done(arrival)
        if isinstance(found, GlobalModel):
            self.client.adopt(found)
            self.memory.save(self.client.snapshot(), model=found)
        elif isinstance(found, Resume):
            self.up.on_resume(found, now)
        elif isinstance(found, Ack) and self.up.on_ack(found):
            return found
        return None

    def upload(self) -> dict[str, int]:
        update = self.client.work(1)
        assert update is not None
        version, digest = self.memory.held()
        header = MessageHeader(
            "update", self.job.run, self.me.name, update.sequence, version, digest
        )
        signed = sign_message(header, pack_update(update), self.me.signing_key)
        self.memory.save(self.client.snapshot(), update=signed)
        while (ack := self.exchange()) is None:
            pass
        assert ack == Ack(update.sequence), ack
        return {"decided": self.learner.done, "answered": time.time_ns()}


def main() -> None:
    """Say ``ready``, then answer each line."""
    device = Device(Path(sys.argv[1]), Path(sys.argv[2]))
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps([device.upload() for _ in range(int(line))]), flush=True)


if __name__ == "__main__":
    main()
