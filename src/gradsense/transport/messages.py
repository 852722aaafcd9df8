"""From a body to the messages that carry it, and from a message back to what may be parsed.

Both sides use these: ``written`` signs and, where it is asked to, seals; ``messages`` cuts into
chunks; ``read`` takes one message that came as far as its verified properties.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from gradsense.transport.chunks import Chunk, check_chunk, chunk_count, split
from gradsense.transport.protocol import (
    MessageHeader,
    Properties,
    SizeLimits,
    Topic,
    check_body,
    check_topic,
    describe,
    parse_topic,
)
from gradsense.transport.signing import (
    BadSignature,
    associated_data,
    open_sealed,
    seal,
    sign,
    verify,
)

_CHUNKED = ("update", "model")


@dataclass(frozen=True)
class Message:
    """One MQTT publish, in either direction.

    Attributes:
        topic: in full.
        pairs: the user properties, in order.
        payload: a chunk of an update or model, else the body. Nothing with ``retain`` clears what
            the broker keeps under the topic.
        retain: whether the broker keeps it for whoever subscribes later.
    """

    topic: str
    pairs: tuple[tuple[str, str], ...] = ()
    payload: bytes = field(default=b"", repr=False)
    retain: bool = False


@dataclass(frozen=True)
class SignedMessage:
    """A whole body with its signed properties, ready to be cut.

    Attributes:
        properties: signed, of chunk 0.
        body: as it travels, sealed if so.
    """

    properties: Properties
    body: bytes = field(repr=False)


def sign_message(
    header: MessageHeader,
    body: bytes,
    key: Ed25519PrivateKey,
    *,
    seal_for: X25519PublicKey | None = None,
) -> SignedMessage:
    """Sign a body, and seal it first where a recipient's key is given."""
    if seal_for is not None:
        header = replace(header, sealed=True)
        body = seal(body, seal_for, associated_data(header))
    count = chunk_count(len(body)) if header.kind in _CHUNKED else 1
    return SignedMessage(sign(describe(header, body, chunks=count), key), body)


def messages(
    signed: SignedMessage, indices: Iterable[int] | None = None, *, retain: bool = False
) -> list[Message]:
    """The publishes that carry a signed: all of its chunks, or only ``indices``."""
    properties, header = signed.properties, signed.properties.header
    if header.kind not in _CHUNKED:
        topic = str(Topic(header.run, header.kind, header.device))
        return [Message(topic, tuple(properties.pairs()), signed.body, retain)]
    found = []
    for chunk in split(signed.body, properties, indices):
        place = chunk.index if header.kind == "model" else 0
        topic = str(Topic(header.run, header.kind, header.device, place))
        pairs = tuple(properties.at(chunk.index).pairs())
        found.append(Message(topic, pairs, chunk.pack(), retain))
    return found


def presence(
    run: str, device: str, body: bytes, held: tuple[int, str], key: Ed25519PrivateKey
) -> Message:
    """A device's status, to be retained.

    Args:
        body: ``body.ONLINE`` or ``body.OFFLINE``.
        held: version and hash of the model that it holds, or ``NO_MODEL``.
    """
    header = MessageHeader("status", run, device, 0, *held)
    return messages(sign_message(header, body, key), retain=True)[0]


@dataclass(frozen=True)
class Read:
    """A message whose sender is known.

    Attributes:
        topic, properties: verified.
        chunk: of an update or model; else None.
        body: of every other kind, checked against its hash; else empty.
    """

    topic: Topic
    properties: Properties
    chunk: Chunk | None = None
    body: bytes = field(default=b"", repr=False)


def read(
    message: Message,
    key_of: Callable[[Topic], Ed25519PublicKey | None],
    limits: SizeLimits | None = None,
) -> Read:
    """Verify a message that came; nothing of its payload is parsed before.

    Args:
        key_of: the key that whoever may publish on this topic signs with; None: nobody may.
        limits: of the body.

    Raises:
        UpdateRefused: one of its named kinds, in the order of docs/protocol.md.
    """
    topic = parse_topic(message.topic)
    properties = Properties.parse(message.pairs)
    check_topic(topic, properties)
    key = key_of(topic)
    if key is None:
        raise BadSignature(f"'{topic.device}' is not enrolled, or its certificate has ended")
    verify(properties, key)
    if topic.kind not in _CHUNKED:
        check_body(message.payload, properties, limits)
        return Read(topic, properties, body=message.payload)
    chunk = Chunk.parse(message.payload)
    check_chunk(chunk, properties)
    return Read(topic, properties, chunk)


def unsealed(body: bytes, properties: Properties, key: X25519PrivateKey | None) -> bytes:
    """A whole body that ``check_body`` let pass, in the clear.

    Raises:
        CannotOpen: it is sealed, and not for ``key``.
    """
    if not properties.header.sealed:
        return body
    # Without a key of our own any will do: none but the recipient's opens it.
    key = key or X25519PrivateKey.generate()
    return open_sealed(body, key, associated_data(properties.header))
