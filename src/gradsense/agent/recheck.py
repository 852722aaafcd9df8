"""Whether a coordinator that was opened anew still knows what it has acknowledged.

A coordinator that was restored from a backup has forgotten what came since, acknowledged or not. It
shows in the epoch of its models. The device then asks by resume requests, from the last update that
was acknowledged backwards, until the coordinator acknowledges one again; what was acknowledged
behind that waits in the outbox again. Meanwhile no update is sent. A state machine without socket
or clock, whose state is the store's, so that it goes on after a kill.
"""

from __future__ import annotations

import logging
import random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradsense.agent.store import AgentStore
from gradsense.transport import messages as wire
from gradsense.transport.chunks import Resume, ResumeRequest
from gradsense.transport.messages import Message, sign_message
from gradsense.transport.payloads import Ack
from gradsense.transport.protocol import MessageHeader

_log = logging.getLogger(__name__)


class Recheck:
    """Asks the coordinator about acknowledged updates, one at a time.

    Args:
        key: the device's.
        rng: spreads a fleet's first questions over ``jitter_s`` seconds.
        retry_s: seconds without an answer until a question is asked again.
    """

    def __init__(
        self,
        memory: AgentStore,
        key: Ed25519PrivateKey,
        rng: random.Random,
        *,
        retry_s: float = 15.0,
        jitter_s: float = 2.0,
    ) -> None:
        self._memory, self._key, self._rng = memory, key, rng
        self._retry_s, self._jitter_s = retry_s, jitter_s
        self._asked, self._latest = memory.asked(), memory.epochs()[1]
        self._at = 0.0  # when to ask next

    @property
    def pending(self) -> bool:
        """Whether something is still to be asked."""
        return self._asked is not None

    def notice(self, epoch: int, now: float) -> bool:
        """Note the epoch of what the coordinator has signed; whether it is a new one.

        To be called before anything that came later is looked at.
        """
        if epoch <= self._latest:
            return False
        self._memory.begin_epoch(epoch)
        self._asked, self._latest = self._memory.asked(), epoch
        self._at = now + self._rng.uniform(0.0, self._jitter_s) if self.pending else 0.0
        return True

    def on_connect(self, now: float) -> None:
        """What was asked on the connection before may be lost."""
        self._at = min(self._at, now)

    def due(self, now: float, *, connected: bool) -> list[Message]:
        """What to publish now, with QoS 1."""
        if self._asked is None or not connected or now < self._at:
            return []
        self._at = now + self._retry_s
        about, header = self._asked.properties, self._asked.properties.header
        place = MessageHeader("resume-request", header.run, header.device, header.sequence)
        request = ResumeRequest(about.message_id, about.chunk_count)
        return wire.messages(sign_message(place, request.pack(), self._key))

    def wake_at(self, now: float) -> float | None:
        """When ``due`` will have something; None: never."""
        return None if self._asked is None else max(now, self._at)

    def on_ack(self, ack: Ack) -> bool:
        """The coordinator knows an update; whether that answers the question, and all are asked."""
        if self._asked is None or ack.sequence != self._asked.properties.header.sequence:
            return False
        self._asked = None
        self._report(self._memory.known())
        return True

    def on_resume(self, resume: Resume, now: float) -> bool:
        """The coordinator misses chunks of an update; whether all are asked with that."""
        about = None if self._asked is None else self._asked.properties
        if about is None or resume.message != about.message_id or not resume.missing:
            return False
        again = self._memory.unknown()
        self._asked, self._at = self._memory.asked(), now
        if self._asked is None:
            self._report(again)
        return self._asked is None

    @staticmethod
    def _report(again: int) -> None:
        if again:
            _log.warning(
                "the coordinator was restored from a backup: %d acknowledged updates that it does "
                "not know are offered again",
                again,
            )
