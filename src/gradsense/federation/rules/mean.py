"""Rule ``mean``: FedAvg's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gradsense.federation.parts import part
from gradsense.federation.pools import PooledUpdate
from gradsense.federation.rules.rule import WeightedSum


@part
class WeightedMean(WeightedSum):
    """Eq 2: θ ← θ + Σ |D_k| Δθ_k / Σ |D_k|."""

    name: ClassVar[str] = "mean"

    def weights(
        self, pooled: Sequence[PooledUpdate], submissions: Mapping[str, int]
    ) -> list[float]:
        total = sum(entry.update.samples for entry in pooled)
        return [entry.update.samples / total for entry in pooled]
