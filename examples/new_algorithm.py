"""A new algorithm in one file: both halves, its settings, and a run beside FedAvg.

    python examples/new_algorithm.py

    client    local steps as in FedAvg
    trigger   a layer's gradient is still long, or three local rounds went by
    pool      all who were asked, as in FedAvg
    rule      a mean in which an update counts as far as it points where the others point

Put this class into a file of its own in ``gradsense/federation/algorithms/`` and every command
knows it: ``gradsense compare --algorithms fedavg,agree``, with ``agree:least=0.2`` to change a
setting. The shared checks in ``tests/`` find it there too.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from fleet_in_one_file import SITES, report, windows
from pydantic import Field

from gradsense.federation import (
    Decision,
    FedAvg,
    Pooled,
    Sensed,
    Trigger,
    WeightedSum,
    get_algorithm,
    part,
)

# The client's half --------------------------------------------------------------------------


@part
class Restless(Trigger):
    """Upload while a layer still has a gradient above ``least``; at the latest in round three."""

    least: Annotated[float, Field(ge=0)] = 0.5

    def sense(self, state: dict[str, float], seen: Sensed) -> tuple[dict[str, float], Decision]:
        if max(seen.gradient_norms.values()) > self.least:
            return state, Decision("gradient")
        return state, Decision("silence" if seen.rounds >= 3 else None)


# The cloud's half ---------------------------------------------------------------------------


@part
class Agreement(WeightedSum):
    """Σ w_k Δθ_k, w_k ∝ max(0, cos(Δθ_k, median of the pool)).

    Who points away from the fleet, by mistake or on purpose, is not followed.
    """

    name: ClassVar[str] = "agreement"

    def weights(self, pooled: Pooled) -> list[float]:
        deltas = [one.update.delta for one in pooled.updates]
        moves = np.stack([np.concatenate([d[n].ravel() for n in sorted(d)]) for d in deltas])
        centre = np.median(moves, axis=0)
        lengths = np.linalg.norm(moves, axis=1) * np.linalg.norm(centre) + 1e-12
        agree = np.maximum(0.0, moves @ centre / lengths)
        return [float(one) for one in agree / max(agree.sum(), 1e-12)]


@part
class Agree(FedAvg):
    """FedAvg that is quiet without news, and does not follow a site that contradicts the others."""

    name: ClassVar[str] = "agree"
    summary: ClassVar[str] = "uploads while gradients are long; a mean weighted by agreement"

    trigger: Trigger = Restless()
    rule: WeightedSum = Agreement()


if __name__ == "__main__":
    sites = {name: windows([0, 1, 2], 150, seed) for seed, name in enumerate(SITES)}
    for name in ("west", "hill"):  # somebody mixed up the labels there
        sites[name] = (sites[name][0], (sites[name][1] + 1) % 3)
    print("algorithm  accuracy  uploads  uplink bytes  virtual seconds")
    for algorithm in (get_algorithm("fedavg"), Agree()):
        report(algorithm, sites)
