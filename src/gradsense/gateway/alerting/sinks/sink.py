"""What a sink is: it delivers messages or says why not. Queues and retries are the outbox's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gradsense.errors import GradsenseError
from gradsense.gateway.alerting.alert import Alert


class SinkError(GradsenseError):
    """Delivery failed for now; the outbox tries again later. The text says what and why."""


class Refused(SinkError):
    """The receiver will never take some of this batch (HTTP 400, say) and has the rest.

    Args:
        text: what it says.
        count: how many it will not take; the outbox counts them as dropped.
    """

    def __init__(self, text: str, count: int = 1) -> None:
        super().__init__(text)
        self.count = count


class Sink(Protocol):
    """One receiver of alerts. Used by one thread; connects when it must, so a dead one costs
    nothing until it is back."""

    name: str

    def send(self, alerts: Sequence[Alert]) -> None:
        """Deliver all of them, in order; on return they are the receiver's.

        Delivery is at least once: after a crash a batch may come again, with the same ids and
        revisions.

        Raises:
            SinkError: none or only a part arrived; the same batch will be given again.
            Refused: the receiver will never take it.
        """

    def close(self) -> None:
        """Let go of connections and files. Raises nothing."""
