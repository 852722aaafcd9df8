"""A learner small enough to do by hand: θ is one number, and each step adds ``stride`` to it."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

import numpy as np

from gradsense.federation.pools import PooledUpdate
from gradsense.federation.transforms import codecs
from gradsense.federation.update import Update, exactly
from gradsense.learning.learner import Observed, Tensors, Trained
from gradsense.learning.statistics import factorise


def tensor(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def update(client: str = "a", **fields: object) -> Update:
    """An update of one tensor ``w``; any field may be given."""
    values = {
        "base_version": 0,
        "sequence": 1,
        "samples": 10,
        "reason": "round",
        "delta": {"w": tensor(1.0)},
    } | fields
    return Update(client=client, **values)


def decoded(message: bytes, like: Tensors) -> Update:
    """The update that ``encode`` made a message of; its tensors have the shapes of these."""
    (length,) = struct.unpack_from("<I", message, 4)
    header = json.loads(message[8 : 8 + length])
    delta = codecs()[header["codec"]].unpack(message[8 + length :], exactly(like))
    return Update(**header, delta=delta)


def entry(client: str, *delta: float, samples: int = 1, staleness: int = 0) -> PooledUpdate:
    return PooledUpdate(
        update(client, samples=samples, delta={"w": tensor(*delta)}), 0.0, staleness
    )


@dataclass
class ToyLearner:
    """Adds ``stride`` to every tensor at each step; its loss is the distance of ``w`` to ``goal``.

    The gradient norm of a layer is the stride, so triggers can be predicted. Where it only reads,
    ``pull`` is the relative gradient that it reports.
    """

    stride: float = 1.0
    goal: float = 0.0
    samples: int = 10
    steps_per_epoch: int = 2
    validation_samples: int = 4
    distinct: int = 6
    pull: float = 1.0

    def train(
        self,
        tensors: Tensors,
        *,
        first_step: int,
        steps: int,
        proximal: float = 0.0,
        correction: Tensors | None = None,
    ) -> Trained:
        norms = {name.rpartition(".")[0] or name: abs(self.stride) for name in tensors}
        if correction is None:
            moved = {n: (t + steps * self.stride).astype(np.float32) for n, t in tensors.items()}
            return Trained(moved, norms, 0.0)
        # Steps of η = 1 against a gradient of -stride, corrected.
        raw = {n: np.full_like(t, -self.stride) for n, t in tensors.items()}
        moved = {n: t - steps * (raw[n] + correction[n]) for n, t in tensors.items()}
        return Trained(moved, norms, 0.0, raw)

    def observe(
        self, tensors: Tensors, *, first_step: int, steps: int, tolerance: float
    ) -> Observed:
        """One feature that is ``stride`` for flows of the second of two classes, else 0."""
        rows = np.array([[0, 1, 1, 0], [self.stride, 1, 0, 1]], dtype=np.float64)
        flows = round(self.samples * steps / self.steps_per_epoch)
        return Observed(factorise(rows, tolerance), {"second": self.pull}, flows)

    def score(self, tensors: Tensors) -> float:
        return float(abs(next(iter(tensors.values()))[0] - self.goal))
