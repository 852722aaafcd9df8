"""FedBuff (Nguyen et al. 2022, arXiv 2106.06639): asynchronous, with a buffer of K updates.

trigger   after every local round
pool      K updates, whoever sent them
rule      θ ← θ + (1/K) Σ Δθ / (1 + staleness)^a
"""

from __future__ import annotations

from typing import ClassVar

from gradsense.federation.algorithms.fedavg import FedAvg
from gradsense.federation.parts import NonNegative, part
from gradsense.federation.pools import Count, Pool, Pooled
from gradsense.federation.rules.rule import DeltaRule, WeightedSum


@part
class StalenessMean(WeightedSum):
    """The mean over K, each update discounted by (1 + staleness)^-a.

    The sum is divided by K, not by the sum of discounts: a pool of old news moves less.

    Attributes:
        exponent: a.
    """

    name: ClassVar[str] = "staleness-mean"

    exponent: NonNegative = 0.5

    def weights(self, pooled: Pooled) -> list[float]:
        return [
            (1 + entry.staleness) ** -self.exponent / len(pooled.updates)
            for entry in pooled.updates
        ]


@part
class FedBuff(FedAvg):
    """Asynchronous FedAvg: aggregates every K updates."""

    name: ClassVar[str] = "fedbuff"
    summary: ClassVar[str] = (
        "whoever is done uploads; mean of every 10 updates, stale ones discounted"
    )

    pool: Pool = Count(10)
    rule: DeltaRule = StalenessMean()
