"""Signatures, sealed bodies, and the vectors that another implementation checks itself with.

    python -m tests.transport.test_signing

writes the vectors anew, which only a new version of the protocol may need.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.transport.chunks import Resume, ResumeRequest, split
from gradsense.transport.messages import (
    SEAL_OVERHEAD,
    BadSignature,
    CannotOpen,
    open_sealed,
    seal,
    sign,
    verify,
)
from gradsense.transport.payloads import Ack, compress, expand
from gradsense.transport.protocol import MessageHeader, Properties, describe

VECTORS = Path(__file__).parent / "vectors" / "messages.json"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
RECIPIENT = X25519PrivateKey.from_private_bytes(bytes(range(32, 64)))
EPHEMERAL = X25519PrivateKey.from_private_bytes(bytes(range(64, 96)))
HEADER = MessageHeader("update", "plant", "gate-7", 3, 2, "ab" * 32)
SEALED = replace(HEADER, sealed=True)
BODY = b"0123456789"
SIGNED = sign(describe(HEADER, BODY, chunks=3), KEY)


def vectors() -> dict[str, object]:
    """Everything in the vectors file, computed afresh."""
    sealed = seal(BODY, RECIPIENT.public_key(), SEALED.associated_data(), ephemeral=EPHEMERAL)
    model = sign(
        describe(MessageHeader("model", "plant", "coordinator", 0, 2, "cd" * 32, epoch=5), BODY),
        KEY,
    )
    name = SIGNED.message_id
    return {
        "ed25519_private": bytes(range(32)).hex(),
        "ed25519_public": KEY.public_key().public_bytes_raw().hex(),
        "body": BODY.hex(),
        "update_properties": dict(SIGNED.pairs()),
        "update_signature_input": SIGNED.signed_bytes().hex(),
        "model_topic": str(model.topic()),
        "model_properties": dict(model.pairs()),
        "model_signature_input": model.signed_bytes().hex(),
        "update_message_id": name.hex(),
        "update_topic": str(SIGNED.topic()),
        "update_payloads": [chunk.piece.hex() for chunk in split(BODY, SIGNED)],
        "resume_request": ResumeRequest(name, 3).pack().hex(),
        "resume_missing_0_and_2": Resume(name, 3, (0, 2)).pack().hex(),
        "ack_accepted": Ack(3).pack().hex(),
        "ack_not_finite": Ack(3, "not-finite").pack().hex(),
        "x25519_recipient_private": bytes(range(32, 64)).hex(),
        "x25519_ephemeral_private": bytes(range(64, 96)).hex(),
        "associated_data": SEALED.associated_data().hex(),
        "sealed_body": sealed.hex(),
    }


def test_the_vectors() -> None:
    kept = json.loads(VECTORS.read_text())
    frame = bytes.fromhex(kept.pop("zstd_frame_of_body"))
    assert expand(frame, 100) == BODY
    assert kept == vectors()


def test_zstd_both_ways() -> None:
    assert expand(compress(BODY), 100) == BODY


def test_a_signature_holds_for_every_chunk() -> None:
    for index in range(3):
        verify(Properties.parse(SIGNED.topic(), SIGNED.at(index).pairs()), KEY.public_key())


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "model"},
        {"run": "plan"},
        {"device": "gate-8"},
        {"sequence": 4},
        {"base_version": 3},
        {"base_hash": "ac" * 32},
        {"sealed": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_nothing_in_the_header_can_be_altered(changes: dict[str, object]) -> None:
    altered = replace(SIGNED, header=replace(HEADER, **changes))  # type: ignore[arg-type]
    with pytest.raises(BadSignature):
        verify(altered, KEY.public_key())


@pytest.mark.parametrize(
    "changes",
    [
        {"body_sha256": "00" * 32},
        {"body_size": 11},
        {"chunk_count": 2},
        {"signature": ""},
        {"signature": "00" * 64},
    ],
    ids=str,
)
def test_nothing_about_the_body_can_be_altered(changes: dict[str, object]) -> None:
    with pytest.raises(BadSignature):
        verify(replace(SIGNED, **changes), KEY.public_key())  # type: ignore[arg-type]


def test_the_wrong_key_is_refused() -> None:
    with pytest.raises(BadSignature):
        verify(SIGNED, Ed25519PrivateKey.generate().public_key())


def test_values_cannot_flow_into_each_other() -> None:
    one = describe(replace(HEADER, run="ab", device="c"), BODY)
    two = describe(replace(HEADER, run="a", device="bc"), BODY)
    assert one.signed_bytes() != two.signed_bytes()


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200), st.data())
def test_a_sealed_body_opens_only_unaltered(body: bytes, data: st.DataObject) -> None:
    aad = SEALED.associated_data()
    sealed = bytearray(seal(body, RECIPIENT.public_key(), aad))
    assert len(sealed) == len(body) + SEAL_OVERHEAD
    assert open_sealed(bytes(sealed), RECIPIENT, aad) == body
    place = data.draw(st.integers(0, len(sealed) - 1))
    # The top bit of an X25519 point is ignored (RFC 7748, 5), but salts the key.
    sealed[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CannotOpen):
        open_sealed(bytes(sealed), RECIPIENT, aad)


def test_a_sealed_body_opens_only_in_its_place_and_for_its_recipient() -> None:
    aad = SEALED.associated_data()
    sealed = seal(BODY, RECIPIENT.public_key(), aad)
    for device in ("gate-8", "gate-70"):
        with pytest.raises(CannotOpen):
            open_sealed(sealed, RECIPIENT, replace(SEALED, device=device).associated_data())
    with pytest.raises(CannotOpen):
        open_sealed(sealed, X25519PrivateKey.generate(), aad)
    for length in (0, 32, 47, len(sealed) - 1):
        with pytest.raises(CannotOpen):
            open_sealed(sealed[:length], RECIPIENT, aad)
    with pytest.raises(CannotOpen):  # a point of low order: the shared secret would be known
        open_sealed(bytes(32) + sealed[32:], RECIPIENT, aad)
    assert seal(BODY, RECIPIENT.public_key(), aad) != sealed


if __name__ == "__main__":
    made = vectors() | {"zstd_frame_of_body": compress(BODY).hex()}
    VECTORS.write_text(json.dumps(made, indent=2) + "\n")
