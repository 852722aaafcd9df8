"""The client: one site's training role, as a state machine without clock, socket or file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gradsense.federation.codec import CODECS
from gradsense.federation.scaffold import controls_of, rejoin, weights_of
from gradsense.federation.strategies import Strategy
from gradsense.federation.trigger import Sensed
from gradsense.federation.update import GlobalModel, Update
from gradsense.learning.learner import Learner, Tensors, layer_of
from gradsense.learning.statistics import MOMENTS


class Client:
    """Local training, sensing, and the decision to speak.

    The client holds θ (``local``) and a reference point (``reference``): the adopted global model
    plus all that was sent since. Their difference is the unsent movement. After an upload the
    reference moves by exactly what was sent, so a layer that stayed behind, or what a lossy codec
    rounded away, remains in the difference and travels later (error feedback).

    Where the strategy sends moments, the client trains nothing: both stay the adopted model, and
    what it keeps instead is how far it has read its flows and how far it has reported them.

    Args:
        name: unique in the fleet.
        learner: the site's data and trainer.
        strategy: whose trigger decides.
        visit_epochs: E, the local epochs between two decisions; at least one step.
    """

    def __init__(
        self, name: str, learner: Learner, strategy: Strategy, *, visit_epochs: float = 1.0
    ) -> None:
        self.name = name
        self.learner = learner
        self.strategy = strategy
        self.visit_epochs = visit_epochs
        self.version = -1  # nothing adopted yet
        self.local: Tensors = {}
        self.reference: Tensors = {}
        self.sequence = 0
        self.spoke_on = -1  # the version of the last upload's base
        self.steps = 0
        self.visits = 0  # since the last upload
        self.fresh = False  # adopted a model and has not looked at it yet
        self.read = self.told = 0  # moments only: steps of the first epoch read, and reported
        self.told_before = 0  # the last upload
        self.control: Tensors = {}  # SCAFFOLD's c_k; nothing before the first visit, which is 0
        self.sensing = strategy.trigger.init()

    @property
    def visit_steps(self) -> int:
        """Steps of one visit; more where the site has more flows by now."""
        return max(1, round(self.visit_epochs * self.learner.steps_per_epoch))

    def adopt(self, model: GlobalModel) -> None:
        """Take a new global model and reset the reference point (eq 15).

        With ``keep_local`` the unsent movement is put on top of the new model; without, it is
        lost, as in the paper. An older model than the one held is ignored.
        """
        if model.version <= self.version:
            return
        unsent = self.version >= 0 and self.local is not self.reference
        if self.strategy.keep_local and unsent:
            self.local = {
                name: tensor
                if self.local[name] is self.reference[name]
                else tensor + (self.local[name] - self.reference[name])
                for name, tensor in model.tensors.items()
            }
        else:
            self.local = model.tensors
        self.reference = model.tensors
        self.version = model.version
        self.fresh = True

    def plan(self, budget: int) -> tuple[int, int]:
        """What the next ``work(budget)`` will cost: training steps, and passes over D_k^val.

        No steps means that there is nothing to do: a client that sends moments has reported all
        its flows, or has found that the present model explains them.
        """
        if self.strategy.payload == "moments":
            until = min(self.learner.steps_per_epoch, self.read + self.visit_steps)
            news = until > self.read or (self.fresh and until > self.told)
            return (min(budget, until - self.told) if news else 0), 0
        passes = 1 + self.fresh if self.strategy.trigger.needs_score else 0
        return min(budget, self.visit_steps), passes

    def work(self, budget: int) -> Update | None:
        """One visit of local training (eq 1), then the trigger's decision.

        Args:
            budget: steps that may still be spent; the visit is cut to it.

        Returns:
            The update to send, or None to stay silent.

        Raises:
            RuntimeError: no global model was adopted yet.
            ValueError: a budget below one step.
        """
        if self.version < 0:
            raise RuntimeError(f"client '{self.name}' has no global model to start from")
        if budget < 1:
            raise ValueError("a visit needs a budget of at least one step")
        if self.strategy.payload == "moments":
            return self._observe(budget)
        trigger = self.strategy.trigger
        if self.fresh:  # the broadcast moved the reference: eq 7 compares with M(θ_ref) from here
            score = self.learner.score(self.reference) if trigger.needs_score else None
            self.sensing = trigger.reset(self.sensing, score)
            self.fresh = False
        steps, _ = self.plan(budget)
        self.local, norms = self._train(steps)
        self.steps += steps
        self.visits += 1
        score = self.learner.score(self.local) if trigger.needs_score else None
        seen = Sensed(norms, score, self.visits)
        self.sensing, decision = trigger.sense(self.sensing, seen)
        if decision.reason is None:
            return None
        return self._speak(decision.reason, decision.layers, score)

    def _train(self, steps: int) -> tuple[Tensors, dict[str, float]]:
        """The local tensors after these steps, and the gradient norms by layer."""
        first, proximal = self.steps, self.strategy.proximal
        if not self.strategy.controls:
            trained = self.learner.train(
                self.local, first_step=first, steps=steps, proximal=proximal
            )
            return trained.tensors, trained.gradient_norms
        fleet = controls_of(self.reference)
        own = self.control or {name: np.zeros_like(c) for name, c in fleet.items()}
        trained = self.learner.train(
            weights_of(self.local),
            first_step=first,
            steps=steps,
            proximal=proximal,
            correction={name: c - own[name] for name, c in fleet.items()},
        )
        self.control = trained.mean_gradient
        news = {name: c + (self.control[name] - own[name]) for name, c in fleet.items()}
        return rejoin(trained.tensors, news), trained.gradient_norms

    def _observe(self, budget: int) -> Update | None:
        """Read what was not reported yet, and report it if the global head does not explain it."""
        steps, _ = self.plan(budget)
        if steps < 1:
            return None
        seen = self.learner.observe(
            self.local, first_step=self.told, steps=steps, tolerance=self.strategy.tolerance
        )
        self.fresh = False
        self.steps += steps
        self.read = max(self.read, self.told + steps)
        self.visits += 1
        sensed = Sensed(seen.gradient_norms, None, self.visits)
        self.sensing, decision = self.strategy.trigger.sense(self.sensing, sensed)
        if decision.reason is None:
            return None
        self.told_before, self.told = self.told, self.told + steps
        delta, packed = self._pack({MOMENTS: seen.factor})
        return self._update(decision.reason, delta, packed, samples=seen.flows)

    def refused(self, sequence: int) -> None:
        """The coordinator turned an update away.

        Moments of the last upload count as never told, and travel again with the next model.
        Weights move on: the next model replaces what they moved by.
        """
        if sequence == self.sequence and self.told > self.told_before:
            self.told = self.told_before
            self.fresh = True

    def _pack(self, tensors: Tensors) -> tuple[Tensors, bytes]:
        """What the coordinator will read, and the bytes that say so."""
        codec = CODECS[self.strategy.codec]
        packed = codec.pack(tensors)
        return (tensors if codec is CODECS["none"] else codec.unpack(packed)), packed

    def _speak(self, reason: str, layers: tuple[str, ...] | None, score: float | None) -> Update:
        chosen = set(layers) if self.strategy.partial and layers is not None else None
        moved = {
            name: tensor - self.reference[name]
            for name, tensor in self.local.items()
            if chosen is None or layer_of(name) in chosen
        }
        delta, packed = self._pack(moved)
        self.sensing = self.strategy.trigger.reset(self.sensing, score)
        # What was sent exactly needs no second copy: the reference is then θ itself.
        exact = delta is moved
        sent = self.local if exact else {n: self.reference[n] + d for n, d in delta.items()}
        self.reference = {n: sent[n] if n in delta else self.reference[n] for n in self.local}
        return self._update(reason, delta, packed, samples=self.learner.samples, score=score)

    def _update(
        self,
        reason: str,
        delta: Tensors,
        packed: bytes,
        *,
        samples: int,
        score: float | None = None,
    ) -> Update:
        self.sequence += 1
        self.spoke_on = self.version
        self.visits = 0
        return Update(
            client=self.name,
            base_version=self.version,
            sequence=self.sequence,
            samples=samples,
            reason=reason,
            delta=delta,
            score=score,
            codec=self.strategy.codec,
            packed=packed,
        )

    def state(self) -> tuple[dict[str, Any], dict[str, Tensors]]:
        """All that a resumed client needs: JSON-able values, and named groups of tensors."""
        values = {
            "version": self.version,
            "sequence": self.sequence,
            "spoke_on": self.spoke_on,
            "steps": self.steps,
            "visits": self.visits,
            "fresh": self.fresh,
            "read": self.read,
            "told": self.told,
            "told_before": self.told_before,
            "sensing": self.sensing,
        }
        tensors = {"local": self.local, "reference": self.reference}
        return values, tensors | ({"control": self.control} if self.control else {})

    def restore(self, values: Mapping[str, Any], tensors: Mapping[str, Tensors]) -> None:
        """Continue exactly where ``state`` was taken."""
        self.version = values["version"]
        self.sequence = values["sequence"]
        self.spoke_on = values["spoke_on"]
        self.steps = values["steps"]
        self.visits = values["visits"]
        self.fresh = values["fresh"]
        self.read, self.told = values["read"], values["told"]
        self.told_before = values["told_before"]
        self.sensing = dict(values["sensing"])
        self.local, self.reference = tensors["local"], tensors["reference"]
        self.control = tensors.get("control", {})
