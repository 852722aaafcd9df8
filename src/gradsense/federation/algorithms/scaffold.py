"""SCAFFOLD (Karimireddy et al. 2020, arXiv 1910.06378): control variates against client drift.

    client    θ_{t+1} = θ_t − η (∇L(θ_t, D_k) + c − c_k)
              c_k ← the mean gradient of the client's own data over the round
    rule      θ and c each move by FedAvg's mean; c by as much times the share of clients that sent

Each client k knows c_k, the cloud knows c, their mean. A local step goes along g + c − c_k: the
client's own pull is taken out and the fleet's put in. The c travel beside the weights as tensors of
their own, named ``control/…``, so an update and a model are twice as large.

The paper's option II takes c_k from how far the weights moved, (x − y) / (K η), which for SGD is
the mean gradient. Here the mean gradient itself is kept, which also holds for other optimisers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from gradsense.federation.algorithms.fedavg import FedAvg, TrainingState
from gradsense.federation.parts import part
from gradsense.federation.pools import Pooled, senders
from gradsense.federation.rules.rule import Aggregated, WeightedMean
from gradsense.learning.learner import Array, Learner, ServerState, Tensors, Trained

_PREFIX = "control/"


def weights_of(tensors: Tensors) -> Tensors:
    """Without the controls."""
    return {name: t for name, t in tensors.items() if not name.startswith(_PREFIX)}


def controls_of(tensors: Tensors) -> dict[str, Array]:
    """The controls by the names of their weights."""
    return {n.removeprefix(_PREFIX): t for n, t in tensors.items() if n.startswith(_PREFIX)}


def rejoined(weights: Tensors, controls: Tensors) -> dict[str, Array]:
    """Weights and controls in one mapping."""
    return dict(weights) | {_PREFIX + name: tensor for name, tensor in controls.items()}


@part
class ControlledMean(WeightedMean):
    """FedAvg's mean for the weights; c moves by as much, times the share of clients that sent.

    The paper weighs all clients alike. Here both means weigh by samples, as FedAvg's does, so
    that the two algorithms differ in the controls alone.
    """

    name: ClassVar[str] = "controlled-mean"

    def apply(self, tensors: Tensors, pooled: Pooled, state: ServerState) -> Aggregated:
        moved, state = super().apply(tensors, pooled, state)
        share = np.float32(len(senders(pooled.updates)) / len(pooled.submissions))
        for name in moved:
            if name.startswith(_PREFIX):
                moved[name] = tensors[name] + share * (moved[name] - tensors[name])
        return moved, state


@dataclass
class ControlledState(TrainingState):
    """``control`` is c_k; nothing before the first round, which is 0."""

    control: Tensors = field(default_factory=dict)


@part
class Scaffold(FedAvg):
    """FedAvg with control variates."""

    name: ClassVar[str] = "scaffold"
    summary: ClassVar[str] = "as FedAvg, local steps corrected by control variates; twice the bytes"

    rule: ControlledMean = ControlledMean()

    def begin(self) -> ControlledState:
        return ControlledState(sensing=self.trigger.init())

    def train(self, state: TrainingState, learner: Learner, first_step: int, steps: int) -> Trained:
        assert isinstance(state, ControlledState)
        fleet = controls_of(state.reference)
        own = state.control or {name: np.zeros_like(c) for name, c in fleet.items()}
        trained = learner.train(
            weights_of(state.local),
            first_step=first_step,
            steps=steps,
            correction={name: c - own[name] for name, c in fleet.items()},
        )
        state.control = trained.mean_gradient
        news = {name: c + (state.control[name] - own[name]) for name, c in fleet.items()}
        return replace(trained, tensors=rejoined(trained.tensors, news))

    def opened(self, tensors: Tensors) -> Tensors:
        return rejoined(tensors, {name: np.zeros_like(t) for name, t in tensors.items()})

    def weights(self, tensors: Tensors) -> Tensors:
        return weights_of(tensors)
