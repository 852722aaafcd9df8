"""The novelty score as a layer: small enough to run beside the model on a gateway.

``learning.answers.fleet_score`` explains it, and makes this layer from a fleet's statistics.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

#: ε, of squared residuals whose scale is 1: a quarter of a known flow's median.
LEAST_RESIDUAL = 1e-3
#: Influence is held between 1e-12 and 1e12, so that its logarithm is always finite.
_BOUND = 1e12


class SketchedInfluence(nn.Module):
    """log₁₀ of (‖y − Wx − b‖² + ε) ‖P [x; 1]‖², float32; larger is more novel.

    Args:
        features: d, values of x.
        rows: of P, [rows, d + 1].
    """

    def __init__(self, features: int, rows: int) -> None:
        super().__init__()
        self.projection = nn.Linear(features, rows)
        #: What the regression's outputs Wx + b were multiplied with to become logits
        #: (``federation.algorithms.gsfs``).
        self.sharpness: torch.Tensor
        self.register_buffer("sharpness", torch.ones(1))
        self.requires_grad_(False)

    @classmethod
    def of(cls, projection: npt.NDArray[np.floating[Any]], sharpness: float) -> SketchedInfluence:
        """From P, whose last column is the constant's."""
        score = cls(projection.shape[1] - 1, len(projection))
        score.projection.weight.copy_(torch.from_numpy(projection[:, :-1]))
        score.projection.bias.copy_(torch.from_numpy(projection[:, -1]))
        score.sharpness.fill_(sharpness)
        return score

    def forward(self, features: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Scores [n] of ``features`` [n, d] that the head answers with ``logits`` [n, classes]."""
        outputs = logits / self.sharpness
        # ‖y − o‖² with y the one-hot of o's largest: ‖o‖² − 2 max o + 1.
        missed = outputs.square().sum(dim=1) - 2 * outputs.amax(dim=1) + 1
        pull = self.projection(features).square().sum(dim=1)
        influence = (missed.clamp(min=0) + LEAST_RESIDUAL) * pull
        novelty: torch.Tensor = influence.clamp(1 / _BOUND, _BOUND).log10()
        return novelty
