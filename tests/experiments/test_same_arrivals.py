"""The same arrivals give the same global models, bit for bit, in the simulator and over MQTT."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from engines.tls_broker import TlsBroker
from gradsense.cloud.coordination.process import Process
from gradsense.cloud.coordination.run import Run
from gradsense.engines.body import ONLINE, Ack, model_hash, pack_update
from gradsense.engines.devices import Device
from gradsense.engines.envelope import messages, read, written
from gradsense.engines.job import JOB_FILE, RUNS, START, Job
from gradsense.engines.meter import Cost
from gradsense.engines.mqtt import Arrival, Link
from gradsense.engines.simulator import Simulator
from gradsense.engines.wire import Origin
from gradsense.federation.client import Client
from gradsense.federation.coordinator import Coordinator
from gradsense.federation.strategies import get_strategy
from gradsense.federation.update import GlobalModel, Update
from gradsense.learning.learner import Observed, Tensors, Trained
from gradsense.learning.moments import factorise

NAMES = ("attic", "barn", "cellar", "dock")
CLASSES, FEATURES, WAIT_S = 3, 6, 20.0
DEVICE = Device("made up", 50.0, 8_000.0, 16_000.0, 0.25, 4.0, 1.0, "made up")


def start() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(CLASSES, FEATURES)).astype(np.float32)
    return {"score.weight": weight, "score.bias": np.zeros(CLASSES, np.float32)}


@dataclass
class Noise:
    """Moves at random, from a seed of its own, so that every bit of the sums matters."""

    seed: int
    samples: int = 20
    distinct: int = 20
    steps_per_epoch: int = 2
    validation_samples: int = 5
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.samples += 7 * self.seed

    def train(
        self,
        tensors: Tensors,
        *,
        first_step: int,
        steps: int,
        proximal: float = 0.0,
        correction: Tensors | None = None,
    ) -> Trained:
        moved = {
            name: (t + 0.1 * self.rng.normal(size=t.shape)).astype(np.float32)
            for name, t in tensors.items()
        }
        return Trained(moved, {"score": float(self.rng.exponential())}, 1.0)

    def observe(
        self, tensors: Tensors, *, first_step: int, steps: int, tolerance: float
    ) -> Observed:
        flows = self.samples * steps // self.steps_per_epoch
        features = np.hstack([self.rng.normal(size=(flows, FEATURES)), np.ones((flows, 1))])
        labels = np.eye(CLASSES)[self.rng.integers(CLASSES, size=flows)]
        return Observed(factorise(np.hstack([features, labels]), tolerance), {"no": 1.0}, flows)

    def score(self, tensors: Tensors) -> float:
        return float(self.rng.exponential())


class Speaking(Client):
    """Keeps what it said: a lossy codec's bytes cannot be made again from what they say."""

    said: dict[int, Update]

    def work(self, budget: int) -> Update | None:
        update = super().work(budget)
        if update is not None:
            self.said = getattr(self, "said", {}) | {update.sequence: update}
        return update


class Recording(Coordinator):
    """Writes down what arrives, and the model that it is about."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.hashes = {0: model_hash(self.model.tensors)}
        self.arrived: list[tuple[Update, str]] = []

    def receive(self, update: Update, now: float) -> GlobalModel | None:
        # Fails with the update, where it is refused: then nothing is written down.
        base = self.hashes[update.base_version]
        made = super().receive(update, now)
        self.arrived.append((update, base))
        self._note()
        return made

    def _note(self) -> None:
        self.hashes.setdefault(self.model.version, model_hash(self.model.tensors))


def simulated(strategy: str) -> tuple[Recording, list[tuple[Update, str]]]:
    """The coordinator in the end, and what arrived there: updates, and their models' hashes."""
    rules = get_strategy(strategy)
    cloud = Recording(start(), rules, seed=0)
    clients = [Speaking(name, Noise(seed), rules) for seed, name in enumerate(NAMES)]
    simulator = Simulator(
        cloud,
        clients,
        devices=dict.fromkeys(NAMES, DEVICE),
        cost=Cost(training=10.0, inference=1.0, width=FEATURES),
        budgets=dict.fromkeys(NAMES, 12),
        max_aggregations=4,
        seed=0,
    )
    simulator.start()
    while simulator.step():
        pass
    said = {client.name: client.said for client in clients}
    return cloud, [(said[one.client][one.sequence], base) for one, base in cloud.arrived]


class Teller:
    """A device that says what it is given, one after another, each once the last was heard."""

    def __init__(self, broker: TlsBroker, name: str) -> None:
        self.identity, self.name = broker.device(name), name
        self.arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self.greeted = threading.Event()
        self.link = Link(
            self.identity,
            subscriptions=[f"gradsense/v1/same/device/{name}/#"],
            on_message=self.arrivals.put,
            on_connect=lambda _: self.greeted.set(),
            rng=random.Random(0),
        )
        self.link.start()
        assert self.greeted.wait(WAIT_S)
        origin = Origin("status", "same", name, 0, 0, "0" * 64)
        letter = written(origin, ONLINE, self.identity.signing_key)
        assert self.link.publish(messages(letter, retain=True)[0])

    def tell(self, update: Update, base: str) -> None:
        origin = Origin("update", "same", self.name, update.sequence, update.base_version, base)
        letter = written(origin, pack_update(update), self.identity.signing_key)
        for message in messages(letter):
            assert self.link.publish(message)
        arrival = self.arrivals.get(timeout=WAIT_S)
        found = read(arrival.message, lambda _: self.identity.coordinator_key)
        assert Ack.open(found.body, found.properties) == Ack(update.sequence)
        self.link.done(arrival)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[TlsBroker]:
    made = TlsBroker(tmp_path)
    yield made
    made.stop()


def coordinated(broker: TlsBroker, strategy: str, arrived: list[tuple[Update, str]]) -> Path:
    """The journal's folder of a real coordinator that was told the same in the same order."""
    folder = broker.fleet / RUNS / "same"
    job = Job(run="same", strategy=strategy, labels=("a", "b", "c"), min_devices=len(NAMES))
    Run.create(folder, job, start())
    (folder / START).mkdir()
    (folder / START / JOB_FILE).write_text(job.text())
    working: list[Process] = []

    def work() -> None:
        working.append(Process(broker.fleet, rng=random.Random(0)))
        working[0].run()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        tellers = {name: Teller(broker, name) for name in NAMES}
        end = time.monotonic() + WAIT_S
        while not (working and working[0].told["runs"]["same"]["started"]):
            assert time.monotonic() < end
            time.sleep(0.02)
        for update, base in arrived:
            tellers[update.client].tell(update, base)
        for teller in tellers.values():
            teller.link.stop()
    finally:
        working[0].stop.set()
        thread.join()
    return folder


@pytest.mark.parametrize(
    "strategy",
    ["fedavg", "fedadam", "fedbuff:updates=3", "gsfs-paper", "gsfs:deadline_s=3600.0"],
)
def test_the_same_arrivals_give_the_same_models(broker: TlsBroker, strategy: str) -> None:
    cloud, arrived = simulated(strategy)
    assert cloud.model.version >= 2
    folder = coordinated(broker, strategy, arrived)
    run = Run(folder, key_of=lambda device, wall: None, identity=broker.coordinator)
    try:
        status = run.status()
        assert status.updates == len(cloud.arrived)
        assert status.version == cloud.model.version
        assert status.hash == cloud.hashes[cloud.model.version]
    finally:
        run.close()
