"""What happens to a coordinator, and what it wants done: plain values, both.

``Coordinator.handle`` takes an event and returns effects. Whoever drives it, the simulator or the
process behind a broker, turns what it observes into events and carries the effects out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gradsense.errors import UpdateRefused
from gradsense.federation.update import GlobalModel, Update
from gradsense.learning.learner import ServerState, Tensors

# Events -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Joined:
    """A client came, or came back."""

    client: str


@dataclass(frozen=True)
class Left:
    """A client went. What it sent still counts."""

    client: str
    at: float = 0.0


@dataclass(frozen=True)
class Arrived:
    """An update is here; ``at`` in the driver's seconds."""

    update: Update = field(repr=False)
    at: float


@dataclass(frozen=True)
class TurnedAway:
    """An update was refused before the coordinator saw it: ``reason`` is the refusal's name."""

    client: str
    reason: str
    at: float = 0.0


@dataclass(frozen=True)
class Revoked:
    """A client is shut out, and what it contributed is to be taken back as far as it can be."""

    client: str
    at: float = 0.0


@dataclass(frozen=True)
class RolledBack:
    """An earlier model is to be the next one; ``state`` is the server's of that time."""

    tensors: Tensors = field(repr=False)
    state: ServerState = field(repr=False)
    at: float = 0.0


@dataclass(frozen=True)
class Ticked:
    """Time has passed; ``at`` in the driver's seconds."""

    at: float


Event = Joined | Left | Arrived | TurnedAway | Ticked | Revoked | RolledBack

# Effects ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Broadcast:
    """Give every connected client this model (eq 15).

    Attributes:
        contributors: whose updates went into it, in order of arrival; none for version 0.
    """

    model: GlobalModel = field(repr=False)
    contributors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Send:
    """Give one client the current model."""

    client: str
    model: GlobalModel = field(repr=False)


@dataclass(frozen=True)
class Refuse:
    """The update of an ``Arrived`` was not pooled."""

    update: Update = field(repr=False)
    refusal: UpdateRefused


@dataclass(frozen=True)
class WakeAt:
    """Send a ``Ticked`` at this time, in the driver's seconds."""

    at: float


Effect = Broadcast | Send | Refuse | WakeAt
