"""The receiver: models and answers in any order, and everything that it refuses by name."""

from __future__ import annotations

import logging
import random
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.agent.downlink import Downlink, News, Repeated
from gradsense.federation.update import GlobalModel
from gradsense.transport.chunks import Resume
from gradsense.transport.messages import Message, SignedMessage, messages, sign, sign_message
from gradsense.transport.payloads import Ack, model_hash, pack_model
from gradsense.transport.protocol import COORDINATOR, Kind, MessageHeader, SizeLimits, describe

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
SEAL = X25519PrivateKey.from_private_bytes(bytes(range(32)))


def model(version: int, **tensors: np.ndarray) -> GlobalModel:
    values = np.random.default_rng(version).normal(size=(3, 40)).astype(np.float32)
    return GlobalModel(version, tensors or {"score.weight": values})


def told(
    one: GlobalModel,
    chunks: int = 1,
    key: Ed25519PrivateKey = KEY,
    run: str = "plant",
    epoch: int = 0,
) -> list[Message]:
    """The publishes that carry a model, in so many chunks."""
    body = pack_model(one)
    digest = model_hash(one.tensors)
    header = MessageHeader("model", run, COORDINATOR, 0, one.version, digest, epoch=epoch)
    properties = sign(describe(header, body, chunks=chunks), key)
    return messages(SignedMessage(properties, body), retain=True)


def answer(kind: Kind, body: bytes, device: str = "gate", sequence: int = 1) -> Message:
    return messages(
        sign_message(MessageHeader(kind, "plant", device, sequence, 0, "0" * 64), body, KEY)
    )[0]


def downlink(held: GlobalModel | None = None, limits: SizeLimits | None = None) -> Downlink:
    return Downlink("plant", "gate", KEY.public_key(), None, limits, held=held)


def take(link: Downlink, every: list[Message]) -> list[News]:
    found = [link.take(message, 0.0) for message in every]
    return [one for one in found if one is not None]


def same(found: list[News], *models: GlobalModel) -> bool:
    return [
        (one.version, model_hash(one.tensors)) for one in found if isinstance(one, GlobalModel)
    ] == [(one.version, model_hash(one.tensors)) for one in models]


def test_a_model_and_the_next() -> None:
    link = downlink()
    assert link.version == -1
    assert same(take(link, told(model(0))), model(0))
    assert same(take(link, told(model(4))), model(4))
    assert link.version == 4
    assert not link.refused


def test_a_restored_coordinator_is_followed_and_the_one_before_is_not() -> None:
    link = downlink(held=model(7))
    assert same(take(link, told(model(5), chunks=3, epoch=4)), model(5)), "older, of a later epoch"
    assert (link.epoch, link.version, link.latest) == (4, 5, 4)
    assert take(link, told(model(8), epoch=3)) == [], "what the broker retained of before"
    assert take(link, told(model(4), epoch=4)) == []
    assert link.refused == {"stale": 2}
    assert same(take(link, told(model(6), epoch=4)), model(6))
    other = model(6, **{"score.weight": np.ones((3, 40), np.float32)})
    assert same(take(link, told(other, epoch=5)), other), "the same version, made anew"


def test_a_restart_is_no_new_model() -> None:
    link = downlink(held=model(7))
    assert take(link, told(model(7), chunks=2, epoch=4)) == [Repeated(7)]
    assert (link.epoch, link.version) == (4, 7)


def test_the_latest_epoch_is_known_from_the_first_chunk() -> None:
    link = downlink(held=model(7))
    assert take(link, told(model(5), chunks=3, epoch=4)[:1]) == []
    assert (link.epoch, link.latest) == (0, 4)
    assert take(link, told(model(5), key=OTHER, epoch=9)) == []
    assert link.latest == 4, "nothing that is not signed"


def test_acknowledgements_and_resumes() -> None:
    link = downlink()
    resume = Resume(b"m" * 16, 9, (1, 8))
    assert link.take(answer("ack", Ack(1, "replay").pack()), 0) == Ack(1, "replay")
    assert link.take(answer("resume", resume.pack()), 0) == resume


def test_the_same_model_again_is_heard_and_not_adopted() -> None:
    link = downlink(held=model(3))
    assert take(link, told(model(3), chunks=4)) == [Repeated(3)], "once, not for each chunk"
    assert not link.refused


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32), doubled=st.booleans())
def test_chunks_of_two_versions_in_any_order(seed: int, doubled: bool) -> None:
    link = downlink(held=model(0))
    every = (told(model(1), chunks=3) + told(model(2), chunks=4)) * (1 + doubled)
    random.Random(seed).shuffle(every)
    found = [one for one in take(link, every) if isinstance(one, GlobalModel)]
    assert same(found, model(2)) or same(found, model(1), model(2))
    assert link.version == 2
    assert link.waits_since is None, "nothing waits for what is older"
    assert set(link.refused) <= {"stale"}


def test_leftovers_of_a_version_that_was_published_over() -> None:
    link = downlink()
    old, new = told(model(1), chunks=4), told(model(2), chunks=2)
    # Chunks 0 and 1 are the new ones, 2 and 3 are still kept from before.
    assert same(take(link, [old[3], new[0], old[2], new[1]]), model(2))
    assert link.waits_since is None


def test_what_waited_for_an_older_model_gives_its_room_back() -> None:
    link = downlink()
    take(link, told(model(1), chunks=3)[:2])
    assert link._assembler.held > 0
    take(link, told(model(2)))
    assert link._assembler.held == 0


def test_a_refused_model_in_parts_is_not_waited_for() -> None:
    link = downlink()
    assert same(take(link, told(model(0))), model(0))
    wide = model(1, **{"score.weight": np.ones((9, 9), np.float32)})
    assert take(link, told(wide, chunks=3) * 2) == []
    assert link.refused == {"wrong-shape": 1}, "the first model says what the next must be like"
    assert link.waits_since is None


def test_how_long_a_model_in_parts_waits() -> None:
    link = downlink()
    first, second, third = told(model(1), chunks=3)
    assert link.waits_since is None
    assert link.take(first, 10.0) is None
    assert link.take(third, 12.0) is None
    assert link.waits_since == 12.0
    assert isinstance(link.take(second, 13.0), GlobalModel)
    assert link.waits_since is None


def test_a_cleared_topic_says_nothing() -> None:
    link = downlink()
    assert link.take(Message("gradsense/v2/plant/down/model/3", retain=True), 0.0) is None
    assert not link.refused


def test_an_older_model_of_the_same_epoch_is_refused() -> None:
    link = downlink(held=model(5))
    assert take(link, told(model(3)) * 2) == []
    assert link.refused == {"stale": 2}
    assert link.version == 5


def test_an_older_leftover_chunk_alarms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    link = downlink(held=model(7))
    with caplog.at_level(logging.WARNING):
        take(link, told(model(6), chunks=3)[1:])
    assert link.refused == {"stale": 2}
    assert "start a new run" not in caplog.text


def test_refusals_are_logged_once_each(caplog: pytest.LogCaptureFixture) -> None:
    link = downlink()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            link.take(told(model(1), key=OTHER)[0], 0.0)
    assert link.refused == {"bad-signature": 3}
    assert len(caplog.records) == 1


NAN = model(1, **{"score.weight": np.full((3, 40), np.nan, np.float32)})
UPDATE = MessageHeader("update", "plant", "gate", 1, 0, "0" * 64)
BAD = {
    "forged": (told(model(1), key=OTHER)[0], "bad-signature"),
    "another run": (told(model(1), run="mill")[0], "wrong-device"),
    "another device's ack": (answer("ack", Ack(1).pack(), device="barn"), "wrong-device"),
    "an update": (messages(sign_message(UPDATE, b"x", KEY))[0], "wrong-device"),
    "no topic of ours": (Message("home/lamp", (), b"on"), "bad-topic"),
    "no properties": (replace(told(model(1))[0], pairs=()), "bad-properties"),
    "no chunk": (replace(told(model(1))[0], payload=b"x"), "bad-chunk"),
    "no ack": (answer("ack", b"GSA1"), "bad-body"),
    "no resume": (answer("resume", b"GSR1"), "bad-resume"),
    "another shape": (told(model(1, **{"score.weight": np.ones(3, np.float32)}))[0], "wrong-shape"),
    "another tensor": (told(model(1, bias=np.ones(3, np.float32)))[0], "unknown-tensor"),
    "no number": (told(NAN)[0], "not-finite"),
}


@pytest.mark.parametrize(("message", "name"), BAD.values(), ids=BAD)
def test_refused_by_name(message: Message, name: str) -> None:
    link = downlink(held=model(0))
    assert link.take(message, 0.0) is None
    assert link.refused == {name: 1}
    assert same(take(link, told(model(2))), model(2)), "nothing stops"


def test_a_model_above_the_limit_takes_no_memory() -> None:
    link = downlink(limits=SizeLimits(body=100))
    every = told(model(1), chunks=3)
    assert take(link, every) == []
    assert link.refused == {"too-large": 3}
    assert link.waits_since is None


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_never_gets_through(data: st.DataObject) -> None:
    link = downlink(held=model(0))
    first, second = told(model(1), chunks=2)
    hurt = bytearray(second.payload)
    place = data.draw(st.integers(0, len(hurt) - 1))
    hurt[place] ^= 1 << data.draw(st.integers(0, 7))
    assert take(link, [first, replace(second, payload=bytes(hurt))]) == []
    assert link.refused.total() == 1
    assert same(take(link, [first, second]), model(1)), "the true chunks are taken afterwards"


def test_sealed_models_are_for_the_fleet_alone() -> None:
    one = model(1)
    header = MessageHeader("model", "plant", COORDINATOR, 0, 1, model_hash(one.tensors))
    (message,) = messages(sign_message(header, pack_model(one), KEY, seal_for=SEAL.public_key()))
    member = Downlink("plant", "gate", KEY.public_key(), SEAL)
    assert same(take(member, [message]), one)
    stranger = downlink()
    assert take(stranger, [message]) == []
    assert stranger.refused == {"cannot-open": 1}
