"""FedAvgM (Hsu et al. 2019, arXiv 1909.06335): FedAvg with momentum at the server.

rule      v ← β v + Σ_k |D_k| Δθ_k / Σ_k |D_k|;  θ ← θ + v
"""

from __future__ import annotations

from typing import ClassVar

from gradsense.federation.algorithms.fedavg import FedAvg
from gradsense.federation.parts import part
from gradsense.federation.rules.rule import DeltaRule, WeightedMean


@part
class FedAvgM(FedAvg):
    """FedAvg whose mean carries on in the direction of earlier rounds (``momentum``)."""

    name: ClassVar[str] = "fedavgm"
    summary: ClassVar[str] = "as FedAvg, with momentum on the server"
    # From the grid of Hsu et al., and the default.
    search: ClassVar[tuple[str, tuple[float, ...]] | None] = ("momentum", (0.5, 0.7, 0.9, 0.97))

    rule: DeltaRule = WeightedMean(momentum=0.5)
