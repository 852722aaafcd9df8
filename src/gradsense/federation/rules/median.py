"""Rule ``median``: one client cannot move a value further than the others do."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from gradsense.federation.parts import Pooled, part
from gradsense.federation.rules.rule import Aggregated, DeltaRule, moved
from gradsense.learning.learner import ServerState, Tensors


@part
class CoordinateMedian(DeltaRule):
    """θ_i ← θ_i + median_k Δθ_{k,i} (Yin et al. 2018, arXiv 1803.01498).

    A tensor that an update leaves out counts as zero movement. Samples do not weigh.
    """

    name: ClassVar[str] = "median"

    def init(self, tensors: Tensors) -> ServerState:
        return {}

    def apply(self, tensors: Tensors, pooled: Pooled, state: ServerState) -> Aggregated:
        deltas = [entry.update.delta for entry in pooled.updates]
        named = [name for name in tensors if any(name in delta for delta in deltas)]
        step = {
            name: np.median(
                [delta.get(name, np.zeros_like(tensors[name])) for delta in deltas], axis=0
            ).astype(np.float32)
            for name in named
        }
        return moved(tensors, step), {}
