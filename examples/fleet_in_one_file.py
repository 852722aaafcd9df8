"""A fleet in one file: your own data, your own model, any algorithm, in virtual time.

    python examples/fleet_in_one_file.py

Six factories watch a pump each. A window of its vibration is four numbers; a pump is sound, its
bearing is worn, or it runs dry. No factory has seen all three, and no window leaves it. The model
is a softmax regression in plain numpy: nothing here knows of language models or of torch.
"""

from __future__ import annotations

import numpy as np

from gradsense.federation import Algorithm, Client, Coordinator, get_algorithm
from gradsense.learning import FlowCost, Observed, Trained, observed
from gradsense.simulation import Simulator, assign

CLASSES = ("sound", "worn bearing", "runs dry")
BATCH, RATE = 20, 0.5


# Your data ----------------------------------------------------------------------------------


def windows(kinds: list[int], count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows of these classes: loudness, pitch, roughness and temperature, and the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(kinds, count)
    typical = np.array([[1.0, 2.0, 0.2, 1.0], [1.6, 2.2, 1.1, 1.3], [1.1, 3.0, 0.5, 2.0]])
    return rng.normal(typical[labels], 0.35).astype(np.float32), labels


SITES = {
    "north": windows([0, 1], 300, 1),
    "south": windows([0, 2], 240, 2),
    "east": windows([0, 1], 180, 3),
    "west": windows([0, 2], 400, 4),
    "harbour": windows([0], 260, 5),
    "hill": windows([0, 1], 120, 6),
}
TEST = windows([0, 1, 2], 2000, 7)


# Your model ---------------------------------------------------------------------------------


def probabilities(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Softmax regression: one row of class probabilities for each row of ``x``."""
    logits = x @ weights["score.weight"].T + weights["score.bias"]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


class PumpLearner:
    """What federation asks of a site's training: ``gradsense.learning.Learner``."""

    def __init__(self, x: np.ndarray, labels: np.ndarray) -> None:
        held_out = len(x) // 10
        self.x, self.labels = x[held_out:], labels[held_out:]
        self.validation = x[:held_out], labels[:held_out]
        self.samples = self.distinct = len(self.x)
        self.validation_samples = held_out
        self.steps_per_epoch = -(-self.samples // BATCH)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The same batch for the same step, so that a resumed run sees what it would have seen."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng(epoch).permutation(self.samples)
        rows = order[place * BATCH : (place + 1) * BATCH]
        return self.x[rows], self.labels[rows]

    def train(self, tensors, *, first_step, steps, proximal=0.0, correction=None) -> Trained:
        """Gradient descent (eq 1), drawn back by ``proximal`` and changed by ``correction``."""
        now = dict(tensors)
        norms = dict.fromkeys(["score"], 0.0)
        mean = {name: np.zeros_like(value) for name, value in tensors.items()}
        for step in range(first_step, first_step + steps):
            x, labels = self.batch(step)
            missed = probabilities(now, x) - np.eye(len(CLASSES))[labels]
            gradient = {"score.weight": missed.T @ x / len(x), "score.bias": missed.mean(axis=0)}
            for name, value in gradient.items():
                mean[name] = (mean[name] + value / steps).astype(np.float32)
                pull = value + proximal * (now[name] - tensors[name])
                if correction is not None:
                    pull = pull + correction[name]
                now[name] = (now[name] - RATE * pull).astype(np.float32)
            norms["score"] += float(np.linalg.norm(gradient["score.weight"])) / steps
        return Trained(now, norms, self.score(now), mean if correction is not None else {})

    def observe(self, tensors, *, first_step, steps, tolerance) -> Observed:
        """Read and train nothing: what ``gsfs`` asks for instead."""
        rows = slice(first_step * BATCH, (first_step + steps) * BATCH)
        x, labels = self.x[rows], self.labels[rows]
        return observed(
            x,
            probabilities(tensors, x),
            labels,
            np.ones(len(x), dtype=np.int64),
            classes=CLASSES,
            tolerance=tolerance,
        )

    def score(self, tensors) -> float:
        """The validation loss in nats."""
        x, labels = self.validation
        return float(-np.log(probabilities(tensors, x)[np.arange(len(x)), labels] + 1e-12).mean())


# The fleet ----------------------------------------------------------------------------------


def run(algorithm: Algorithm, sites=SITES, rounds: int = 8) -> Simulator:
    """Every factory and a coordinator in virtual time, until the last round."""
    start = {"score.weight": np.zeros((3, 4), np.float32), "score.bias": np.zeros(3, np.float32)}
    clients = [Client(site, PumpLearner(*data), algorithm) for site, data in sites.items()]
    simulator = Simulator(
        Coordinator(start, algorithm, seed=0, rounds=rounds),
        clients,
        devices=assign(list(sites), "mixed", seed=0),
        cost=FlowCost(training=1e6, inference=3e5, width=4 + 1 + len(CLASSES)),
        budgets={client.name: rounds * client.round_steps for client in clients},
        seed=0,
    )
    simulator.start()
    while simulator.step():
        pass
    return simulator


def report(algorithm: Algorithm, sites=SITES) -> None:
    """One line: how well the last model does on all three classes, and what it cost."""
    done = run(algorithm, sites)
    model = algorithm.weights(done.coordinator.model.tensors)
    right = (probabilities(model, TEST[0]).argmax(axis=1) == TEST[1]).mean()
    print(
        f"{algorithm.name:9}  {right:8.3f}  {done.meter.uploads:7}  "
        f"{done.meter.uplink_bytes:12,}  {done.now:15.2f}"
    )


if __name__ == "__main__":
    print("algorithm  accuracy  uploads  uplink bytes  virtual seconds")
    for name in ("fedavg", "fedprox", "scaffold", "gsfs-tune", "gsfs"):
        report(get_algorithm(name))
