"""Rule ``krum``: the mean of the movements that have the most company."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gradsense.federation.parts import part
from gradsense.federation.pools import Pooled
from gradsense.federation.rules.rule import Aggregated, DeltaRule, by_client, moved, stacked
from gradsense.learning.learner import ServerState, Tensors


@part
class MultiKrum(DeltaRule):
    """Multi-Krum (Blanchard et al. 2017, arXiv 1703.02757): θ ← θ + mean of n - f movements.

    A movement's score is the sum of its squared distances to its n - f - 2 nearest others; the
    n - f lowest are taken. A client counts once, whatever it says of its samples.

    Attributes:
        hostile: f as a share of the n clients, rounded up. The proof asks for n > 2 f + 2, so f is
            never more; of up to four clients all are taken.
    """

    name: ClassVar[str] = "krum"
    hostile: Annotated[float, Field(ge=0, le=0.5)] = 0.2

    def apply(self, tensors: Tensors, pooled: Pooled, state: ServerState) -> Aggregated:
        movements = by_client(pooled)
        clients = len(movements)
        most = max(0, (clients - 3) // 2)
        left_out = min(math.ceil(Fraction(repr(self.hostile)) * clients), most)
        if left_out:
            nearest = np.sort(squared_distances(movements, tensors), axis=1)
            # The first of each row is the movement itself.
            scores = nearest[:, 1 : clients - left_out - 1].sum(axis=1)
            taken = np.sort(np.argsort(scores, kind="stable")[: clients - left_out])
            movements = [movements[number] for number in taken]
        step = {
            name: values.mean(axis=0, dtype=np.float64).astype(np.float32)
            for name, values in stacked(movements, tensors)
        }
        return moved(tensors, step), {}


def squared_distances(movements: Sequence[Tensors], tensors: Tensors) -> NDArray[np.float64]:
    """‖Δθ_j - Δθ_k‖² over all tensors, [clients, clients]."""
    products: NDArray[Any] = np.zeros((len(movements), len(movements)))
    for _, values in stacked(movements, tensors):
        flat = values.reshape(len(values), -1).astype(np.float64)
        products += flat @ flat.T
    squares = np.diag(products)
    distances = np.maximum(squares[:, None] + squares - 2 * products, 0.0)
    # Rounding must not put a neighbour before the movement itself.
    np.fill_diagonal(distances, -1.0)
    return np.asarray(distances, np.float64)
