"""The envelope of every message between fleet and coordinator: topic and properties.

Pure values and functions; whoever holds the socket calls them. A receiver goes through them in
this order, so that nothing is parsed before it is verified: ``parse_topic``, ``Properties.parse``,
``check_topic``, ``signing.verify``, ``chunks``, ``check_body``, and only then ``body.open_update``
or ``body.open_model``. All bytes are laid out in ``docs/protocol.md``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from gradsense.errors import UpdateRefused

SCHEMA = "1"
#: The sender's name in a model, which is for everybody; no device may have it.
COORDINATOR = "coordinator"
PROPERTY_PREFIX = "gs-"
#: What a device says that it holds before its first model: version and hash.
NO_MODEL = (0, "0" * 64)

Kind = Literal["update", "model", "ask", "resume", "ack", "status"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_UP: tuple[Kind, ...] = ("update", "ask", "status")
_TO_ONE: tuple[Kind, ...] = ("resume", "ack")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)
_SIGNATURE = re.compile(r"(?:[0-9a-f]{128})?", re.ASCII)
_INDEX_MAX = (1 << 16) - 1
_MAX_TOPIC = 256
_MAX_PAIRS = 32
_MAX_PAIR_CHARS = 512


class BadTopic(UpdateRefused):
    """The topic is none of this protocol."""

    reason = "bad-topic"


class BadProperties(UpdateRefused):
    """A property is missing, twice there, unknown or out of bounds."""

    reason = "bad-properties"


class UnsupportedSchema(UpdateRefused):
    """The message follows another version of the protocol."""

    reason = "unsupported-schema"


class WrongDevice(UpdateRefused):
    """The properties name another run, device or kind than the topic."""

    reason = "wrong-device"


class TooLarge(UpdateRefused):
    """A body, or what it holds, is or claims to be larger than the limit."""

    reason = "too-large"


class WrongHash(UpdateRefused):
    """A body or a model is not the one that its hash names."""

    reason = "wrong-hash"


@dataclass(frozen=True)
class SizeLimits:
    """What a receiver accepts, in bytes.

    Attributes:
        body: of a body as it travels.
        raw: of what a body holds, at each level at which it is unpacked.
    """

    body: int = 64 << 20
    raw: int = 256 << 20


# Topics -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Topic:
    """One topic.

    Attributes:
        run: the job.
        kind: what travels there.
        device: who sends or is spoken to; ``COORDINATOR`` for the model, which all devices take.
        index: of a model's chunk, since each needs a topic of its own to be retained.
    """

    run: str
    kind: Kind
    device: str = COORDINATOR
    index: int = 0

    def __str__(self) -> str:
        base = f"gradsense/v1/{self.run}"
        if self.kind in _UP:
            return f"{base}/up/{self.device}/{self.kind}"
        if self.kind in _TO_ONE:
            return f"{base}/device/{self.device}/{self.kind}"
        return f"{base}/down/model/{self.index}" if self.index else f"{base}/down/model"


def device_filters(run: str, device: str) -> tuple[str, ...]:
    """What a device subscribes to: the model's chunks, and what is for itself."""
    base = f"gradsense/v1/{run}"
    return f"{base}/down/model", f"{base}/down/model/+", f"{base}/device/{device}/#"


def parse_topic(text: str) -> Topic:
    """The topic of a message that came.

    Raises:
        BadTopic: it is not exactly one that ``str(Topic(...))`` gives.
    """
    refusal = BadTopic(f"topic {text[:_MAX_TOPIC]!r} is none of this protocol")
    if len(text) > _MAX_TOPIC:
        raise refusal
    match text.split("/"):
        case ["gradsense", "v1", run, "up", device, kind] if kind in _UP:
            topic = Topic(run, kind, device)
        case ["gradsense", "v1", run, "device", device, kind] if kind in _TO_ONE:
            topic = Topic(run, kind, device)
        case ["gradsense", "v1", run, "down", "model"]:
            return _named(Topic(run, "model"), refusal)
        case ["gradsense", "v1", run, "down", "model", index] if _NUMBER.fullmatch(index):
            if not 1 <= int(index) <= _INDEX_MAX:
                raise refusal
            return _named(Topic(run, "model", index=int(index)), refusal)
        case _:
            raise refusal
    if topic.device == COORDINATOR:
        raise refusal
    return _named(topic, refusal)


def _named(topic: Topic, refusal: BadTopic) -> Topic:
    if not (_NAME.fullmatch(topic.run) and _NAME.fullmatch(topic.device)):
        raise refusal
    return topic


# Properties ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class MessageHeader:
    """Where a message stands: known before its body is.

    Attributes:
        kind: what it is.
        run: the job that it belongs to.
        device: the sender; of an ack or resume the device that it is for, so that nobody can pass
            it on to another; ``COORDINATOR`` for the model.
        sequence: the sender's number, used once; of an ack or resume the update's, of a model its
            version.
        base_version: the global model that an update starts from; of a model its own version.
        base_hash: that model's ``model_hash``.
        sealed: whether the body is encrypted end to end (``signing.seal``).
    """

    kind: Kind
    run: str
    device: str
    sequence: int
    base_version: int
    base_hash: str
    sealed: bool = False

    @property
    def content_type(self) -> str:
        """The body's media type."""
        sealed = "+sealed" if self.sealed else ""
        packing = "+zstd" if self.kind in ("update", "model") else ""
        return f"application/vnd.gradsense.{self.kind}{packing}{sealed}"

    def pairs(self) -> list[tuple[str, str]]:
        """Names and values in the fixed order, without the prefix."""
        return [
            ("content-type", self.content_type),
            ("schema", SCHEMA),
            ("run", self.run),
            ("kind", self.kind),
            ("device", self.device),
            ("sequence", str(self.sequence)),
            ("base-version", str(self.base_version)),
            ("base-hash", self.base_hash),
        ]


@dataclass(frozen=True)
class Properties:
    """Everything that a message says beside its payload.

    Attributes:
        header: where it stands.
        body_sha256: of the whole body as it travels (compressed, and sealed if so), as hex.
        body_size: its bytes.
        chunk_count: pieces that it travels in; 1 unless it is an update or a model.
        chunk_index: which of them this message carries. Not signed: the signature is the whole
            message's and the same on each chunk.
        signature: Ed25519 by the sender (``signing.sign``) as hex; empty until signed.
    """

    header: MessageHeader
    body_sha256: str
    body_size: int
    chunk_count: int = 1
    chunk_index: int = 0
    signature: str = ""

    def signed_pairs(self) -> list[tuple[str, str]]:
        """What the signature covers, in its order."""
        return [
            *self.header.pairs(),
            ("body-sha256", self.body_sha256),
            ("body-size", str(self.body_size)),
            ("chunk-count", str(self.chunk_count)),
        ]

    def pairs(self) -> list[tuple[str, str]]:
        """The MQTT 5 user properties of this message."""
        every = [
            *self.signed_pairs(),
            ("chunk-index", str(self.chunk_index)),
            ("signature", self.signature),
        ]
        return [(PROPERTY_PREFIX + name, value) for name, value in every]

    def at(self, index: int) -> Properties:
        """The same message's properties for its chunk ``index``."""
        return replace(self, chunk_index=index)

    @classmethod
    def parse(cls, pairs: Sequence[tuple[str, str]]) -> Properties:
        """The properties of a message that came. Names without ``gs-`` are others' and ignored.

        Raises:
            BadProperties: one is missing, twice there, unknown or out of bounds.
            UnsupportedSchema: the message follows another version of the protocol.
        """
        values = _values(pairs)
        if values.get("schema", SCHEMA) != SCHEMA:
            raise UnsupportedSchema(f"schema {values['schema']!r}; this side speaks {SCHEMA}")
        unknown = values.keys() ^ _PATTERNS.keys()
        if unknown:
            raise BadProperties(f"missing or unknown: {', '.join(sorted(unknown))}")
        for name, pattern in _PATTERNS.items():
            if not pattern.fullmatch(values[name]):
                raise BadProperties(f"'{name}' is {values[name][:80]!r}")
        header = MessageHeader(
            kind=next(kind for kind in KINDS if kind == values["kind"]),
            run=values["run"],
            device=values["device"],
            sequence=int(values["sequence"]),
            base_version=int(values["base-version"]),
            base_hash=values["base-hash"],
            sealed=values["content-type"].endswith("+sealed"),
        )
        count, index = int(values["chunk-count"]), int(values["chunk-index"])
        size = int(values["body-size"])
        most = min(_INDEX_MAX + 1, size) if header.kind in ("update", "model") else 1
        if not 0 <= index < count <= most:
            raise BadProperties(f"chunk {index} of {count} of a body of {size} bytes")
        if values["content-type"] != header.content_type:
            raise BadProperties(f"'content-type' is not that of a {header.kind}")
        return cls(header, values["body-sha256"], size, count, index, values["signature"])


_PATTERNS = {
    "content-type": re.compile(r"[a-z0-9./+]{1,80}", re.ASCII),
    "schema": re.compile(re.escape(SCHEMA)),
    "run": _NAME,
    "kind": re.compile("|".join(KINDS)),
    "device": _NAME,
    "sequence": _NUMBER,
    "base-version": _NUMBER,
    "base-hash": _HASH,
    "body-sha256": _HASH,
    "body-size": _NUMBER,
    "chunk-count": _NUMBER,
    "chunk-index": _NUMBER,
    "signature": _SIGNATURE,
}


def _values(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    if len(pairs) > _MAX_PAIRS:
        raise BadProperties(f"{len(pairs)} properties")
    values: dict[str, str] = {}
    for name, value in pairs:
        if len(name) + len(value) > _MAX_PAIR_CHARS:
            raise BadProperties(f"'{name[:80]}' is too long")
        if not name.startswith(PROPERTY_PREFIX):
            continue
        key = name.removeprefix(PROPERTY_PREFIX)
        if key in values:
            raise BadProperties(f"'{name}' twice")
        values[key] = value
    return values


def check_topic(topic: Topic, properties: Properties) -> None:
    """The broker lets a device publish only below its own name, so the topic says who spoke.

    Raises:
        WrongDevice: the properties name another run, device or kind, or another chunk's topic.
    """
    header = properties.header
    if (topic.run, topic.kind, topic.device) != (header.run, header.kind, header.device):
        raise WrongDevice(f"'{header.device}' ({header.kind}, {header.run}) on topic {topic}")
    if topic.kind == "model" and topic.index != properties.chunk_index:
        raise WrongDevice(f"chunk {properties.chunk_index} on topic {topic}")


def describe(header: MessageHeader, body: bytes, *, chunks: int = 1) -> Properties:
    """The properties of a body that is ready to travel, not yet signed."""
    return Properties(header, hashlib.sha256(body).hexdigest(), len(body), chunks)


def check_body(body: bytes, properties: Properties, limits: SizeLimits | None = None) -> None:
    """Whether a whole body is the one that its verified properties promise.

    Raises:
        TooLarge: more bytes than the limit.
        WrongHash: another size or hash.
    """
    limits = limits or SizeLimits()
    if max(len(body), properties.body_size) > limits.body:
        raise TooLarge(f"a body of {max(len(body), properties.body_size)} bytes")
    if len(body) != properties.body_size:
        raise WrongHash(f"{len(body)} bytes where {properties.body_size} were promised")
    if hashlib.sha256(body).hexdigest() != properties.body_sha256:
        raise WrongHash("the body is not the one that its hash names")
