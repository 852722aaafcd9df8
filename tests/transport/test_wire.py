"""Topics, properties and bodies: what is sent arrives, and what is hostile is refused by name."""

from __future__ import annotations

import json
import struct
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.errors import UpdateRefused
from gradsense.federation.transforms import codecs
from gradsense.federation.transforms.transform import Plain
from gradsense.federation.update import GlobalModel, Update, exactly
from gradsense.transport.messages import SEAL_OVERHEAD
from gradsense.transport.payloads import (
    OFFLINE,
    ONLINE,
    Ack,
    BadBody,
    OutOfMemory,
    WrongCodec,
    compress,
    expand,
    model_hash,
    open_model,
    open_presence,
    open_update,
    pack_model,
    pack_update,
    update_limit,
)
from gradsense.transport.protocol import (
    BadProperties,
    BadTopic,
    Kind,
    MessageHeader,
    Properties,
    TooLarge,
    Topic,
    UnsupportedSchema,
    WrongHash,
    check_body,
    describe,
    parse_topic,
)

VECTORS = Path(__file__).parent / "vectors"
WORDS = ["gradsense", "v2", "up", "down", "device", "model", "a"]
HEADER = MessageHeader("update", "plant", "gate-7", 3, 2, "ab" * 32)
TOPIC = Topic("plant", "update", "gate-7")
LIMIT = 1 << 20
TENSORS = {"head": np.array([[1.0, -2.0], [0.5, 0.0]], dtype=np.float32)}
BOUNDS = exactly(TENSORS)
MODEL = GlobalModel(2, TENSORS, frozenset({"gate-7", "gate-1"}))


def update(codec: str = "none", **changes: object) -> Update:
    plain = Update("gate-7", 2, 3, 100, "gradient", TENSORS, score=0.25, codec=codec)
    return replace(plain, **changes)  # type: ignore[arg-type]


def model_header() -> MessageHeader:
    return MessageHeader("model", "plant", "coordinator", 0, 2, model_hash(TENSORS))


def test_topics_are_those_of_the_document() -> None:
    vectors = json.loads((VECTORS / "topics.json").read_text())
    for text, fields in vectors["good"].items():
        assert parse_topic(text) == Topic(**fields)
        assert str(Topic(**fields)) == text
    for text in vectors["bad"]:
        with pytest.raises(BadTopic):
            parse_topic(text)


@given(st.text(max_size=300) | st.lists(st.sampled_from(WORDS)))
def test_any_topic_is_its_own_text_or_refused(text: str | list[str]) -> None:
    joined = text if isinstance(text, str) else "/".join(text)
    with suppress(BadTopic):
        assert str(parse_topic(joined)) == joined


@settings(max_examples=50, deadline=None)
@given(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
    st.integers(0, 10**18 - 1),
    st.integers(1, 1000),
    st.booleans(),
)
def test_properties_survive_the_way(name: str, number: int, chunks: int, sealed: bool) -> None:
    header = MessageHeader("update", name, name, number, number, "0f" * 32, sealed)
    sent = describe(header, b"x" * 1000, chunks=chunks).at(chunks - 1)
    topic = parse_topic(str(sent.topic()))
    assert Properties.parse(topic, sent.pairs()) == sent
    assert Properties.parse(topic, [("traceparent", "00"), *reversed(sent.pairs())]) == sent


@pytest.mark.parametrize("name", [name for name, _ in describe(HEADER, b"body").pairs()])
def test_every_property_is_needed_once_and_bounded(name: str) -> None:
    pairs = describe(HEADER, b"body").pairs()
    values = dict(pairs)
    with pytest.raises(BadProperties):
        Properties.parse(TOPIC, [pair for pair in pairs if pair[0] != name])
    with pytest.raises(BadProperties):
        Properties.parse(TOPIC, [*pairs, (name, values[name])])
    for hostile in ("\x00", values[name] + "\n", "٣", "-1", "-" + "9" * 19, "x" * 600, "../+/#"):
        with pytest.raises((BadProperties, UnsupportedSchema)):
            Properties.parse(TOPIC, list((values | {name: hostile}).items()))


def test_properties_of_another_schema_or_that_contradict_each_other_are_refused() -> None:
    values = dict(describe(HEADER, b"body").pairs())
    with pytest.raises(UnsupportedSchema):
        Properties.parse(TOPIC, list((values | {"gs-schema": "1", "gs-new": ""}).items()))
    for name, value in {
        "gs-new": "1",
        "gs-kind": "update",
        "gs-sealed": "2",
        "gs-chunk-index": "1",
        "gs-chunk-count": "5",
        "gs-body-size": "0",
    }.items():
        with pytest.raises(BadProperties):
            Properties.parse(TOPIC, list((values | {name: value}).items()))
    with pytest.raises(BadProperties):
        Properties.parse(TOPIC, [("a", "b")] * 33)


def test_each_kind_has_its_own_properties_and_nothing_twice() -> None:
    kinds = {
        "update": {"sequence", "base-version", "base-hash", "sealed", "chunk-count", "chunk-index"},
        "resume-request": {"sequence"},
        "presence": {"base-version", "base-hash"},
        "model": {"base-version", "base-hash", "epoch", "sealed", "chunk-count"},
        "revoked": set(),
        "resume": {"sequence"},
        "ack": {"sequence"},
    }
    assert kinds.keys() == set(get_args(Kind))
    for kind in get_args(Kind):
        sent = describe(replace(HEADER, kind=kind), b"body")
        names = {name.removeprefix("gs-") for name, _ in sent.pairs()}
        assert names == kinds[kind] | {"schema", "body-sha256", "body-size", "signature"}
        got = Properties.parse(sent.topic(), sent.pairs())
        assert (got.signed_bytes(), got.pairs()) == (sent.signed_bytes(), sent.pairs())


def test_what_the_topic_says_is_signed() -> None:
    sent = describe(HEADER, b"body")
    places = (TOPIC, Topic("plant", "update", "gate-8"), Topic("other", "update", "gate-7"))
    found = {Properties.parse(topic, sent.pairs()).signed_bytes() for topic in places}
    assert len(found) == 3
    small = describe(replace(HEADER, kind="ack"), b"")
    ack, resume = (Topic("plant", kind, "gate-7") for kind in ("ack", "resume"))
    one, two = (Properties.parse(topic, small.pairs()) for topic in (ack, resume))
    assert one.signed_bytes() != two.signed_bytes()
    model = describe(model_header(), b"body", chunks=2)
    assert Properties.parse(Topic("plant", "model", index=1), model.pairs()) == model.at(1)
    with pytest.raises(BadProperties):
        Properties.parse(Topic("plant", "model", index=2), model.pairs())


@pytest.mark.parametrize("codec", sorted(codecs()))
def test_an_update_arrives_as_the_simulator_would_decode_it(codec: str) -> None:
    body = pack_update(update(codec))
    properties = describe(HEADER, body)
    check_body(body, properties, LIMIT)
    got = open_update(body, HEADER, codecs()[codec], BOUNDS)
    expected = codecs()[codec].unpack(codecs()[codec].pack(TENSORS), BOUNDS)
    assert got.delta["head"].tobytes() == expected["head"].tobytes()
    assert replace(got, delta=TENSORS) == update(codec)
    assert body.count(b"\x28\xb5\x2f\xfd") == 1, "one zstd frame"


def test_a_model_arrives_bit_for_bit() -> None:
    body = pack_model(MODEL)
    got = open_model(body, model_header(), LIMIT)
    assert (got.version, got.participants) == (2, MODEL.participants)
    assert model_hash(got.tensors) == model_hash(TENSORS)
    assert body == pack_model(MODEL)
    everybody = pack_model(GlobalModel(2, {"scale": np.float32(3.0).reshape(())}))
    header = replace(model_header(), base_hash=model_hash({"scale": np.float32(3.0).reshape(())}))
    assert open_model(everybody, header, LIMIT).participants is None


def test_a_model_hash_tells_names_shapes_and_values_apart() -> None:
    flat = {"head": TENSORS["head"].ravel()}
    other = {"tail": TENSORS["head"]}
    negative_zero = {"head": np.array([[1.0, -2.0], [0.5, -0.0]], dtype=np.float32)}
    assert len({model_hash(t) for t in (TENSORS, flat, other, negative_zero)}) == 4


def test_bodies_are_verified_before_they_are_parsed() -> None:
    body = pack_update(update())
    properties = describe(HEADER, body)
    flipped = bytes([body[0] ^ 1]) + body[1:]
    for altered in (flipped, body[:-1], body + b"\x00", b""):
        with pytest.raises(WrongHash):
            check_body(altered, properties, LIMIT)
    with pytest.raises(TooLarge):
        check_body(body, properties, len(body) - 1)
    with pytest.raises(TooLarge):
        check_body(body, replace(properties, body_size=1 << 40), LIMIT)


@pytest.mark.parametrize(
    "changes", [{"samples": 10**400}, {"score": float("inf")}, {"reason": "x" * 65}]
)
def test_numbers_that_no_client_sends_are_refused(changes: dict[str, object]) -> None:
    body = pack_update(update(**changes))
    with pytest.raises(BadBody):
        open_update(body, HEADER, codecs()["none"], BOUNDS)


def test_a_model_of_other_tensors_is_refused() -> None:
    body = pack_model(MODEL)
    with pytest.raises(WrongHash):
        open_model(body, replace(model_header(), base_hash="00" * 32), LIMIT)
    for hostile in (b"", b"x", compress(b"x"), compress(b"\xff" * 8), pack_update(update())):
        with pytest.raises(BadBody):
            open_model(hostile, model_header(), LIMIT)


def test_decompression_bombs_use_no_memory() -> None:
    bomb = compress(bytes(64 << 20))
    liar = bytearray(compress(bytes(1 << 20)))
    liar[5:9] = (64).to_bytes(4, "little")  # RFC 8878 3.1.1.1: the declared content size
    chunks = zstandard.ZstdCompressor().compressobj()
    endless = chunks.compress(bytes(1 << 20)) + chunks.flush()  # declares no size
    inner = pack_update(update("fp16", packed=bomb))
    tracemalloc.start()
    with pytest.raises(TooLarge):
        expand(bomb, 1 << 20)
    with pytest.raises(BadBody):
        expand(bytes(liar), 1 << 20)
    with pytest.raises(BadBody):
        expand(endless, 1 << 20)
    with pytest.raises(BadBody):
        expand(compress(b"a") * 2, 1 << 20)
    with pytest.raises(TooLarge):
        open_update(inner, HEADER, codecs()["fp16"], BOUNDS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize("codec", sorted(codecs()))
def test_shapes_that_ask_for_more_than_the_run_has_are_refused(codec: str) -> None:
    vast = np.zeros((4096, 4096), dtype=np.float32)
    body = pack_update(update(codec, delta={"head": vast}, packed=b""))
    with pytest.raises(TooLarge):
        open_update(body, HEADER, codecs()[codec], BOUNDS)


def test_only_the_codec_of_the_run_is_taken() -> None:
    with pytest.raises(WrongCodec):
        open_update(pack_update(update("topk")), HEADER, codecs()["uniform"], BOUNDS)


@pytest.mark.parametrize("codec", sorted(codecs()))
def test_what_cannot_be_compressed_fits_the_limit_of_its_run(codec: str) -> None:
    """The largest body that honest tensors can give, sealed."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 1 << 32, (300, 70), dtype=np.uint32).view(np.float32)
    tensors = {"head": np.nan_to_num(noise), "a.weight.of.a.long.name": np.nan_to_num(noise.T)}
    body = pack_update(update(codec, delta=tensors, reason="x" * 64))
    bounds = exactly(tensors)
    most = update_limit(codecs()[codec], bounds)
    assert len(body) + SEAL_OVERHEAD <= most
    assert most < 1.01 * codecs()[codec].most_bytes(bounds) + 5000
    assert open_update(body, HEADER, codecs()[codec], bounds).delta.keys() == tensors.keys()


def test_no_memory_is_a_refusal_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Plain, "values", full)
    with pytest.raises(OutOfMemory):
        open_update(pack_update(update()), HEADER, codecs()["none"], BOUNDS)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(codecs())), st.data())
def test_no_flipped_bit_inside_an_update_does_worse_than_a_refusal(
    codec: str, data: st.DataObject
) -> None:
    body = bytearray(pack_update(update(codec)))
    length = struct.unpack_from("<I", body)[0]
    inside = bytearray(expand(bytes(body[4 + length :]), LIMIT))
    part = data.draw(st.sampled_from([body, inside]))
    part[data.draw(st.integers(0, len(part) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    hostile = bytes(body) if part is body else bytes(body[: 4 + length]) + compress(bytes(inside))
    with suppress(UpdateRefused):
        open_update(hostile, HEADER, codecs()[codec], BOUNDS)


def test_small_bodies() -> None:
    header = replace(HEADER, kind="ack")
    for ack in (Ack(3), Ack(3, "not-finite")):
        assert Ack.open(ack.pack(), header) == ack
    for hostile in (b"Not finite", b"not-finite\n", b"x" * 65):
        with pytest.raises(BadBody):
            Ack.open(hostile, header)
    assert open_presence(ONLINE)
    assert not open_presence(OFFLINE)
    with pytest.raises(BadBody):
        open_presence(b"")
