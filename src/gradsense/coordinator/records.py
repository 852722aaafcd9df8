"""What a run's journal holds: its rows, and what one step changes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gradsense.federation.contributions import Contribution
from gradsense.transport.chunks import Chunk

#: Names of counts: of updates that came again, and the beginnings of those by reason.
DUPLICATES = "duplicates"
REFUSED, GIVEN_UP = "refused:", "given-up:"

Kind = Literal["join", "leave", "update", "refused", "tick", "revoke", "rollback"]
#: A device and the 16 bytes that name a message of it.
Upload = tuple[str, bytes]


@dataclass(frozen=True)
class JournalEvent:
    """An input of the coordinator.

    Attributes:
        id: 1, 2, 3, ... in order of arrival.
        at: the run's own time, in seconds.
        sequence, base_version, body_sha256, size: of an update and of a refusal, those of the
            message as it travelled; the hash is hex, the size in bytes.
        refusal: the name under which an update was refused.
        body: of an update, in the clear, until it is aggregated.
        base_version: of an update; of a rollback the version that is returned to.
    """

    id: int
    at: float
    kind: Kind
    device: str = ""
    sequence: int | None = None
    body_sha256: str = ""
    refusal: str = ""
    size: int = 0
    samples: int = 0
    body: bytes | None = field(default=None, repr=False)
    base_version: int = 0


@dataclass(frozen=True)
class IssuedModel:
    """A global model, and where the state after its aggregation rests.

    Attributes:
        hash: ``payloads.model_hash`` of its tensors.
        event: id of the last event that it includes.
        contributors: devices whose updates went into it, in order of arrival.
        took_s: seconds that the aggregation took.
        file, file_sha256, state: the snapshot, with ``Coordinator.snapshot()``'s values as JSON;
            None where newer ones have replaced it.
    """

    version: int
    hash: str
    at: float
    event: int
    contributors: tuple[str, ...]
    took_s: float = 0.0
    file: str | None = None
    file_sha256: str | None = None
    state: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Piece:
    """A chunk of an upload that is not whole yet, and when it came, in the run's time."""

    device: str
    chunk: Chunk
    at: float


@dataclass
class DeviceRecord:
    """What is known of a device that sent anything.

    Attributes:
        held: version of the model that it reported to hold; None: none of this run's.
        seen: when it last sent anything, in the run's time.
        bytes: payload of its messages.
        sequence: the largest that was pooled or refused.
    """

    name: str
    held: int | None = None
    seen: float = 0.0
    bytes: int = 0
    sequence: int = 0


@dataclass(frozen=True)
class UpdateOutcome:
    """What became of an update: pooled where ``refusal`` is empty."""

    body_sha256: str
    refusal: str


@dataclass
class JournalEntry:
    """What one step changes, all of it or nothing.

    Attributes:
        now: the run's time.
        gone: uploads whose pieces are needed no longer.
        counts: (device or nothing, name) to what is added.
        forget: bodies of events up to this id were aggregated and may go; None keeps all.
        widest: messages that the newest model is published in.
        order: id of the last of the operator's orders that was carried out.
        contributions: device to what it has contributed by now; None: nothing any more.
    """

    now: float
    events: list[JournalEvent] = field(default_factory=list)
    models: list[IssuedModel] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    gone: set[Upload] = field(default_factory=set)
    devices: dict[str, DeviceRecord] = field(default_factory=dict)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    forget: int | None = None
    widest: int = 0
    order: int = 0
    contributions: Mapping[str, Contribution | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        changed = self.events or self.pieces or self.gone or self.devices or self.counts
        return bool(changed or self.order)
