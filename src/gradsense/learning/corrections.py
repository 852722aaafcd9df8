"""What is done to a gradient between the backward pass and the optimiser's step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from gradsense.learning.learner import Array, Tensors

Parameters = Mapping[str, torch.nn.Parameter]


class Correction(Protocol):
    """Changes ``parameter.grad`` in place. Sensing has read the data's own gradient before."""

    def apply(self, parameters: Parameters) -> None: ...


class Proximal:
    """FedProx (Li et al. 2020, arXiv 1812.06127): + μ (θ − θ_start).

    Args:
        mu: μ.
        parameters: at θ_start.
    """

    def __init__(self, mu: float, parameters: Parameters) -> None:
        self.mu = mu
        self.start = {name: p.detach().clone() for name, p in parameters.items()}

    def apply(self, parameters: Parameters) -> None:
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - self.start[name], alpha=self.mu)


class Control:
    """SCAFFOLD (``federation.algorithms.scaffold``): + c − c_k, after the raw gradient is noted.

    Args:
        shift: c − c_k.
    """

    def __init__(self, shift: Tensors) -> None:
        self.shift = {name: torch.tensor(value) for name, value in shift.items()}
        self.total = {name: torch.zeros_like(value) for name, value in self.shift.items()}
        self.steps = 0

    def apply(self, parameters: Parameters) -> None:
        self.steps += 1
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                self.total[name] += parameter.grad
                parameter.grad += self.shift[name]

    def mean(self) -> dict[str, Array]:
        """The raw gradient averaged over the steps: the next c_k."""
        return {name: (total / self.steps).numpy() for name, total in self.total.items()}
