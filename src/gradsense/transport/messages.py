"""From a body to the signed messages that carry it, and from a message back to a verified body.

Ed25519 (RFC 8032) signs topic, properties and the body's hash, in a domain for each kind of
message: a broker operator can neither forge nor alter one, nor pass one kind off as another.
Optionally the body is sealed for its recipient: X25519 (RFC 7748) with a fresh key for each body,
HKDF-SHA256 (RFC 5869), ChaCha20-Poly1305 (RFC 8439).

A replay carries a good signature: the coordinator refuses it by (device, sequence), a device by
the model's version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gradsense.errors import UpdateRefused
from gradsense.transport.chunks import Chunk, chunk_count, split
from gradsense.transport.protocol import (
    CHUNKED,
    MessageHeader,
    Properties,
    Topic,
    check_body,
    describe,
    parse_topic,
)

_KEY_BYTES = 32
_TAG_BYTES = 16
#: Bytes that sealing adds to a body.
SEAL_OVERHEAD = _KEY_BYTES + _TAG_BYTES
#: Every key encrypts one body only, so the nonce need not vary.
_NONCE = bytes(12)
#: Bytes of a body that travels in no chunks; a resume of 65536 chunks has half of it.
_MAX_SMALL_BODY = 16 << 10


class BadSignature(UpdateRefused):
    """The message is not signed, or not by the key that was expected."""


class CannotOpen(UpdateRefused):
    """A sealed body was altered, was sealed for somebody else, or belongs to another message."""


# Messages -----------------------------------------------------------------------------------


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
        body = seal(body, seal_for, header.associated_data())
    count = chunk_count(len(body)) if header.kind in CHUNKED else 1
    return SignedMessage(sign(describe(header, body, chunks=count), key), body)


def messages(
    signed: SignedMessage, indices: Iterable[int] | None = None, *, retain: bool = False
) -> list[Message]:
    """The publishes that carry a signed message: all of its chunks, or only ``indices``."""
    properties = signed.properties
    if properties.header.kind not in CHUNKED:
        return [Message(str(properties.topic()), tuple(properties.pairs()), signed.body, retain)]
    found = []
    for chunk in split(signed.body, properties, indices):
        own = properties.at(chunk.index)
        found.append(Message(str(own.topic()), tuple(own.pairs()), chunk.piece, retain))
    return found


def presence(
    run: str, device: str, body: bytes, held: tuple[int, str], key: Ed25519PrivateKey
) -> Message:
    """Whether a device is there, to be retained.

    Args:
        body: ``payloads.ONLINE`` or ``payloads.OFFLINE``.
        held: version and hash of the model that it holds, or ``NO_MODEL``.
    """
    header = MessageHeader("presence", run, device, 0, *held)
    return messages(sign_message(header, body, key), retain=True)[0]


@dataclass(frozen=True)
class Read:
    """A message whose sender is known.

    Attributes:
        properties: verified.
        chunk: of an update or model; else None.
        body: of every other kind, checked against its hash; else empty.
    """

    properties: Properties
    chunk: Chunk | None = None
    body: bytes = field(default=b"", repr=False)


def read(message: Message, key_of: Callable[[Topic], Ed25519PublicKey | None]) -> Read:
    """Verify a message that came; nothing of its payload is parsed before.

    Args:
        key_of: the key that whoever may publish on this topic signs with; None: nobody may.

    Raises:
        UpdateRefused: one of its named kinds, in the order of docs/protocol.md.
    """
    topic = parse_topic(message.topic)
    properties = Properties.parse(topic, message.pairs)
    key = key_of(topic)
    if key is None:
        raise BadSignature(f"'{topic.device}' is not enrolled, or its certificate has ended")
    verify(properties, key)
    if topic.kind in CHUNKED:
        return Read(properties, Chunk.of(properties, message.payload))
    check_body(message.payload, properties, _MAX_SMALL_BODY)
    return Read(properties, body=message.payload)


def unsealed(body: bytes, properties: Properties, key: X25519PrivateKey | None) -> bytes:
    """A whole body that ``check_body`` let pass, in the clear.

    Raises:
        CannotOpen: it is sealed, and not for ``key``.
    """
    if not properties.header.sealed:
        return body
    # Without a key of our own any will do: none but the recipient's opens it.
    key = key or X25519PrivateKey.generate()
    return open_sealed(body, key, properties.header.associated_data())


# Signatures ---------------------------------------------------------------------------------


def sign(properties: Properties, key: Ed25519PrivateKey) -> Properties:
    """The same properties with the sender's signature."""
    return replace(properties, signature=key.sign(properties.signed_bytes()).hex())


def verify(properties: Properties, key: Ed25519PublicKey) -> None:
    """Whether the holder of ``key`` signed these properties. The body is checked by its hash.

    Args:
        key: for what goes up, the registered key of the device that the topic names; for what
            goes down, the coordinator's.

    Raises:
        BadSignature: not signed, or not by that key, or a value was altered.
    """
    try:
        key.verify(bytes.fromhex(properties.signature), properties.signed_bytes())
    except (InvalidSignature, ValueError):
        header = properties.header
        raise BadSignature(
            f"{header.kind} {header.sequence} of '{header.device}': not signed by the expected key"
        ) from None


# Sealed bodies ------------------------------------------------------------------------------


def seal(
    body: bytes,
    recipient: X25519PublicKey,
    aad: bytes,
    *,
    ephemeral: X25519PrivateKey | None = None,
) -> bytes:
    """Encrypt a body for one holder of a private key.

    Args:
        recipient: the coordinator's key for updates, the fleet's for models.
        aad: ``MessageHeader.associated_data`` of the message.
        ephemeral: only for test vectors. Two bodies under one key would betray each other, so a
            fresh one is drawn where none is given.

    Returns:
        The ephemeral public key (32 bytes), ciphertext, tag (16 bytes).
    """
    ephemeral = ephemeral or X25519PrivateKey.generate()
    public = ephemeral.public_key().public_bytes_raw()
    cipher = _cipher(ephemeral.exchange(recipient), public, recipient.public_bytes_raw())
    return public + cipher.encrypt(_NONCE, body, aad)


def open_sealed(sealed: bytes, recipient: X25519PrivateKey, aad: bytes) -> bytes:
    """The body again.

    Raises:
        CannotOpen: altered, sealed for another key, or bound to another message.
    """
    if len(sealed) < SEAL_OVERHEAD:
        raise CannotOpen("not a sealed body")
    public = sealed[:_KEY_BYTES]
    try:
        # An exchange with a point of low order raises ValueError.
        shared = recipient.exchange(X25519PublicKey.from_public_bytes(public))
        cipher = _cipher(shared, public, recipient.public_key().public_bytes_raw())
        return cipher.decrypt(_NONCE, sealed[_KEY_BYTES:], aad)
    except (InvalidTag, ValueError):
        raise CannotOpen("altered, for another key, or of another message") from None


def _cipher(shared: bytes, ephemeral: bytes, recipient: bytes) -> ChaCha20Poly1305:
    derive = HKDF(
        algorithm=SHA256(), length=32, salt=ephemeral + recipient, info=b"gradsense-seal-v2"
    )
    return ChaCha20Poly1305(derive.derive(shared))
