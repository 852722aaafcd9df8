"""The same arrivals give the same global models, bit for bit, in the simulator and over MQTT."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from gradsense.coordinator.run import Run
from gradsense.federation.algorithm import get_algorithm
from gradsense.federation.client import Client
from gradsense.federation.coordinator import Coordinator
from gradsense.federation.events import Arrived, Effect, Event, Refuse
from gradsense.federation.update import Update
from gradsense.fleet.jobs import Job
from gradsense.learning.learner import FlowCost, Observed, Tensors, Trained
from gradsense.learning.statistics import factorise
from gradsense.simulation.devices import DeviceProfile
from gradsense.simulation.simulator import Simulator
from gradsense.transport.payloads import model_hash
from tests.support.live_coordinator import Teller, eventually, new_run, working
from tests.support.tls_broker import TlsBroker

NAMES = ("attic", "barn", "cellar", "dock")
CLASSES, FEATURES = 3, 6
DEVICE = DeviceProfile("made up", 50.0, 8_000.0, 16_000.0, 0.25, 4.0, 1.0, "made up")


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

    def handle(self, event: Event) -> list[Effect]:
        if isinstance(event, Arrived):
            self.arrived.append((event.update, self.hashes[event.update.base_version]))
        effects = super().handle(event)
        assert not any(isinstance(effect, Refuse) for effect in effects)
        self.hashes.setdefault(self.model.version, model_hash(self.model.tensors))
        return effects


def simulated(algorithm: str) -> tuple[Recording, list[tuple[Update, str]]]:
    """The coordinator in the end, and what arrived there: updates, and their models' hashes."""
    rules = get_algorithm(algorithm)
    cloud = Recording(start(), rules, seed=0, rounds=4)
    clients = [Speaking(name, Noise(seed), rules) for seed, name in enumerate(NAMES)]
    simulator = Simulator(
        cloud,
        clients,
        devices=dict.fromkeys(NAMES, DEVICE),
        cost=FlowCost(training=10.0, inference=1.0, width=FEATURES),
        budgets=dict.fromkeys(NAMES, 12),
        seed=0,
    )
    simulator.start()
    while simulator.step():
        pass
    said = {client.name: client.said for client in clients}
    return cloud, [(said[one.client][one.sequence], base) for one, base in cloud.arrived]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[TlsBroker]:
    made = TlsBroker(tmp_path)
    yield made
    made.stop()


def coordinated(broker: TlsBroker, algorithm: str, arrived: list[tuple[Update, str]]) -> Path:
    """The run's folder of a real coordinator that was told the same in the same order."""
    job = Job(
        run="same",
        algorithm=algorithm,
        labels=("a", "b", "c"),
        min_devices=len(NAMES),
        interval_s=0.0,
        upload_gap_s=0.0,
    )
    folder = new_run(broker.fleet, job, start())
    with working(broker.fleet) as process:
        tellers = {name: Teller(broker, "same", name) for name in NAMES}
        eventually(lambda: process.latest["runs"]["same"]["started"])
        for update, base in arrived:
            tellers[update.client].tell(update, base)
        for teller in tellers.values():
            teller.link.stop()
    return folder


@pytest.mark.broker
@pytest.mark.parametrize(
    "algorithm",
    ["fedavg", "fedadam", "fedbuff:updates=3", "gsfs-paper", "gsfs:deadline_s=3600.0"],
)
def test_the_same_arrivals_give_the_same_models(broker: TlsBroker, algorithm: str) -> None:
    cloud, arrived = simulated(algorithm)
    assert cloud.model.version >= 2
    folder = coordinated(broker, algorithm, arrived)
    run = Run(folder, key_of=lambda device, wall: None, identity=broker.coordinator)
    try:
        status = run.status()
        assert status.updates == len(cloud.arrived)
        assert status.version == cloud.model.version
        assert status.hash == cloud.hashes[cloud.model.version]
    finally:
        run.close()
