"""What federation asks of a device's training: named tensors in, named tensors out.

No torch here, so that the rules above and a coordinator without any model stay light.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Tensors = Mapping[str, Array]  # name to float32 array; treated as immutable everywhere

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
    """

    tensors: dict[str, Array]
    gradient_norms: dict[str, float]
    loss: float


class Learner(Protocol):
    """One device's data and the means to train on it (eq 1). ``learning.trainer`` has the real one.

    Attributes:
        samples: |D_k|.
        steps_per_epoch: batches in one pass over D_k.
        validation_samples: |D_k^val|.
    """

    @property
    def samples(self) -> int: ...

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def validation_samples(self) -> int: ...

    def train(
        self, tensors: Tensors, *, first_step: int, steps: int, proximal: float = 0.0
    ) -> Trained:
        """Take ``steps`` steps from ``tensors``, each drawn back to them by ``proximal``.

        ``first_step`` counts the client's whole life: it fixes the order of the batches, so that
        a resumed run sees the same ones.
        """
        ...

    def score(self, tensors: Tensors) -> float:
        """M(θ; D_k^val): the validation loss in nats."""
        ...
