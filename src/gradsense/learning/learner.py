"""What federation asks of a device's training: named tensors in, named tensors out.

No torch here, so that the rules above and a coordinator without any model stay light.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Tensors = Mapping[str, Array]  # name to float32 array; treated as immutable everywhere
ServerState = Mapping[str, NDArray[np.floating[Any]]]  # what an aggregator keeps, sums in float64

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


@dataclass(frozen=True)
class Trained:
    """What local training gives back.

    Attributes:
        tensors: θ after the steps, new arrays.
        gradient_norms: layer to the batch gradient's L2 norm, averaged over the steps.
        loss: mean training loss over the steps, in nats.
        mean_gradient: the batch gradient averaged over the steps, before any correction; only
            where a correction was given.
    """

    tensors: dict[str, Array]
    gradient_norms: dict[str, float]
    loss: float
    mean_gradient: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Observed:
    """What a site learnt from flows that it has only read; see ``learning.moments``.

    Attributes:
        factor: R, float32 [rows, d + 1 + classes]; RᵀR is the flows' moments S.
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

        ``tolerance`` is that of ``moments.factorise``.
        """
        ...

    def score(self, tensors: Tensors) -> float:
        """M(θ; D_k^val): the validation loss in nats."""
        ...
