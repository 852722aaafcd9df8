"""What travels: a client's ``Update`` upwards, the ``GlobalModel`` downwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gradsense.errors import WrongShape
from gradsense.learning.learner import Tensors, layers_of

_VALUES = ("client", "base_version", "sequence", "samples", "reason", "score")


@dataclass(frozen=True)
class Update:
    """What one client sends: named tensors, and what the coordinator must know about them.

    Attributes:
        client: the sender.
        base_version: the global model that the update starts from.
        sequence: 1, 2, 3, ... for each client; a number is never used twice.
        samples: |D_k|, the records that the client trains on, or of which its statistics are.
        reason: why it is sent now, in the trigger's words.
        delta: named tensors: what to add to the base, or sufficient statistics. Tensors that are
            not named did not move enough to travel.
        score: the client's validation loss in nats when it was sent; None where none was taken.
        codec: the name of the codec that packed it.
        packed: the delta as that codec's bytes, where the client has packed it already.
    """

    client: str
    base_version: int
    sequence: int
    samples: int
    reason: str
    delta: Tensors
    score: float | None = None
    codec: str = "none"
    packed: bytes = field(default=b"", repr=False)

    def values(self) -> dict[str, Any]:
        """The fields to save as JSON; tensors are saved beside them, packed bytes are not saved."""
        return {name: getattr(self, name) for name in _VALUES}

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that travel."""
        return layers_of(self.delta)


@dataclass(frozen=True)
class ShapeBound:
    """The shape that a tensor of an update may have.

    Attributes:
        shape: the largest.
        fewer_rows: there may be fewer rows of it, at least one.
    """

    shape: tuple[int, ...]
    fewer_rows: bool = False

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Whether tensor ``name`` may have this shape.

        Raises:
            WrongShape: it may not.
        """
        if shape == self.shape:
            return
        fewer = self.fewer_rows and shape[1:] == self.shape[1:] and len(shape) == len(self.shape)
        if not (fewer and 1 <= shape[0] <= self.shape[0]):
            rows = " or fewer rows" if self.fewer_rows else ""
            raise WrongShape(f"'{name}' is {shape}, not {self.shape}{rows}")


#: The tensors that an update may have, by name.
ShapeBounds = Mapping[str, ShapeBound]


def exactly(tensors: Tensors) -> ShapeBounds:
    """The bounds of tensors that are shaped like these."""
    return {name: ShapeBound(tensor.shape) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class GlobalModel:
    """What the cloud broadcasts.

    Attributes:
        version: 0 for the first model, one more with each aggregation.
        tensors: every tensor that is trained.
        participants: who is asked to train on it; None asks everybody.
    """

    version: int
    tensors: Tensors
    participants: frozenset[str] | None = None

    def invites(self, client: str) -> bool:
        """Whether this client is asked to train on this model."""
        return self.participants is None or client in self.participants

    def values(self) -> dict[str, Any]:
        """The fields to save as JSON, without the tensors."""
        invited = self.participants
        return {
            "version": self.version,
            "participants": None if invited is None else sorted(invited),
        }

    @classmethod
    def restored(cls, values: Mapping[str, Any], tensors: Tensors) -> GlobalModel:
        """The model that gave these ``values``."""
        invited = values["participants"]
        return cls(values["version"], tensors, None if invited is None else frozenset(invited))
