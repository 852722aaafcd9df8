"""Rule ``clipped-mean``: nobody moves the model further than the middle client does."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from gradsense.federation.parts import part
from gradsense.federation.pools import Pooled
from gradsense.federation.rules.rule import Aggregated, DeltaRule, by_client, moved
from gradsense.learning.learner import ServerState, Tensors, norm_of


@part
class ClippedMean(DeltaRule):
    """θ ← θ + mean of Δθ_k min(1, m / ‖Δθ_k‖), m the median of the pool's norms.

    Clipping to a bound is that of Sun et al. 2019 (arXiv 1911.07963); the bound follows the fleet,
    so it asks for no setting. A client counts once, whatever it says of its samples.
    """

    name: ClassVar[str] = "clipped-mean"

    def apply(self, tensors: Tensors, pooled: Pooled, state: ServerState) -> Aggregated:
        movements = by_client(pooled)
        norms = [norm_of(movement) for movement in movements]
        bound = float(np.median(norms))
        total = {name: np.zeros(t.shape) for name, t in tensors.items()}
        for movement, norm in zip(movements, norms, strict=True):
            share = (min(1.0, bound / norm) if norm else 1.0) / len(movements)
            for name, delta in movement.items():
                total[name] += np.multiply(delta, share, dtype=np.float64)
        named = {name for movement in movements for name in movement}
        step = {name: total[name].astype(np.float32) for name in tensors if name in named}
        return moved(tensors, step), {}
