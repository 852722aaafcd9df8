"""What a device exchanges with the coordinator: updates up, global models and answers down.

Two state machines without socket or clock. The owner of the connection gives ``Downlink`` every
message that comes, and calls ``Uplink.due`` whenever something happened (connected, received,
PUBACK, a new update) or ``wake_at`` came, and publishes what it gives.

Down, everything is verified before anything is parsed. Nothing that comes from the broker raises:
what is refused is counted under its name, and logged the first time.

Up go the updates of the outbox, one at a time and in order. Only the coordinator's own
acknowledgement takes an update out of the outbox; a broker's counts for the window only. An update
of one chunk that is not answered is published again. Of several chunks the device sends a resume
request, then what is missing. Both after a timeout that doubles; any news makes it try soon.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, deque
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from gradsense.agent.store import AgentStore, ClientState
from gradsense.errors import NotFinite, UnknownTensor, UpdateRefused, WrongShape
from gradsense.federation.update import GlobalModel
from gradsense.learning.learner import Tensors
from gradsense.transport import messages as wire
from gradsense.transport.chunks import Assembler, Quota, Resume, ResumeRequest
from gradsense.transport.messages import Message, Read, SignedMessage, sign, sign_message
from gradsense.transport.pacing import Rate
from gradsense.transport.payloads import Ack, model_hash, open_model
from gradsense.transport.protocol import (
    COORDINATOR,
    MessageHeader,
    Properties,
    SizeLimits,
    TooLarge,
    Topic,
)

_log = logging.getLogger(__name__)


class WrongDevice(UpdateRefused):
    """The topic is another device's, another run's, or one that devices publish on."""

    reason = "wrong-device"


class StaleModel(UpdateRefused):
    """A model of an older epoch than the one held, or of an older version in that epoch."""

    reason = "stale"


@dataclass(frozen=True)
class Repeated:
    """The coordinator published the model again that the device holds: it is at work."""

    version: int


News = GlobalModel | Repeated | Ack | Resume


class Downlink:
    """Reads what comes down to one device.

    Args:
        coordinator_key: what everything must be signed with.
        seal_key: the fleet's, where bodies are sealed.
        limits: of a model.
        held: the model that the device holds, if any. Later ones must have its tensors.
        epochs: as ``AgentStore.epochs``.

    Attributes:
        epoch, latest: of the model held; the latest that was signed.
        refused: name to how many messages were refused under it.
    """

    def __init__(
        self,
        run: str,
        device: str,
        coordinator_key: Ed25519PublicKey,
        seal_key: X25519PrivateKey | None = None,
        limits: SizeLimits | None = None,
        *,
        held: GlobalModel | None = None,
        epochs: tuple[int, int] = (0, 0),
    ) -> None:
        self.refused: Counter[str] = Counter()
        self.epoch, self.latest = epochs
        self._run, self._device = run, device
        self._coordinator_key, self._seal_key = coordinator_key, seal_key
        self._limits = limits or SizeLimits()
        #: Of the model held; -1 before the first.
        self.version = -1 if held is None else held.version
        self._shapes = None if held is None else _shapes(held.tensors)
        self._hash = "" if held is None else model_hash(held.tensors)
        # Chunks of two versions are mixed while one is published over the other.
        most = 3 * self._limits.body
        self._assembler = Assembler(Quota(most, most))
        self._parts: dict[bytes, tuple[int, int]] = {}  # messages, to their epochs and versions
        self._part_at = 0.0

    @property
    def waits_since(self) -> float | None:
        """When the last chunk of a newer model came that is not whole; None: none is in parts.

        A device that waits too long subscribes again and is sent all retained chunks.
        """
        return self._part_at if self._parts else None

    def take(self, message: Message, now: float) -> News | None:
        """What a message brings at ``now`` (monotonic seconds); None if nothing yet, or if refused.

        A model that is given back counts as held from then on.
        """
        if not message.payload and not message.pairs:
            return None  # a retained chunk was cleared away
        try:
            found = wire.read(message, self._key_of)
            header = found.properties.header
            if header.kind == "ack":
                return Ack.open(found.body, header)
            if header.kind == "resume":
                return Resume.parse(found.body)
            return self._chunk(found, now)
        except UpdateRefused as error:
            if not self.refused[error.reason]:
                _log.warning("refused from the coordinator's topics: %s (%s)", error.reason, error)
            self.refused[error.reason] += 1
            return None

    def _key_of(self, topic: Topic) -> Ed25519PublicKey:
        """The coordinator's, for what it may send to this device."""
        mine = topic.kind == "model" or (
            topic.kind in ("ack", "resume") and topic.device == self._device
        )
        if not mine or topic.run != self._run:
            raise WrongDevice(f"{topic} is not for '{self._device}' in run '{self._run}'")
        return self._coordinator_key

    def _chunk(self, found: Read, now: float) -> News | None:
        properties, chunk = found.properties, found.chunk
        assert chunk is not None  # ``read`` gives one for a model
        header = properties.header
        place = header.epoch, header.base_version
        self.latest = max(self.latest, header.epoch)
        if header.epoch > self.epoch and (self.version, self._hash) == (place[1], header.base_hash):
            self.epoch = header.epoch
            return Repeated(self.version)
        if place == (self.epoch, self.version):
            return Repeated(self.version) if chunk.index == 0 else None
        if place < (self.epoch, self.version):
            raise StaleModel(f"model {place}, where {self.epoch, self.version} (epoch, version) is")
        if properties.body_size > self._limits.body:
            raise TooLarge(f"a model of {properties.body_size} bytes")
        progress = self._assembler.add(COORDINATOR, chunk, now)
        if progress.body is None:
            if progress.missing:
                self._parts[chunk.message] = place
                self._part_at = now
            return None
        self._parts.pop(chunk.message, None)
        model = self._open(progress.body, properties)
        (self.epoch, self.version), self._shapes = place, _shapes(model.tensors)
        self._hash = header.base_hash
        for message in [one for one, other in self._parts.items() if other <= place]:
            self._assembler.forget(COORDINATOR, message)
            del self._parts[message]
        return model

    def _open(self, body: bytes, properties: Properties) -> GlobalModel:
        clear = wire.unsealed(body, properties, self._seal_key)
        model = open_model(clear, properties.header, self._limits.raw)
        shapes = _shapes(model.tensors)
        held = self._shapes or shapes
        for name in shapes.keys() & held.keys():
            if shapes[name] != held[name]:
                raise WrongShape(f"'{name}' is {shapes[name]}, not {held[name]}")
        if differ := ", ".join(sorted(shapes.keys() ^ held.keys())[:4]):
            raise UnknownTensor(f"only one of the models held and sent has {differ}")
        if not all(np.isfinite(tensor).all() for tensor in model.tensors.values()):
            raise NotFinite(f"model {model.version} has numbers that are none")
        return model


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in tensors.items()}


class Uplink:
    """Sends what waits in a ``AgentStore``.

    Args:
        memory: the outbox, and which model the device holds.
        key: the device's, for updates too: it may have been rotated while they waited.
        rate: what the link may carry; its burst is more than a chunk.
        window: publishes that the broker has not confirmed yet, at most.
        retry_s, max_retry_s: seconds without an answer until the first repeat; they double up to.
        rng: spreads what a fleet does on the same occasion over ``jitter_s`` seconds.

    Attributes:
        counts: ``chunks``, ``resume-requests`` and ``repeats`` sent; ``old-acks`` and
            ``other-resumes`` put aside.
    """

    def __init__(
        self,
        memory: AgentStore,
        key: Ed25519PrivateKey,
        rate: Rate,
        *,
        window: int = 8,
        retry_s: float = 15.0,
        max_retry_s: float = 120.0,
        rng: random.Random,
        jitter_s: float = 2.0,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._memory, self._key, self._rate = memory, key, rate
        self._window = window
        self._min_s, self._max_s = retry_s, max_retry_s
        self._retry_s = retry_s
        self._rng, self._jitter_s = rng, jitter_s
        self._signed = self._oldest()
        # What an earlier process left may have been sent in part.
        self._begun = self._signed is not None
        self._chunks: deque[int] = deque()  # still to be published
        self._request_due = False  # a resume request is to be published
        self._resume_due = False  # its answer is awaited
        self._again_at: float | None = None  # when the update is tried again, all being sent
        self._blocked = True  # until on_connect
        self._start()

    def _oldest(self) -> SignedMessage | None:
        signed = self._memory.head()
        return signed and SignedMessage(sign(signed.properties, self._key), signed.body)

    def _head(self) -> SignedMessage | None:
        if self._signed is None:
            self._signed = self._oldest()
            self._begun = False
            self._start()
        return self._signed

    def _start(self) -> None:
        """What is to be done for the update at the head, whatever was done before."""
        self._chunks.clear()
        self._request_due = self._resume_due = False
        self._again_at = None
        if self._signed is None:
            return
        count = self._signed.properties.chunk_count
        if self._begun and count > 1:
            self._request_due = True
        else:
            self._chunks.extend(range(count))

    def on_connect(self, now: float) -> None:
        """The link is there. What was under way on the one before may be lost."""
        self._blocked = False
        self._retry_s = self._min_s
        self._start()

    def on_offers(self) -> None:
        """Older updates wait again: begin with the oldest."""
        self._signed = None

    def on_disconnect(self) -> None:
        """The link is gone."""
        self._blocked = True

    def on_model(self, now: float) -> None:
        """A model came, so the coordinator is at work: try again soon.

        Not at once: an acknowledgement is mostly on its way with it, and a whole fleet receives a
        model at one moment.
        """
        self._retry_s = self._min_s
        if self._again_at is not None:
            soon = now + self._rng.uniform(0.5, 1.0) * self._jitter_s
            self._again_at = min(self._again_at, soon)

    def on_resume(self, resume: Resume, now: float) -> None:
        """The answer to a resume request. One that is not awaited is counted and ignored."""
        head = self._head()
        asked = head and (head.properties.message_id, head.properties.chunk_count)
        if not self._resume_due or asked != (resume.message, resume.count):
            self.counts["other-resumes"] += 1
            return
        self._request_due = self._resume_due = False
        if resume.missing:
            self._retry_s = self._min_s
            self._chunks = deque(resume.missing)
            self._again_at = None
        else:  # all there, but not durable yet
            self._again_at = now + self._retry_s

    def expects(self, ack: Ack) -> bool:
        """Whether an acknowledgement is of the update at the head; any other is an old one."""
        head = self._head()
        return head is not None and ack.sequence == head.properties.header.sequence

    def on_ack(self, ack: Ack, *, client: ClientState | None = None) -> bool:
        """The update is durable, or was refused for good: the next one may go.

        Args:
            client: its state after that, if that changes it; kept in one transaction.

        Returns:
            whether it was expected; an old one is counted and put aside.

        Raises:
            StorageFull: it could not be noted; the update is tried again.
        """
        if not self.expects(ack):
            self.counts["old-acks"] += 1
            return False
        self._memory.acknowledged(ack.sequence, ack.refusal, client=client)
        self._signed = None
        self._retry_s = self._min_s
        return True

    def due(self, now: float, *, connected: bool, unacked: int) -> list[Message]:
        """What to publish now, with QoS 1.

        Args:
            now: monotonic seconds.
            unacked: publishes that the broker has not confirmed yet.
        """
        head = self._head()
        self._blocked = not connected
        if head is None or not connected:
            return []
        if self._again_at is not None and now >= self._again_at:
            self._repeat(head, now, unacked)
        found: list[Message] = []
        while (message := self._next(head)) is not None:
            if unacked + len(found) >= self._window:
                self._blocked = True
                break
            if not self._rate.take(_size(message), now):
                break
            self._sent(now)
            found.append(message)
        return found

    def _repeat(self, head: SignedMessage, now: float, unacked: int) -> None:
        if unacked:  # what was sent is still on its way: the coordinator owes no answer yet
            self._again_at = now + self._retry_s
            return
        self.counts["repeats"] += 1
        self._retry_s = min(2 * self._retry_s, self._max_s)
        self._again_at = None
        if head.properties.chunk_count > 1:
            self._request_due = True
        else:
            self._chunks.append(0)

    def _next(self, head: SignedMessage) -> Message | None:
        if not self._request_due:
            return wire.messages(head, [self._chunks[0]])[0] if self._chunks else None
        header = head.properties.header
        request = ResumeRequest(head.properties.message_id, head.properties.chunk_count)
        place = MessageHeader("resume-request", header.run, header.device, header.sequence)
        return wire.messages(sign_message(place, request.pack(), self._key))[0]

    def _sent(self, now: float) -> None:
        """What ``_next`` gave is on its way."""
        if self._request_due:
            self._request_due, self._resume_due = False, True
            self.counts["resume-requests"] += 1
        else:
            self._chunks.popleft()
            self._begun = True
            self.counts["chunks"] += 1
        if not self._chunks:
            self._again_at = now + self._retry_s

    def wake_at(self, now: float) -> float | None:
        """When ``due`` will have something; None: not before something happens."""
        head = self._head()
        if head is None or self._blocked:
            return None
        message = self._next(head)
        if message is not None:
            return now + self._rate.wait_s(_size(message), now)
        return None if self._again_at is None else max(now, self._again_at)


def _size(message: Message) -> int:
    """Bytes of its payload and properties, which is nearly all of the packet."""
    return len(message.payload) + sum(len(name) + len(value) for name, value in message.pairs)
