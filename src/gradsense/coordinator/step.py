"""What a batch of messages brings about in a run, before it is written down."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from gradsense.coordinator.records import JournalEntry, UpdateOutcome
from gradsense.storage.checkpoint import Groups
from gradsense.transport.payloads import Ack
from gradsense.transport.protocol import MessageHeader


@dataclass
class Step:
    """What a batch of messages brings about, before it is written down.

    Attributes:
        answers: (kind, device, sequence) to where the answer stands, and its body.
        verdicts: of the updates in this batch.
        snapshot: of the newest model in ``batch.models``.
        publish: there is a model to publish.
    """

    batch: JournalEntry
    answers: dict[tuple[str, str, int], tuple[MessageHeader, bytes]] = field(default_factory=dict)
    verdicts: dict[tuple[str, int], UpdateOutcome] = field(default_factory=dict)
    snapshot: tuple[dict[str, Any], Groups] | None = None
    publish: bool = False

    def acknowledge(self, header: MessageHeader, refusal: str) -> None:
        """Answer an update once, however often it came in this batch."""
        body = Ack(header.sequence, refusal).pack()
        self.answers["ack", header.device, header.sequence] = replace(header, kind="ack"), body
