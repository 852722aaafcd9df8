"""The client: one site's learning role, as a state machine without clock, socket or file."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradsense.federation.algorithm import Algorithm, Plan
from gradsense.federation.transforms.transform import Plain
from gradsense.federation.update import GlobalModel, Update, exactly
from gradsense.learning.learner import Learner, Tensors


class Client:
    """Adopts global models, works in local rounds, and uploads when its algorithm says so.

    Args:
        name: unique in the fleet.
        learner: the site's data and trainer.
        algorithm: whose client half decides what a round is.
        local_epochs: E, the local epochs between two decisions; at least one step.
        seed: draws what a transform adds at random.

    Attributes:
        version: of the adopted model; -1 before the first.
        sequence: of the last upload.
        sent_on: the version that the last upload started from; -1 before the first.
        steps: taken in the client's life.
        rounds: local rounds since the last upload.
        state: the algorithm's own.
    """

    def __init__(
        self,
        name: str,
        learner: Learner,
        algorithm: Algorithm[Any],
        *,
        local_epochs: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.name = name
        self.learner = learner
        self.algorithm = algorithm
        self.local_epochs = local_epochs
        self.seed = seed
        self.version = self.sent_on = -1
        self.sequence = self.steps = self.rounds = 0
        self.state = algorithm.begin()

    @property
    def round_steps(self) -> int:
        """Steps of one local round; more where the site has more records by now."""
        return max(1, round(self.local_epochs * self.learner.steps_per_epoch))

    @property
    def weights(self) -> Tensors:
        """The weights that the client works with."""
        return self.algorithm.weights(self.state.local)

    @property
    def reported_steps(self) -> int:
        """Steps already reported to the coordinator, by an algorithm that does not train."""
        return self.algorithm.reported_steps(self.state)

    @property
    def waiting(self) -> bool:
        """It has uploaded on the current model and waits for the next one."""
        return self.algorithm.wait and self.sent_on >= self.version

    def adopt(self, model: GlobalModel, *, restored: bool = False) -> None:
        """Take a new global model (eq 15). An older one than the one held is ignored.

        Args:
            restored: the fleet returned to a backup, and goes on from this model whatever its
                version.
        """
        if restored or model.version > self.version:
            self.algorithm.adopt(self.state, model.tensors)
            self.version = model.version
            self.sent_on = min(self.sent_on, model.version - 1)  # nothing was sent on this one

    def plan(self, budget: int) -> Plan:
        """What the next ``work(budget)`` costs."""
        return self.algorithm.plan(self.state, self.learner, self.round_steps, budget)

    def work(self, budget: int) -> Update | None:
        """One local round (eq 1), then the trigger's decision.

        Args:
            budget: steps that may still be spent; the round is cut to it.

        Returns:
            The update to send; None: nothing to send.

        Raises:
            RuntimeError: no global model was adopted yet.
            ValueError: a budget below one step.
        """
        if self.version < 0:
            raise RuntimeError(f"client '{self.name}' has no global model to start from")
        if budget < 1:
            raise ValueError("a local round needs a budget of at least one step")
        steps = self.plan(budget).steps
        if steps < 1:
            return None
        outgoing = self.algorithm.local_round(
            self.state, self.learner, steps, first_step=self.steps, rounds=self.rounds + 1
        )
        self.steps += steps
        self.rounds += 1
        if outgoing is None:
            return None
        self.sequence += 1
        arrives, packed = self._pack(outgoing.tensors)
        self.algorithm.sent(self.state, outgoing, arrives)
        self.sent_on, self.rounds = self.version, 0
        return Update(
            client=self.name,
            base_version=self.version,
            sequence=self.sequence,
            samples=outgoing.samples,
            reason=outgoing.reason,
            delta=arrives,
            score=outgoing.score,
            codec=self.algorithm.codec.name,
            packed=packed,
        )

    def _pack(self, tensors: Tensors) -> tuple[Tensors, bytes]:
        """The tensors that the coordinator will decode, and their packed bytes."""
        codec = self.algorithm.codec
        rng = np.random.default_rng([self.seed, zlib.crc32(self.name.encode()), self.sequence])
        for transform in self.algorithm.transforms:
            tensors = transform.apply(tensors, rng)
        packed = codec.pack(tensors)
        if isinstance(codec, Plain):
            return tensors, packed
        return codec.unpack(packed, exactly(tensors)), packed

    def refused(self, sequence: int) -> None:
        """The coordinator turned an upload away."""
        if sequence == self.sequence:
            self.algorithm.refused(self.state)

    # Snapshots ------------------------------------------------------------------------------

    _COUNTERS = ("version", "sequence", "sent_on", "steps", "rounds")

    def snapshot(self) -> tuple[dict[str, Any], dict[str, Tensors]]:
        """All that a resumed client needs: JSON-able values, and named groups of tensors."""
        values, groups = self.state.split()
        return {**{name: getattr(self, name) for name in self._COUNTERS}, "state": values}, groups

    def restore(self, values: Mapping[str, Any], groups: Mapping[str, Tensors]) -> None:
        """Continue exactly where ``snapshot`` was taken."""
        for name in self._COUNTERS:
            setattr(self, name, values[name])
        self.state = type(self.state).joined(values["state"], groups)
