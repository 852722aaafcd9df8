"""Publishes as paho writes them are read as they were meant; anything else is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gradsense.transport.publishes import MAX_PAIRS, LinearClient, Publish, parse

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


def packed(
    topic: str, pairs: list[tuple[str, str]], payload: bytes, *, mid: int | None, **more: object
) -> bytes:
    properties = Properties(PacketTypes.PUBLISH)
    if pairs:
        properties.UserProperty = pairs
    for name, value in more.items():
        setattr(properties, name, value)
    name = topic.encode()
    receipt = b"" if mid is None else struct.pack("!H", mid)
    return struct.pack("!H", len(name)) + name + receipt + properties.pack() + payload


@given(
    TEXT,
    st.lists(st.tuples(TEXT, TEXT), max_size=40),
    st.binary(max_size=100),
    st.booleans(),
    st.none() | st.integers(1, 65535),
)
def test_what_paho_wrote_is_read(
    topic: str, pairs: list[tuple[str, str]], payload: bytes, retain: bool, mid: int | None
) -> None:
    command = 0x30 | (mid is not None) << 1 | retain
    found = parse(command, packed(topic, pairs, payload, mid=mid))
    assert found == Publish(topic, tuple(pairs[:MAX_PAIRS]), payload, retain, mid)


def test_other_properties_are_passed_over() -> None:
    packet = packed(
        "t",
        [("a", "b")],
        b"x",
        mid=7,
        MessageExpiryInterval=9,
        ContentType="c",
        CorrelationData=b"d",
        ResponseTopic="r",
        SubscriptionIdentifier=300,
        TopicAlias=3,
        PayloadFormatIndicator=1,
    )
    assert parse(0x32, packet) == Publish("t", (("a", "b"),), b"x", False, 7)


@given(st.integers(0, 255), st.binary(max_size=60))
def test_any_bytes_are_a_publish_or_refused(command: int, packet: bytes) -> None:
    try:
        found = parse(command, packet)
    except ValueError:
        return
    assert len(found.pairs) <= MAX_PAIRS
    assert len(found.payload) <= len(packet)


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_packet_that_ends_early_is_refused(cut: int) -> None:
    with pytest.raises(ValueError, match=r"early|longer|variable"):
        parse(0x32, packed("t", [("a", "b")], b"", mid=7)[:-cut])


def test_paho_calls_it() -> None:
    """A private name of paho: were it another, publishes would be read by paho itself."""
    assert "_handle_publish" in vars(LinearClient.__mro__[1])
