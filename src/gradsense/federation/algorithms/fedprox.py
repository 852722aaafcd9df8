"""FedProx (Li et al. 2020, arXiv 1812.06127): FedAvg whose local steps are drawn back.

client    θ_{t+1} = θ_t − η (∇L(θ_t, D_k) + μ (θ_t − θ_start))
"""

from __future__ import annotations

from typing import ClassVar

from gradsense.federation.algorithms.fedavg import FedAvg, TrainingState
from gradsense.federation.parts import NonNegative, part
from gradsense.learning.learner import Learner, Trained


@part
class FedProx(FedAvg):
    """FedAvg with a proximal term in every local step.

    Attributes:
        proximal: μ.
    """

    name: ClassVar[str] = "fedprox"
    summary: ClassVar[str] = "as FedAvg, local steps drawn back to the global model"
    # The grid of Li et al.
    search: ClassVar[tuple[str, tuple[float, ...]] | None] = ("proximal", (0.001, 0.01, 0.1, 1.0))

    proximal: NonNegative = 0.01

    def train(self, state: TrainingState, learner: Learner, first_step: int, steps: int) -> Trained:
        return learner.train(
            state.local, first_step=first_step, steps=steps, proximal=self.proximal
        )
