"""What travels: a client's ``Update`` upwards, the ``GlobalModel`` downwards."""

from __future__ import annotations

from dataclasses import dataclass, field

from gradsense.learning.learner import Tensors, layers_of


@dataclass(frozen=True)
class Update:
    """What one client says: named deltas, and what the coordinator must know about them.

    Attributes:
        client: who speaks.
        base_version: the global model that the delta starts from.
        sequence: 1, 2, 3, ... for each client; a number is never used twice.
        samples: |D_k|, the flows that the client trains on.
        reason: why it speaks now, in the trigger's words.
        delta: what to add to the base. Tensors that are not named did not move enough to travel.
        score: the client's validation loss when it spoke, or None where none was taken.
        codec: the codec that the client packed it with.
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

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that travel."""
        return layers_of(self.delta)


@dataclass(frozen=True)
class GlobalModel:
    """What the cloud tells everybody.

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
