"""How does the cloud aggregate? The third column of the strategy table.

An aggregator is a frozen value with ``init`` and ``apply`` over a serialisable state of named
tensors (server moments, for example). Deltas are added, so eq 2's mean of models becomes the
mean of their deltas on the common base.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gradsense.federation.pool import PooledUpdate
from gradsense.learning.learner import Array, ServerState, Tensors

Kind = Literal["adam", "yogi", "adagrad"]


class Aggregator(Protocol):
    """The interface of every aggregator."""

    def init(self, tensors: Tensors) -> ServerState:
        """The server's state before the first aggregation."""
        ...

    def apply(
        self,
        tensors: Tensors,
        entries: Sequence[PooledUpdate],
        submissions: Mapping[str, int],
        state: ServerState,
    ) -> tuple[dict[str, Array], ServerState]:
        """The next global tensors and the next state.

        Args:
            tensors: the current global model.
            entries: the pool, at least one update.
            submissions: updates accepted from each client since the run began, the pool's included.
            state: what ``init`` or the last ``apply`` returned.
        """
        ...


def weighted_sum(entries: Sequence[PooledUpdate], weights: Sequence[float]) -> dict[str, Array]:
    """Σ w_i Δθ_i by tensor, summed in float64 in the order of arrival.

    A tensor that an update leaves out counts as zero movement: its client keeps the remainder and
    sends it when it has grown.
    """
    total: dict[str, np.ndarray] = {}
    for entry, weight in zip(entries, weights, strict=True):
        for name, delta in entry.update.delta.items():
            if name in total:
                total[name] += np.multiply(delta, weight, dtype=np.float64)
            else:
                total[name] = np.multiply(delta, weight, dtype=np.float64)
    return {name: value.astype(np.float32) for name, value in total.items()}


def _add(tensors: Tensors, step: Tensors) -> dict[str, Array]:
    # Untouched tensors are passed on, not copied.
    return {n: t + step[n] if n in step else t for n, t in tensors.items()}


@dataclass(frozen=True)
class _Weighing(ABC):
    """An aggregator that weighs: θ ← θ + v, with v ← β v + Σ w_i Δθ_i.

    Attributes:
        momentum: β. 0 is the plain sum. Above, the server carries on in the direction of earlier
            rounds (FedAvgM: Hsu et al. 2019, arXiv 1909.06335), which evens out what the sites
            of one round have in common by chance.
    """

    momentum: float = 0.0

    @abstractmethod
    def weights(
        self, entries: Sequence[PooledUpdate], submissions: Mapping[str, int]
    ) -> list[float]:
        """One weight an entry; the arguments are those of ``apply``."""

    def init(self, tensors: Tensors) -> ServerState:
        if not self.momentum:
            return {}
        return {f"v:{name}": np.zeros_like(tensor) for name, tensor in tensors.items()}

    def apply(
        self,
        tensors: Tensors,
        entries: Sequence[PooledUpdate],
        submissions: Mapping[str, int],
        state: ServerState,
    ) -> tuple[dict[str, Array], ServerState]:
        step = weighted_sum(entries, self.weights(entries, submissions))
        if not self.momentum:
            return _add(tensors, step), {}
        velocity = {
            name: (self.momentum * state[f"v:{name}"] + step.get(name, 0)).astype(np.float32)
            for name in tensors
        }
        return _add(tensors, velocity), {f"v:{name}": v for name, v in velocity.items()}


@dataclass(frozen=True)
class WeightedMean(_Weighing):
    """FedAvg (eq 2): θ ← θ + Σ |D_k| Δθ_k / Σ |D_k|."""

    def weights(
        self, entries: Sequence[PooledUpdate], submissions: Mapping[str, int]
    ) -> list[float]:
        total = sum(entry.update.samples for entry in entries)
        return [entry.update.samples / total for entry in entries]


@dataclass(frozen=True)
class ServerOptimizer:
    """FedOpt (eq 3-6; Reddi et al. 2021, arXiv 2003.00295).

    g = (1/N) Σ Δθ_k in the sign of a gradient (eq 3); m ← β₁ m + (1−β₁) g (eq 4);
    v ← β₂ v + (1−β₂) g² for Adam (eq 5); θ ← θ − η m / (√v + ε) (eq 6). Yogi and Adagrad change
    only v: Yogi v ← v − (1−β₂) g² sign(v − g²), Adagrad v ← v + g². v starts at ε² as in
    Reddi et al., and there is no bias correction, as in both papers.

    Attributes:
        kind: adam, yogi or adagrad.
        lr: η, the server's learning rate.
        beta1, beta2: memories of m and v.
        epsilon: ε, the adaptivity: larger is closer to plain averaging.
    """

    kind: Kind = "adam"
    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-3

    def init(self, tensors: Tensors) -> ServerState:
        state: dict[str, Array] = {}
        for name, tensor in tensors.items():
            state[f"m:{name}"] = np.zeros_like(tensor)
            state[f"v:{name}"] = np.full_like(tensor, self.epsilon**2)
        return state

    def _second_moment(self, v: NDArray[Any], g: Array) -> Array:
        square = np.square(g)
        new: np.ndarray
        if self.kind == "adam":
            new = self.beta2 * v + (1 - self.beta2) * square
        elif self.kind == "yogi":
            new = v - (1 - self.beta2) * square * np.sign(v - square)
        else:
            new = v + square
        return new.astype(np.float32)

    def apply(
        self,
        tensors: Tensors,
        entries: Sequence[PooledUpdate],
        submissions: Mapping[str, int],
        state: ServerState,
    ) -> tuple[dict[str, Array], ServerState]:
        mean = weighted_sum(entries, [1 / len(entries)] * len(entries))
        moved, new = dict(tensors), {}
        for name, tensor in tensors.items():
            g = -mean[name] if name in mean else np.zeros_like(tensor)
            m = (self.beta1 * state[f"m:{name}"] + (1 - self.beta1) * g).astype(np.float32)
            v = self._second_moment(state[f"v:{name}"], g)
            step = self.lr * m / (np.sqrt(v) + self.epsilon)
            moved[name] = (tensor - step).astype(np.float32)
            new[f"m:{name}"], new[f"v:{name}"] = m, v
        return moved, new


@dataclass(frozen=True)
class StalenessMean(_Weighing):
    """FedBuff (Nguyen et al. 2022, arXiv 2106.06639): the mean over K of Δθ / (1 + staleness)^a.

    The sum is divided by K, not by the sum of discounts: a pool of old news moves less.
    """

    exponent: float = 0.5

    def weights(
        self, entries: Sequence[PooledUpdate], submissions: Mapping[str, int]
    ) -> list[float]:
        return [(1 + entry.staleness) ** -self.exponent / len(entries) for entry in entries]


@dataclass(frozen=True)
class FrequencyMean(_Weighing):
    """GSFS (eq 13-14): θ ← θ + Σ α_k Δθ_k, α_k proportional to k's submission frequency.

    Read literally, the share of all submissions so far: α_k = s_k / Σ_j s_j over the pool's
    distinct clients. Several entries of one client are consecutive pieces of one movement, so
    each carries the whole α_k. ``gsfs-tune`` tempers this in ways on which the paper is silent.

    Attributes:
        samples_power: multiply the weight by |D_k|^p. 0 is the paper; 0.5 listens to large sites
            without letting them drown the small.
        frequency_power: use s_k^p. 1 is the paper, 0 ignores frequency.
        frequency_bound: s_k counts at most this many times the pool's smallest; None is the
            paper. It keeps a chatty client from speaking for the fleet.
        staleness_exponent: discount (1 + staleness)^-a; 0 is the paper.
        full_step_share: a pool with fewer of the clients heard so far than this share moves the
            model in proportion only; 0 is the paper. A deadline can close a pool that holds one
            site, and that site's model must not become everybody's.
    """

    samples_power: float = 0.0
    frequency_power: float = 1.0
    frequency_bound: float | None = None
    staleness_exponent: float = 0.0
    full_step_share: float = 0.0

    def weights(
        self, entries: Sequence[PooledUpdate], submissions: Mapping[str, int]
    ) -> list[float]:
        """As eq 14; untempered, they sum to 1 over distinct clients."""
        samples = {entry.update.client: entry.update.samples for entry in entries}
        frequency = {client: float(submissions[client]) for client in samples}
        if self.frequency_bound is not None:
            ceiling = self.frequency_bound * min(frequency.values())
            frequency = {client: min(value, ceiling) for client, value in frequency.items()}
        raw = {
            client: value**self.frequency_power * samples[client] ** self.samples_power
            for client, value in frequency.items()
        }
        step = 1.0
        if self.full_step_share > 0:
            step = min(1.0, len(raw) / len(submissions) / self.full_step_share)
        total = sum(raw.values())
        return [
            step * raw[e.update.client] / total * (1 + e.staleness) ** -self.staleness_exponent
            for e in entries
        ]
