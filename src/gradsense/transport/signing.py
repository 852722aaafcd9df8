"""Signatures on messages, and bodies that only the recipient can read.

Ed25519 (RFC 8032) over all properties and the body's hash, in a domain for each kind of message,
so that a broker operator can neither forge nor alter one, nor pass one kind off as another.
Optionally the body is sealed: X25519 (RFC 7748) with a fresh key for each body, HKDF-SHA256
(RFC 5869), ChaCha20-Poly1305 (RFC 8439).

A replay carries a good signature: the coordinator refuses it by (device, sequence), a device by
the model's version.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gradsense.errors import UpdateRefused
from gradsense.transport.protocol import MessageHeader, Properties

_MAGIC = b"GSX1"
_SEAL_DOMAIN = b"gradsense-seal-v1"
_KEY_BYTES = 32
_TAG_BYTES = 16
#: Bytes that sealing adds to a body.
SEAL_OVERHEAD = len(_MAGIC) + _KEY_BYTES + _TAG_BYTES


class BadSignature(UpdateRefused):
    """The message is not signed, or not by the key that was expected."""

    reason = "bad-signature"


class CannotOpen(UpdateRefused):
    """A sealed body was altered, was sealed for somebody else, or belongs to another message."""

    reason = "cannot-open"


def _joined(values: Sequence[bytes]) -> bytes:
    """Each value behind its length (u32, little endian): no two lists give the same bytes."""
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def signature_input(properties: Properties) -> bytes:
    """The bytes that are signed: the kind's domain, then every signed value in the fixed order."""
    values = [value.encode() for _, value in properties.signed_pairs()]
    return _joined([f"gradsense-{properties.header.kind}-v1".encode(), *values])


def sign(properties: Properties, key: Ed25519PrivateKey) -> Properties:
    """The same properties with the sender's signature."""
    return replace(properties, signature=key.sign(signature_input(properties)).hex())


def verify(properties: Properties, key: Ed25519PublicKey) -> None:
    """Whether the holder of ``key`` signed these properties. The body is checked by its hash.

    Args:
        key: for what goes up, the registered key of the device that the topic names; for what
            goes down, the coordinator's.

    Raises:
        BadSignature: not signed, or not by that key, or a value was altered.
    """
    try:
        key.verify(bytes.fromhex(properties.signature), signature_input(properties))
    except (InvalidSignature, ValueError):
        header = properties.header
        raise BadSignature(
            f"{header.kind} {header.sequence} of '{header.device}': not signed by the expected key"
        ) from None


def associated_data(header: MessageHeader) -> bytes:
    """What a sealed body is bound to: its message's place, known before its hash is."""
    return _joined([_SEAL_DOMAIN, *(value.encode() for _, value in header.pairs())])


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
        aad: ``associated_data`` of the message.
        ephemeral: only for test vectors. Two bodies under one key would betray each other, so a
            fresh one is drawn where none is given.

    Returns:
        Magic, the ephemeral public key (32 bytes), ciphertext, tag (16 bytes).
    """
    ephemeral = ephemeral or X25519PrivateKey.generate()
    public = ephemeral.public_key().public_bytes_raw()
    cipher = _cipher(ephemeral.exchange(recipient), public, recipient.public_bytes_raw())
    return _MAGIC + public + cipher.encrypt(_NONCE, body, aad)


def open_sealed(sealed: bytes, recipient: X25519PrivateKey, aad: bytes) -> bytes:
    """The body again.

    Raises:
        CannotOpen: altered, sealed for another key, or bound to another message.
    """
    start = len(_MAGIC) + _KEY_BYTES
    if len(sealed) < SEAL_OVERHEAD or not sealed.startswith(_MAGIC):
        raise CannotOpen("not a sealed body")
    public = sealed[len(_MAGIC) : start]
    try:
        # An exchange with a point of low order raises ValueError.
        shared = recipient.exchange(X25519PublicKey.from_public_bytes(public))
        cipher = _cipher(shared, public, recipient.public_key().public_bytes_raw())
        return cipher.decrypt(_NONCE, sealed[start:], aad)
    except (InvalidTag, ValueError):
        raise CannotOpen("altered, for another key, or of another message") from None


#: Every key encrypts one body only, so the nonce need not vary.
_NONCE = bytes(12)


def _cipher(shared: bytes, ephemeral: bytes, recipient: bytes) -> ChaCha20Poly1305:
    derive = HKDF(algorithm=SHA256(), length=32, salt=ephemeral + recipient, info=_SEAL_DOMAIN)
    return ChaCha20Poly1305(derive.derive(shared))
