"""Signatures, sealed bodies, and the vectors that another implementation checks itself with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.transport.chunks import Resume, ResumeRequest, message_id, split
from gradsense.transport.payloads import Ack, compress, expand
from gradsense.transport.protocol import MessageHeader, Properties, describe
from gradsense.transport.signing import (
    SEAL_OVERHEAD,
    BadSignature,
    CannotOpen,
    associated_data,
    open_sealed,
    seal,
    sign,
    signature_input,
    verify,
)

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
    sealed = seal(BODY, RECIPIENT.public_key(), associated_data(SEALED), ephemeral=EPHEMERAL)
    model = sign(
        describe(MessageHeader("model", "plant", "coordinator", 2, 2, "cd" * 32), BODY), KEY
    )
    name = message_id(SIGNED)
    return {
        "ed25519_private": bytes(range(32)).hex(),
        "ed25519_public": KEY.public_key().public_bytes_raw().hex(),
        "body": BODY.hex(),
        "update_properties": dict(SIGNED.pairs()),
        "update_signature_input": signature_input(SIGNED).hex(),
        "model_properties": dict(model.pairs()),
        "model_signature_input": signature_input(model).hex(),
        "update_message_id": name.hex(),
        "update_chunks": [chunk.pack().hex() for chunk in split(BODY, SIGNED)],
        "ask": ResumeRequest(name, 3).pack().hex(),
        "resume_missing_0_and_2": Resume(name, 3, (0, 2)).pack().hex(),
        "ack_accepted": Ack(3).pack().hex(),
        "ack_not_finite": Ack(3, "not-finite").pack().hex(),
        "x25519_recipient_private": bytes(range(32, 64)).hex(),
        "x25519_ephemeral_private": bytes(range(64, 96)).hex(),
        "associated_data": associated_data(SEALED).hex(),
        "sealed_body": sealed.hex(),
    }


def test_the_vectors() -> None:
    said = json.loads(VECTORS.read_text())
    frame = bytes.fromhex(said.pop("zstd_frame_of_body"))
    assert expand(frame, 100) == BODY
    assert said == vectors()


def test_zstd_both_ways() -> None:
    assert expand(compress(BODY), 100) == BODY


def test_a_signature_holds_for_every_chunk() -> None:
    for index in range(3):
        verify(Properties.parse(SIGNED.at(index).pairs()), KEY.public_key())


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
def test_nothing_in_the_origin_can_be_altered(changes: dict[str, object]) -> None:
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
    assert signature_input(one) != signature_input(two)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200), st.data())
def test_a_sealed_body_opens_only_unaltered(body: bytes, data: st.DataObject) -> None:
    aad = associated_data(SEALED)
    sealed = bytearray(seal(body, RECIPIENT.public_key(), aad))
    assert len(sealed) == len(body) + SEAL_OVERHEAD
    assert open_sealed(bytes(sealed), RECIPIENT, aad) == body
    place = data.draw(st.integers(0, len(sealed) - 1))
    # The top bit of an X25519 point is ignored (RFC 7748, 5), but salts the key.
    sealed[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CannotOpen):
        open_sealed(bytes(sealed), RECIPIENT, aad)


def test_a_sealed_body_opens_only_in_its_place_and_for_its_recipient() -> None:
    aad = associated_data(SEALED)
    sealed = seal(BODY, RECIPIENT.public_key(), aad)
    for device in ("gate-8", "gate-70"):
        with pytest.raises(CannotOpen):
            open_sealed(sealed, RECIPIENT, associated_data(replace(SEALED, device=device)))
    with pytest.raises(CannotOpen):
        open_sealed(sealed, X25519PrivateKey.generate(), aad)
    for length in (0, 4, 36, 51, len(sealed) - 1):
        with pytest.raises(CannotOpen):
            open_sealed(sealed[:length], RECIPIENT, aad)
    with pytest.raises(CannotOpen):  # a point of low order: the shared secret would be known
        open_sealed(sealed[:4] + bytes(32) + sealed[36:], RECIPIENT, aad)
    assert seal(BODY, RECIPIENT.public_key(), aad) != sealed
