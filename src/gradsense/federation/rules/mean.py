"""Rule ``mean``: FedAvg's."""

from __future__ import annotations

from typing import ClassVar

from gradsense.federation.parts import part
from gradsense.federation.pools import Pooled
from gradsense.federation.rules.rule import WeightedSum


@part
class WeightedMean(WeightedSum):
    """Eq 2: θ ← θ + Σ |D_k| Δθ_k / Σ |D_k|."""

    name: ClassVar[str] = "mean"

    def weights(self, pooled: Pooled) -> list[float]:
        total = sum(entry.update.samples for entry in pooled.updates)
        return [entry.update.samples / total for entry in pooled.updates]
