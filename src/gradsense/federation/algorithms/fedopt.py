"""FedOpt (Reddi et al. 2021, arXiv 2003.00295), the paper's eq 3-6: an optimiser at the server.

    rule      g = (1/N) Σ_k Δθ_k over all N clients, in the sign of a gradient    (eq 3)
              m ← β₁ m + (1−β₁) g                                                 (eq 4)
              v ← β₂ v + (1−β₂) g²                        Adam                    (eq 5)
              v ← v − (1−β₂) g² sign(v − g²)              Yogi
              v ← v + g²                                  Adagrad
              θ ← θ − η m / (√v + ε)                                              (eq 6)

v starts at ε² as in Reddi et al., and there is no bias correction, as in both papers. The two
differ in N: the paper's is every client of the fleet, so one that sent nothing counts as standing
still (``fedopt``); Reddi et al. divide by the clients that sent (``fedadam`` and the others). With
every client in every round they agree.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from gradsense.federation.algorithms.fedavg import FedAvg
from gradsense.federation.parts import NonNegative, Positive, Share, part
from gradsense.federation.pools import Pooled, senders
from gradsense.federation.rules.rule import Aggregated, DeltaRule, weighted_sum
from gradsense.learning.learner import Array, ServerState, Tensors


@part
class ServerOptimizer(DeltaRule):
    """Eq 3-6. Yogi and Adagrad change only v.

    Attributes:
        kind: adam, yogi or adagrad.
        lr: η, the server's learning rate.
        beta1, beta2: memories of m and v.
        epsilon: ε, the adaptivity: larger is closer to plain averaging.
        over: N of eq 3: ``all`` clients of the fleet, or the distinct ``senders``.
    """

    name: ClassVar[str] = "server-optimizer"

    kind: Literal["adam", "yogi", "adagrad"] = "adam"
    lr: NonNegative = 0.01
    beta1: Share = 0.9
    beta2: Share = 0.99
    epsilon: Positive = 1e-3
    over: Literal["all", "senders"] = "senders"

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

    def apply(self, tensors: Tensors, pooled: Pooled, state: ServerState) -> Aggregated:
        # Several updates of one client are pieces of one movement: it counts once.
        count = len(senders(pooled.updates))
        if self.over == "all":
            count = max(count, pooled.clients)
        mean = weighted_sum(pooled, [1 / count] * len(pooled.updates))
        moved, new = dict(tensors), {}
        for name, tensor in tensors.items():
            g = -mean[name] if name in mean else np.zeros_like(tensor)
            m = (self.beta1 * state[f"m:{name}"] + (1 - self.beta1) * g).astype(np.float32)
            v = self._second_moment(state[f"v:{name}"], g)
            step = self.lr * m / (np.sqrt(v) + self.epsilon)
            moved[name] = (tensor - step).astype(np.float32)
            new[f"m:{name}"], new[f"v:{name}"] = m, v
        return moved, new


@part
class FedOpt(FedAvg):
    """FedAvg with Adam at the server."""

    name: ClassVar[str] = "fedopt"
    summary: ClassVar[str] = "as FedAvg, with Adam on the server (eq 3-6)"
    # The whole powers of ten in Reddi et al.'s grid for the server's rate, up to 1.
    search: ClassVar[tuple[str, tuple[float, ...]] | None] = ("lr", (0.001, 0.01, 0.1, 1.0))

    rule: DeltaRule = ServerOptimizer("adam", over="all")


@part
class FedAdam(FedOpt):
    """FedOpt as Reddi et al. have it: the mean is over the clients that sent."""

    name: ClassVar[str] = "fedadam"
    summary: ClassVar[str] = "as FedOpt, its mean over the clients that sent"

    rule: DeltaRule = ServerOptimizer("adam")


@part
class FedYogi(FedOpt):
    """FedAvg with Yogi at the server."""

    name: ClassVar[str] = "fedyogi"
    summary: ClassVar[str] = "as FedAvg, with Yogi on the server (eq 3-6)"

    rule: DeltaRule = ServerOptimizer("yogi")


@part
class FedAdagrad(FedOpt):
    """FedAvg with Adagrad at the server."""

    name: ClassVar[str] = "fedadagrad"
    summary: ClassVar[str] = "as FedAvg, with Adagrad on the server (eq 3-6)"

    rule: DeltaRule = ServerOptimizer("adagrad")
