"""The interface of rules, and what the rules that add deltas share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from gradsense.federation.contributions import Contribution, Contributions
from gradsense.federation.parts import Share, part
from gradsense.federation.pools import Pooled, PooledUpdate
from gradsense.learning.learner import Array, ServerState, Tensors

#: The next global tensors, and the next server state.
Aggregated = tuple[dict[str, Array], ServerState]


@part
class Rule(ABC):
    """How the cloud aggregates: a frozen value over a serialisable state of named tensors."""

    name: ClassVar[str]

    @abstractmethod
    def init(self, tensors: Tensors) -> ServerState:
        """The server's state before the first aggregation."""

    @abstractmethod
    def apply(self, tensors: Tensors, pooled: Pooled, state: ServerState) -> Aggregated:
        """Aggregate; no argument is changed in place.

        Args:
            tensors: the current global model.
            state: what ``init`` or the last ``apply`` returned.
        """


@part
class SumRule(Rule):
    """A rule whose state is a sum of what each client contributed: that can be taken back.

    The sum does not depend on the order of its terms, bit for bit.
    """

    @abstractmethod
    def contributions(self, tensors: Tensors, pooled: Pooled) -> Mapping[str, Contribution]:
        """What each client in the pool has contributed in all, its pooled updates included."""

    @abstractmethod
    def total(self, tensors: Tensors, contributions: Contributions) -> ServerState:
        """The state that these contributions give."""

    @abstractmethod
    def changed(
        self,
        tensors: Tensors,
        state: ServerState,
        contributions: Contributions,
        changes: Mapping[str, Contribution | None],
    ) -> Aggregated:
        """Tensors and state as if some clients had contributed this instead.

        Args:
            contributions: those that ``state`` is the sum of.
            changes: client to all that it has contributed; None: nothing.
        """

    def apply(self, tensors: Tensors, pooled: Pooled, state: ServerState) -> Aggregated:
        changes = self.contributions(tensors, pooled)
        return self.changed(tensors, state, pooled.contributions, changes)


@part
class DeltaRule(Rule):
    """A rule for updates that say what to add to the weights. Any such algorithm may take it."""

    def init(self, tensors: Tensors) -> ServerState:
        """None, but for rules that remember earlier rounds."""
        return {}


def weighted_sum(pooled: Pooled, weights: Sequence[float]) -> dict[str, Array]:
    """Σ w_i Δθ_i by tensor, summed in float64 in the order of arrival.

    A tensor that an update leaves out counts as zero movement: its client keeps the remainder and
    sends it when it has grown.
    """
    total: dict[str, np.ndarray] = {}
    for entry, weight in zip(pooled.updates, weights, strict=True):
        for name, delta in entry.update.delta.items():
            if name in total:
                total[name] += np.multiply(delta, weight, dtype=np.float64)
            else:
                total[name] = np.multiply(delta, weight, dtype=np.float64)
    return {name: value.astype(np.float32) for name, value in total.items()}


def by_client(pooled: Pooled) -> list[dict[str, Array]]:
    """Each client's movement, Σ Δθ over its updates: however often it spoke, it counts once."""
    own: dict[str, list[PooledUpdate]] = {}
    for entry in pooled.updates:
        own.setdefault(entry.update.client, []).append(entry)
    return [
        weighted_sum(Pooled(entries, pooled.submissions), [1.0] * len(entries))
        for entries in own.values()
    ]


def stacked(movements: Sequence[Tensors], tensors: Tensors) -> Iterator[tuple[str, Array]]:
    """Every tensor that any of these moves, and all of its movements, [clients, ...].

    One that a client leaves out counts as zero movement.
    """
    for name, tensor in tensors.items():
        if any(name in movement for movement in movements):
            still = np.zeros_like(tensor)
            yield name, np.stack([movement.get(name, still) for movement in movements])


def moved(tensors: Tensors, step: Tensors) -> dict[str, Array]:
    """θ + step; a tensor that does not move is passed on, not copied."""
    return {n: t + step[n] if n in step else t for n, t in tensors.items()}


@part
class WeightedSum(DeltaRule):
    """A rule that weighs: θ ← θ + v, with v ← β v + Σ w_i Δθ_i.

    Deltas are added, so that eq 2's mean of models becomes the mean of their deltas on the common
    base.

    Attributes:
        momentum: β. 0 is the plain sum. Above, the server carries on in the direction of earlier
            rounds (FedAvgM: Hsu et al. 2019, arXiv 1909.06335), which evens out what the sites
            of one round have in common by chance.
    """

    momentum: Share = 0.0

    @abstractmethod
    def weights(self, pooled: Pooled) -> list[float]:
        """One weight for each update."""

    def init(self, tensors: Tensors) -> ServerState:
        if not self.momentum:
            return {}
        return {f"v:{name}": np.zeros_like(tensor) for name, tensor in tensors.items()}

    def apply(self, tensors: Tensors, pooled: Pooled, state: ServerState) -> Aggregated:
        step = weighted_sum(pooled, self.weights(pooled))
        if not self.momentum:
            return moved(tensors, step), {}
        velocity = {
            name: (self.momentum * state[f"v:{name}"] + step.get(name, 0)).astype(np.float32)
            for name in tensors
        }
        return moved(tensors, velocity), {f"v:{name}": v for name, v in velocity.items()}


@part
class WeightedMean(WeightedSum):
    """Rule ``mean``, FedAvg's, eq 2: θ ← θ + Σ |D_k| Δθ_k / Σ |D_k|."""

    name: ClassVar[str] = "mean"

    def weights(self, pooled: Pooled) -> list[float]:
        total = sum(entry.update.samples for entry in pooled.updates)
        return [entry.update.samples / total for entry in pooled.updates]
