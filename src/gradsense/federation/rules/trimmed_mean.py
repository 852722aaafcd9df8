"""Rule ``trimmed-mean``: of every value the largest and the smallest movements are left out."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from gradsense.federation.parts import part
from gradsense.federation.pools import Pooled
from gradsense.federation.rules.rule import Aggregated, DeltaRule, by_client, moved, stacked
from gradsense.learning.learner import ServerState, Tensors


@part
class TrimmedMean(DeltaRule):
    """θ_i ← θ_i + the mean of Δθ_{k,i} without its extremes (Yin et al. 2018, arXiv 1803.01498).

    A client counts once. A tensor that it leaves out counts as zero movement. Samples do not weigh.

    Attributes:
        trimmed: the share of clients left out at each end, rounded up. One or two of them always
            remain, so three clients give the median, and two the plain mean.
    """

    name: ClassVar[str] = "trimmed-mean"
    trimmed: Annotated[float, Field(ge=0, le=0.5)] = 0.2

    def apply(self, tensors: Tensors, pooled: Pooled, state: ServerState) -> Aggregated:
        movements = by_client(pooled)
        clients = len(movements)
        # The share as it is written, as pools.Quorum counts.
        ends = min(math.ceil(Fraction(repr(self.trimmed)) * clients), (clients - 1) // 2)
        step = {
            name: np.sort(values, axis=0)[ends : clients - ends]
            .mean(axis=0, dtype=np.float64)
            .astype(np.float32)
            for name, values in stacked(movements, tensors)
        }
        return moved(tensors, step), {}
