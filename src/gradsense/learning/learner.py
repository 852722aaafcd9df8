"""What federation asks of a device's training: named tensors in, named tensors out.

No torch here, so that the rules above and a coordinator without any model stay light.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Tensors = Mapping[str, Array]  # name to float32 array; treated as immutable everywhere
ServerState = Mapping[str, NDArray[Any]]  # a rule's state, of named arrays

_NUMBERED_BLOCK = re.compile(r"^(.*?\.\d+)\.")


def layer_of(name: str) -> str:
    """The layer a tensor belongs to: its numbered block, or else its module.

    ``model.decoder.layers.0.fc1.weight`` is in ``model.decoder.layers.0``, ``score.weight`` in
    ``score``. Sensing works by layer (eq 9-11), not by tensor: the parts of one block move
    together, and a handful of layers can be shown to a person.
    """
    block = _NUMBERED_BLOCK.match(name)
    return block.group(1) if block else name.rpartition(".")[0] or name


def layers_of(names: Iterable[str]) -> tuple[str, ...]:
    """The distinct layers of these tensors, in their order."""
    return tuple(dict.fromkeys(layer_of(name) for name in names))


def norm_of(tensors: Tensors) -> float:
    """The L2 norm over all tensors, summed in float64."""
    return math.sqrt(sum(float(np.square(t, dtype=np.float64).sum()) for t in tensors.values()))


@dataclass(frozen=True)
class FlowCost:
    """Arithmetic of one record in FLOP.

    Attributes:
        training, inference: 6 N and 2 N a token (Kaplan et al. 2020, §2.1).
        width: of a record's row [x; y], where sites send sufficient statistics.
    """

    training: float
    inference: float
    width: int = 0

    def reading(self, rows: float) -> float:
        """Sufficient statistics of so many distinct records: a forward pass each, and a thin SVD.

        The SVD of a matrix m × n, m ≥ n, takes 6 m n² + 20 n³ FLOP with both factors of the
        thin form (R-SVD: Golub and Van Loan 2013, §8.6.3).
        """
        long, short = max(rows, self.width), min(rows, self.width)
        return rows * self.inference + 6 * long * short**2 + 20 * short**3


@dataclass(frozen=True)
class Trained:
    """What local training gives back.

    Attributes:
        tensors: θ after the steps, new arrays.
        gradient_norms: layer to the batch gradient's L2 norm, averaged over the steps.
        loss: mean training loss over the steps, in nats.
        mean_gradient: the batch gradient averaged over the steps, before any correction; only
            where a correction was given.
        step_norms: the norms that were averaged, step by step; empty where nobody kept them.
    """

    tensors: dict[str, Array]
    gradient_norms: dict[str, float]
    loss: float
    mean_gradient: dict[str, Array] = field(default_factory=dict)
    step_norms: tuple[dict[str, float], ...] = ()


@dataclass(frozen=True)
class Observed:
    """What a site learnt from flows that it has only read; see ``learning.statistics``.

    Attributes:
        factor: R, float32 [rows, d + 1 + classes]; RᵀR is the flows' second moments S.
        gradient_norms: class to ‖g_c‖ / ‖g_c(0)‖: the gradient of the head's cross-entropy over
            that class's flows at the current global head, against that of an untrained head.
            1 is a class that the head knows nothing of, 0 one that it cannot do better on.
        flows: how many were read.
    """

    factor: Array
    gradient_norms: dict[str, float]
    flows: int


class Learner(Protocol):
    """One device's data and the means to train on it (eq 1). ``learning.trainer`` has the real one.

    Attributes:
        samples: |D_k|.
        distinct: how many of them differ in prompt or label.
        steps_per_epoch: batches in one pass over D_k.
        validation_samples: |D_k^val|.
    """

    @property
    def samples(self) -> int: ...

    @property
    def distinct(self) -> int: ...

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def validation_samples(self) -> int: ...

    def train(
        self,
        tensors: Tensors,
        *,
        first_step: int,
        steps: int,
        proximal: float = 0.0,
        correction: Tensors | None = None,
    ) -> Trained:
        """Take ``steps`` steps from ``tensors``, each drawn back to them by ``proximal``.

        ``correction`` is added to every gradient (SCAFFOLD's c − c_k).
        ``first_step`` counts the client's whole life: it fixes the order of the batches, so that
        a resumed run sees the same ones.
        """
        ...

    def observe(
        self, tensors: Tensors, *, first_step: int, steps: int, tolerance: float
    ) -> Observed:
        """Read the flows of these steps of the first epoch, and train nothing.

        ``tolerance`` is that of ``statistics.factorise``.
        """
        ...

    def score(self, tensors: Tensors) -> float:
        """M(θ; D_k^val): the validation loss in nats."""
        ...
