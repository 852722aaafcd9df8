"""The envelope of an update."""

from __future__ import annotations

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gradsense.errors import InputError
from gradsense.federation.update import decode, encode
from tests.support.toys import tensor, update

TENSORS = st.dictionaries(
    st.text("abc.", min_size=1, max_size=8),
    arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 3))),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(TENSORS, st.text(max_size=20), st.integers(0, 1 << 40))
def test_plain_is_exact(delta: dict[str, np.ndarray], client: str, sequence: int) -> None:
    sent = update(client, sequence=sequence, delta=delta, score=0.25)
    got = decode(encode(sent))
    assert (got.client, got.sequence, got.score) == (client, sequence, 0.25)
    assert got.delta.keys() == delta.keys()
    for name, value in delta.items():
        assert got.delta[name].dtype == np.float32
        assert got.delta[name].tobytes() == value.tobytes()  # NaN bits too


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_noise_is_refused_in_words(noise: bytes, with_magic: bool) -> None:
    with pytest.raises(InputError):
        decode(b"GSU1" + noise if with_magic else noise)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_message_never_crashes(data: st.DataObject) -> None:
    message = bytearray(encode(update(delta={"w": tensor(1.0, 2.0)})))
    at = data.draw(st.integers(0, len(message) - 1))
    message[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(InputError):  # anything else would fail the test
        decode(bytes(message[: data.draw(st.integers(0, len(message)))]))


def envelope(header: object) -> bytes:
    text = json.dumps(header).encode()
    return b"GSU1" + struct.pack("<I", len(text)) + text


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"", "not a gradsense update"),
        (b"GSU1" + struct.pack("<I", 1 << 30), "length is out of bounds"),
        (b"GSU1" + struct.pack("<I", 2) + b"{x", "not JSON"),
        (envelope([1]), "not a JSON object"),
        (envelope({"client": 3}), "field 'client'"),
        (
            envelope(
                {
                    "client": "a",
                    "base_version": 0,
                    "sequence": 1,
                    "samples": 1,
                    "reason": "",
                    "score": None,
                    "codec": "zip",
                }
            ),
            "unknown codec 'zip'",
        ),
    ],
)
def test_each_fault_is_named(message: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        decode(message)
