"""Rule ``median``: one client cannot move a value further than the others do."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from gradsense.federation.parts import part
from gradsense.federation.pools import Pooled
from gradsense.federation.rules.rule import Aggregated, DeltaRule, by_client, moved, stacked
from gradsense.learning.learner import ServerState, Tensors


@part
class CoordinateMedian(DeltaRule):
    """θ_i ← θ_i + median_k Δθ_{k,i} (Yin et al. 2018, arXiv 1803.01498).

    A client counts once. A tensor that it leaves out counts as zero movement. Samples do not weigh.
    """

    name: ClassVar[str] = "median"

    def apply(self, tensors: Tensors, pooled: Pooled, state: ServerState) -> Aggregated:
        step = {
            name: np.median(values, axis=0).astype(np.float32)
            for name, values in stacked(by_client(pooled), tensors)
        }
        return moved(tensors, step), {}
