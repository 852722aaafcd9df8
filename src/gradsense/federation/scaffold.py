"""SCAFFOLD (Karimireddy et al. 2020, arXiv 1910.06378): control variates against client drift.

Each client k knows c_k, the mean gradient of its own data on its last visit; the cloud knows c,
their mean. A local step goes along g + c − c_k: the client's own pull is taken out and the
fleet's put in. The c travel beside the weights as tensors of their own, named ``control/…``, so an
update and a model are twice as large.

The paper's option II takes c_k from how far the weights moved, (x − y) / (K η), which for SGD is
the mean gradient. Here the mean gradient itself is kept, which also holds for other optimisers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gradsense.federation.aggregate import WeightedMean
from gradsense.federation.pool import PooledUpdate
from gradsense.learning.learner import Array, ServerState, Tensors

_PREFIX = "control/"


def with_controls(tensors: Tensors) -> dict[str, Array]:
    """These weights, and a control of zeros for each."""
    zeros = {_PREFIX + name: np.zeros_like(tensor) for name, tensor in tensors.items()}
    return dict(tensors) | zeros


def weights_of(tensors: Tensors) -> Tensors:
    """Without the controls; the same mapping where there are none."""
    if not any(name.startswith(_PREFIX) for name in tensors):
        return tensors
    return {name: t for name, t in tensors.items() if not name.startswith(_PREFIX)}


def controls_of(tensors: Tensors) -> dict[str, Array]:
    """The controls by the names of their weights."""
    return {n.removeprefix(_PREFIX): t for n, t in tensors.items() if n.startswith(_PREFIX)}


def rejoin(weights: Tensors, controls: Tensors) -> dict[str, Array]:
    """Weights and controls in one mapping again."""
    return dict(weights) | {_PREFIX + name: tensor for name, tensor in controls.items()}


@dataclass(frozen=True)
class ControlledMean(WeightedMean):
    """FedAvg's mean for the weights; c moves by as much, times the share of clients that spoke.

    The paper weighs all clients alike. Here both means weigh by samples, as FedAvg's does, so
    that the two rows differ in the controls alone.
    """

    def apply(
        self,
        tensors: Tensors,
        entries: Sequence[PooledUpdate],
        submissions: Mapping[str, int],
        state: ServerState,
    ) -> tuple[dict[str, Array], ServerState]:
        moved, state = super().apply(tensors, entries, submissions, state)
        share = np.float32(len({entry.update.client for entry in entries}) / len(submissions))
        for name in moved:
            if name.startswith(_PREFIX):
                moved[name] = tensors[name] + share * (moved[name] - tensors[name])
        return moved, state
