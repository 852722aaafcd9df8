"""Every message between fleet and coordinator: its topic and its properties, version 2.

Pure values and functions; whoever holds the socket calls them. A receiver goes through them in
this order, so that nothing is parsed before it is verified: ``parse_topic``, ``Properties.parse``,
``messages.verify``, ``chunks``, ``check_body``, and only then ``payloads.open_update`` or
``payloads.open_model``. All bytes are laid out in ``docs/protocol.md``.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gradsense.errors import UpdateRefused

SCHEMA = "2"
#: Every topic begins so.
ROOT = "gradsense/v2"
#: The name in a model's topic, which is for everybody; no device may have it.
COORDINATOR = "coordinator"
PROPERTY_PREFIX = "gs-"
#: What a device reports to hold before its first model: version and hash.
NO_MODEL = (0, "0" * 64)
#: The largest packet that either side or the broker takes: a chunk of 256 KiB and what names it.
MAX_PACKET_BYTES = 320 << 10
MAX_CHUNKS = 1 << 16

Kind = Literal["update", "resume-request", "presence", "model", "revoked", "resume", "ack"]
#: What devices publish, what all or one of them are sent, and what travels in chunks.
UP: tuple[Kind, ...] = ("update", "resume-request", "presence")
TO_ALL: tuple[Kind, ...] = ("model", "revoked")
TO_ONE: tuple[Kind, ...] = ("resume", "ack")
CHUNKED: tuple[Kind, ...] = ("update", "model")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)
_MAX_TOPIC = 256
_MAX_PAIRS = 32
_MAX_PAIR_CHARS = 512


class BadTopic(UpdateRefused):
    """The topic is none of this protocol."""


class BadProperties(UpdateRefused):
    """A property is missing, twice there, unknown or out of bounds."""


class UnsupportedSchema(UpdateRefused):
    """The message follows another version of the protocol."""


class TooLarge(UpdateRefused):
    """A body, or what it holds, is or claims to be larger than the limit."""


class WrongHash(UpdateRefused):
    """A body or a model is not the one that its hash names."""


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
        device: the sender, or the receiver of an ack or resume; ``COORDINATOR`` for the model,
            which all devices receive.
        index: of a model's chunk, since each needs a topic of its own to be retained.

    >>> print(Topic("porch", "update", "porch-cam"))
    gradsense/v2/porch/up/porch-cam/update
    """

    run: str
    kind: Kind
    device: str = COORDINATOR
    index: int = 0

    def __str__(self) -> str:
        base = f"{ROOT}/{self.run}"
        if self.kind in UP:
            return f"{base}/up/{self.device}/{self.kind}"
        if self.kind in TO_ONE:
            return f"{base}/device/{self.device}/{self.kind}"
        return f"{base}/down/{self.kind}" + (f"/{self.index}" if self.index else "")


def device_filters(run: str, device: str) -> tuple[str, ...]:
    """What a device subscribes to: the model's chunks, and what is for itself."""
    base = f"{ROOT}/{run}"
    return (
        *(f"{base}/down/model", f"{base}/down/model/+", f"{base}/down/revoked"),
        f"{base}/device/{device}/#",
    )


def parse_topic(text: str) -> Topic:
    """The topic of a message that came.

    Raises:
        BadTopic: it is not exactly one that ``str(Topic(...))`` gives.
    """
    refusal = BadTopic(f"topic {text[:_MAX_TOPIC]!r} is none of this protocol")
    if len(text) > _MAX_TOPIC:
        raise refusal
    match text.split("/"):
        case [_, _, run, "up" | "device", device, kind] if kind in (*UP, *TO_ONE):
            topic = Topic(run, kind, device)
        case [_, _, run, "down", "model" | "revoked" as kind]:
            topic = Topic(run, kind)
        case [_, _, run, "down", "model", index] if _NUMBER.fullmatch(index):
            topic = Topic(run, "model", index=int(index))
        case _:
            raise refusal
    named = _NAME.fullmatch(topic.run) and _NAME.fullmatch(topic.device)
    for_all = topic.device == COORDINATOR
    if str(topic) != text or not named or for_all != (topic.kind in TO_ALL):
        raise refusal
    if topic.index >= MAX_CHUNKS:
        raise refusal
    return topic


# Properties ---------------------------------------------------------------------------------

_PATTERNS = {
    "schema": re.compile(re.escape(SCHEMA)),
    "sequence": _NUMBER,
    "base-version": _NUMBER,
    "base-hash": _HASH,
    "epoch": _NUMBER,
    "sealed": re.compile(r"[01]", re.ASCII),
    "body-sha256": _HASH,
    "body-size": _NUMBER,
    "chunk-count": _NUMBER,
    "chunk-index": _NUMBER,
    "signature": re.compile(r"(?:[0-9a-f]{128})?", re.ASCII),
}
#: What each kind has of ``MessageHeader`` beside its topic, in the order in which it is signed.
_PLACE: dict[Kind, tuple[str, ...]] = {
    "update": ("sequence", "base-version", "base-hash", "sealed"),
    "resume-request": ("sequence",),
    "presence": ("base-version", "base-hash"),
    "model": ("base-version", "base-hash", "epoch", "sealed"),
    "revoked": (),
    "resume": ("sequence",),
    "ack": ("sequence",),
}


@dataclass(frozen=True)
class MessageHeader:
    """The fields of a message that do not depend on its body.

    Attributes:
        kind, run, device: as in its topic.
        sequence: the sender's number of an update, used once; of an ack, resume or resume request
            the update's.
        base_version, base_hash: the global model that an update starts from, with its
            ``model_hash``; of a model its own; of presence the one that the device holds.
        sealed: whether the body is encrypted end to end (``messages.seal``).
        epoch: of a model, how often its run was opened, or later: see ``RunJournal.open``.
    """

    kind: Kind
    run: str
    device: str
    sequence: int = 0
    base_version: int = 0
    base_hash: str = ""
    sealed: bool = False
    epoch: int = 0

    def pairs(self) -> list[tuple[str, str]]:
        """Names and values that its topic does not have, in the fixed order."""
        values = {
            "sequence": str(self.sequence),
            "base-version": str(self.base_version),
            "base-hash": self.base_hash,
            "epoch": str(self.epoch),
            "sealed": str(int(self.sealed)),
        }
        return [(name, values[name]) for name in _PLACE[self.kind]]

    def place(self) -> list[str]:
        """Everything in it but the kind, as it is signed and as a sealed body is bound to it."""
        return [self.run, self.device, *(value for _, value in self.pairs())]

    def associated_data(self) -> bytes:
        """What a sealed body is bound to."""
        return joined(["gradsense-seal-v2", self.kind, *self.place()])


@dataclass(frozen=True)
class Properties:
    """What a message carries beside topic and payload.

    Attributes:
        header: where it stands.
        body_sha256: of the whole body as it travels (compressed, and sealed if so), as hex.
        body_size: its bytes.
        chunk_count: pieces that it travels in; 1 unless it is an update or a model.
        chunk_index: which of them this message carries; a model's is in the topic. Not signed: the
            signature is the whole message's and the same on each chunk.
        signature: Ed25519 by the sender (``messages.sign``) as hex; empty until signed.
    """

    header: MessageHeader
    body_sha256: str
    body_size: int
    chunk_count: int = 1
    chunk_index: int = 0
    signature: str = ""

    def _body_pairs(self) -> list[tuple[str, str]]:
        pairs = [("body-sha256", self.body_sha256), ("body-size", str(self.body_size))]
        if self.header.kind in CHUNKED:
            pairs.append(("chunk-count", str(self.chunk_count)))
        return pairs

    def signed_bytes(self) -> bytes:
        """What the signature covers: the kind's domain, then every value in the fixed order."""
        values = [value for _, value in self._body_pairs()]
        return joined([f"gradsense-{self.header.kind}-v2", *self.header.place(), *values])

    @property
    def message_id(self) -> bytes:
        """16 bytes that name a message: the same for all its chunks, and after a restart."""
        return hashlib.sha256(self.signed_bytes()).digest()[:16]

    def pairs(self) -> list[tuple[str, str]]:
        """The MQTT 5 user properties of this message."""
        every = [("schema", SCHEMA), *self.header.pairs(), *self._body_pairs()]
        if self.header.kind == "update":
            every.append(("chunk-index", str(self.chunk_index)))
        every.append(("signature", self.signature))
        return [(PROPERTY_PREFIX + name, value) for name, value in every]

    def topic(self) -> Topic:
        """The topic of this message."""
        header = self.header
        index = self.chunk_index if header.kind == "model" else 0
        return Topic(header.run, header.kind, header.device, index)

    def at(self, index: int) -> Properties:
        """The same message's properties for its chunk ``index``."""
        return replace(self, chunk_index=index)

    @classmethod
    def parse(cls, topic: Topic, pairs: Sequence[tuple[str, str]]) -> Properties:
        """The properties of a message that came. Names without ``gs-`` are others' and ignored.

        Raises:
            BadProperties: one is missing, twice there, unknown for this kind or out of bounds.
            UnsupportedSchema: the message follows another version of the protocol.
        """
        values, kind = _values(pairs), topic.kind
        if values.get("schema", SCHEMA) != SCHEMA:
            raise UnsupportedSchema(f"schema {values['schema']!r}; this side understands {SCHEMA}")
        names = {"schema", *_PLACE[kind], "body-sha256", "body-size", "signature"}
        names |= {"chunk-count"} if kind in CHUNKED else set()
        names |= {"chunk-index"} if kind == "update" else set()
        if unknown := values.keys() ^ names:
            raise BadProperties(f"missing or unknown: {', '.join(sorted(unknown))}")
        for name, value in values.items():
            if not _PATTERNS[name].fullmatch(value):
                raise BadProperties(f"'{name}' is {value[:80]!r}")
        header = MessageHeader(
            kind=kind,
            run=topic.run,
            device=topic.device,
            sequence=int(values.get("sequence", 0)),
            base_version=int(values.get("base-version", 0)),
            base_hash=values.get("base-hash", ""),
            sealed=values.get("sealed") == "1",
            epoch=int(values.get("epoch", 0)),
        )
        size, count = int(values["body-size"]), int(values.get("chunk-count", 1))
        index = int(values.get("chunk-index", topic.index))
        if not 0 <= index < count <= (min(MAX_CHUNKS, size) if kind in CHUNKED else 1):
            raise BadProperties(f"chunk {index} of {count} of a body of {size} bytes")
        return cls(header, values["body-sha256"], size, count, index, values["signature"])


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


def joined(values: Sequence[str]) -> bytes:
    """Each value behind its length (u32, little endian): no two lists give the same bytes."""
    encoded = [value.encode() for value in values]
    return b"".join(struct.pack("<I", len(value)) + value for value in encoded)


def describe(header: MessageHeader, body: bytes, *, chunks: int = 1) -> Properties:
    """The properties of a body that is ready to travel, not yet signed."""
    return Properties(header, hashlib.sha256(body).hexdigest(), len(body), chunks)


def check_body(body: bytes, properties: Properties, limit: int) -> None:
    """Whether a whole body is the one that its verified properties promise.

    Raises:
        TooLarge: more bytes than the limit.
        WrongHash: another size or hash.
    """
    if max(len(body), properties.body_size) > limit:
        raise TooLarge(f"a body of {max(len(body), properties.body_size)} bytes")
    if len(body) != properties.body_size:
        raise WrongHash(f"{len(body)} bytes where {properties.body_size} were promised")
    if hashlib.sha256(body).hexdigest() != properties.body_sha256:
        raise WrongHash("the body is not the one that its hash names")
