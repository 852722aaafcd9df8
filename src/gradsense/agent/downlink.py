"""What comes down to a device: global models, answers, revoked brokers. A machine without socket.

The owner of the connection gives it every message that comes. Everything is verified before
anything is parsed. Nothing that comes from the broker raises: what is refused is counted under its
name, and logged the first time.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from gradsense.errors import NotFinite, UnknownTensor, UpdateRefused, WrongShape
from gradsense.federation.update import GlobalModel
from gradsense.learning.learner import Tensors
from gradsense.transport import messages as wire
from gradsense.transport.chunks import Assembler, Quota, Resume
from gradsense.transport.messages import Message, Read
from gradsense.transport.payloads import Ack, model_hash, open_model
from gradsense.transport.protocol import (
    COORDINATOR,
    TO_ALL,
    TO_ONE,
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


@dataclass(frozen=True)
class RevokedBrokers:
    """The list of revoked broker certificates, PEM, as the coordinator signed it."""

    crl: bytes


News = GlobalModel | Repeated | RevokedBrokers | Ack | Resume


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
            if header.kind == "revoked":
                return RevokedBrokers(found.body)
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
        mine = topic.kind in TO_ALL or (topic.kind in TO_ONE and topic.device == self._device)
        if not mine or topic.run != self._run:
            raise WrongDevice(f"{topic} is not for '{self._device}' in run '{self._run}'")
        return self._coordinator_key

    def _chunk(self, found: Read, now: float) -> News | None:
        properties, chunk = found.properties, found.chunk
        assert chunk is not None  # ``read`` gives one for a model
        header = properties.header
        place = header.epoch, header.base_version
        self.latest = max(self.latest, header.epoch)
        # In a later epoch the coordinator may be one of before, whose versions are used again.
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
