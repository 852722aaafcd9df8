"""The receiver: global models and answers of the coordinator, verified before anything is parsed.

A state machine without socket or clock. Nothing that comes from the broker raises here: what is
refused is counted under its name, and logged the first time.
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
from gradsense.transport.chunks import Assembler, Quota, Resume
from gradsense.transport.messages import Message, Read, read, unsealed
from gradsense.transport.payloads import Ack, open_model
from gradsense.transport.protocol import (
    COORDINATOR,
    Properties,
    SizeLimits,
    TooLarge,
    Topic,
)

_log = logging.getLogger(__name__)


class WrongDevice(UpdateRefused):
    """The topic is another device's, another run's, or one that devices publish on."""


class StaleModel(UpdateRefused):
    """A model of an older version than the one held."""

    reason = "stale"


@dataclass(frozen=True)
class Repeated:
    """The coordinator published the model again that the device holds: it is at work."""

    version: int


News = GlobalModel | Repeated | Ack | Resume


class Downlink:
    """Reads what comes down to one device.

    Args:
        run, device: whose messages these are.
        coordinator_key: what everything must be signed with.
        seal_key: the fleet's, where bodies are sealed.
        limits: of a model.
        held: the model that the device holds, if any. Later ones must have its tensors.

    Attributes:
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
    ) -> None:
        self.refused: Counter[str] = Counter()
        self._run, self._device = run, device
        self._coordinator_key, self._seal_key = coordinator_key, seal_key
        self._limits = limits or SizeLimits()
        self._version = -1 if held is None else held.version
        self._shapes = None if held is None else _shapes(held.tensors)
        # Chunks of two versions are mixed while one is published over the other.
        most = 3 * self._limits.body
        self._assembler = Assembler(Quota(device_bytes=most, total_bytes=most))
        self._parts: dict[bytes, int] = {}  # messages in the assembler, to their versions
        self._part_at = 0.0
        self._warned = False

    @property
    def version(self) -> int:
        """Of the model held; -1 before the first."""
        return self._version

    @property
    def waits_since(self) -> float | None:
        """When the last chunk of a newer model came that is not whole; None: none is in parts.

        A device that waits too long subscribes again and is sent all retained chunks.
        """
        return self._part_at if self._parts else None

    def take(self, message: Message, now: float) -> News | None:
        """What a message brings; None if nothing yet, or if it was refused.

        A model that is given back counts as held from then on.

        Args:
            now: monotonic seconds.
        """
        if not message.payload and not message.pairs:
            return None  # a retained chunk was cleared away
        try:
            found = read(message, self._key_of)
            header = found.properties.header
            if header.kind == "ack":
                return Ack.open(found.body, header)
            if header.kind == "resume":
                return Resume.parse(found.body)
            return self._chunk(found, now)
        except UpdateRefused as error:
            self._refuse(error)
            return None

    def _key_of(self, topic: Topic) -> Ed25519PublicKey:
        """The coordinator's, for what it may send to this device."""
        mine = topic.kind == "model" or (
            topic.kind in ("ack", "resume") and topic.device == self._device
        )
        if not mine or topic.run != self._run:
            raise WrongDevice(f"{topic} is not for '{self._device}' in run '{self._run}'")
        return self._coordinator_key

    def _refuse(self, error: UpdateRefused) -> None:
        if not self.refused[error.reason]:
            _log.warning("refused from the coordinator's topics: %s (%s)", error.reason, error)
        self.refused[error.reason] += 1

    # Models ---------------------------------------------------------------------------------

    def _chunk(self, found: Read, now: float) -> News | None:
        properties, chunk = found.properties, found.chunk
        assert chunk is not None  # ``read`` gives one for a model
        version = properties.header.base_version
        if version == self._version:
            return Repeated(version) if chunk.index == 0 else None
        if version < self._version:
            if chunk.index == 0:
                self._warn(version)
            raise StaleModel(f"model {version}, where {self._version} is held")
        if properties.body_size > self._limits.body:
            raise TooLarge(f"a model of {properties.body_size} bytes")
        progress = self._assembler.add(COORDINATOR, chunk, now)
        if progress.body is None:
            if progress.missing:
                self._parts[chunk.message] = version
                self._part_at = now
            return None
        self._parts.pop(chunk.message, None)
        model = self._open(progress.body, properties)
        self._adopt(model)
        return model

    def _open(self, body: bytes, properties: Properties) -> GlobalModel:
        clear = unsealed(body, properties, self._seal_key)
        model = open_model(clear, properties.header, self._limits.raw)
        shapes = _shapes(model.tensors)
        for name, shape in (self._shapes or {}).items():
            if name in shapes and shapes[name] != shape:
                raise WrongShape(f"'{name}' is {shapes[name]}, not {shape}")
        if self._shapes is not None and shapes.keys() != self._shapes.keys():
            differ = ", ".join(sorted(shapes.keys() ^ self._shapes.keys())[:4])
            raise UnknownTensor(f"only one of the models held and sent has {differ}")
        if not all(np.isfinite(tensor).all() for tensor in model.tensors.values()):
            raise NotFinite(f"model {model.version} has numbers that are none")
        return model

    def _adopt(self, model: GlobalModel) -> None:
        self._version, self._shapes = model.version, _shapes(model.tensors)
        for message in [one for one, version in self._parts.items() if version <= model.version]:
            self._assembler.forget(COORDINATOR, message)
            del self._parts[message]

    def _warn(self, version: int) -> None:
        """Under chunk 0's topic the newest model is kept: an older one is no leftover."""
        if not self._warned:
            _log.warning(
                "the coordinator publishes model %d, but this device holds %d and keeps it. If the "
                "coordinator's folder was restored from an older backup, start a new run: models "
                "of this one are adopted again only after model %d",
                *(version, self._version, self._version),
            )
        self._warned = True


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in tensors.items()}
