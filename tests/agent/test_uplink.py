"""The sender: what is published when, by numbers that one can check by hand."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradsense.agent.store import NO_MODEL, AgentStore
from gradsense.agent.uplink import Uplink
from gradsense.storage.sqlite import StorageFull
from gradsense.transport.chunks import Resume, ResumeRequest
from gradsense.transport.messages import Message, SignedMessage, read, sign
from gradsense.transport.pacing import Rate
from gradsense.transport.payloads import Ack
from gradsense.transport.protocol import MessageHeader, describe

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
BODY = bytes(range(100))


def signed(sequence: int, chunks: int) -> SignedMessage:
    header = MessageHeader("update", "plant", "gate", sequence, *NO_MODEL)
    return SignedMessage(sign(describe(header, BODY, chunks=chunks), KEY), BODY)


def make(memory: AgentStore, sequence: int, chunks: int = 1) -> None:
    memory.save(({"sequence": sequence}, {}), update=signed(sequence, chunks))


def uplink(memory: AgentStore, rate: Rate | None = None, window: int = 4) -> Uplink:
    return Uplink(
        memory,
        KEY,
        rate or Rate(None, 1),
        window=window,
        retry_s=5.0,
        max_retry_s=60.0,
        rng=random.Random(0),
    )


def said(messages: list[Message]) -> list[int | str]:
    """The index of each chunk, or the kind of what is no chunk."""
    found: list[int | str] = []
    for message in messages:
        one = read(message, lambda topic: KEY.public_key())
        found.append(one.properties.header.kind if one.chunk is None else one.chunk.index)
    return found


def due(link: Uplink, now: float, unacked: int = 0) -> list[int | str]:
    return said(link.due(now, connected=True, unacked=unacked))


def resume(sequence: int, chunks: int, *missing: int) -> Resume:
    return Resume(signed(sequence, chunks).properties.message_id, chunks, missing)


@pytest.fixture
def memory(tmp_path: Path) -> AgentStore:
    return AgentStore(tmp_path)


@pytest.fixture
def link(memory: AgentStore) -> Uplink:
    """Connected at 0, with an empty outbox."""
    found = uplink(memory)
    found.on_connect(0)
    return found


def test_nothing_to_say(link: Uplink, memory: AgentStore) -> None:
    assert memory.head() is None
    assert link.wake_at(0) is None
    assert due(link, 0) == []


def test_nothing_is_sent_without_a_link(memory: AgentStore) -> None:
    make(memory, 1)
    link = uplink(memory)
    assert link.wake_at(0) is None
    assert link.due(0, connected=False, unacked=0) == []
    link.on_connect(3)
    assert link.wake_at(3) == 3
    assert due(link, 3) == [0]


def test_an_update_goes_at_once_and_the_next_after_its_acknowledgement(
    link: Uplink, memory: AgentStore
) -> None:
    make(memory, 1)
    make(memory, 2)
    (message,) = link.due(0, connected=True, unacked=0)
    assert message.topic == "gradsense/v2/plant/up/gate/update"
    assert message.payload == BODY
    assert due(link, 0) == []
    assert not link.expects(Ack(2))
    assert not link.on_ack(Ack(2)), "its turn has not come"
    assert link.on_ack(Ack(1, "not-finite"))
    (message,) = link.due(0, connected=True, unacked=0)
    assert read(message, lambda topic: KEY.public_key()).properties.header.sequence == 2
    assert not link.on_ack(Ack(1)), "an old one"
    assert link.on_ack(Ack(2))
    assert memory.head() is None
    assert memory.counters() == {"refused:not-finite": 1, "acknowledged": 1}
    assert link.counts == {"chunks": 2, "old-acks": 2}


def test_patience_doubles_up_to_a_minute(link: Uplink, memory: AgentStore) -> None:
    make(memory, 1)
    assert due(link, 0) == [0]
    at = 0
    for patience in (5, 10, 20, 40, 60, 60):
        assert link.wake_at(at) == at + patience
        assert due(link, at + patience - 0.1) == []
        at += patience
        assert due(link, at) == [0]
    assert link.counts["repeats"] == 6


def test_patience_begins_when_the_broker_has_all(link: Uplink, memory: AgentStore) -> None:
    make(memory, 1)
    assert due(link, 0) == [0]
    assert due(link, 5, unacked=1) == [], "a slow link is still busy with it"
    assert link.wake_at(5) == 10
    assert due(link, 10) == [0]


def test_news_from_the_coordinator_make_it_try_at_once(link: Uplink, memory: AgentStore) -> None:
    make(memory, 1)
    due(link, 0)
    due(link, 5)
    link.on_model(6)
    soon = link.wake_at(6)
    assert soon is not None
    assert 7 <= soon <= 8, "the acknowledgement may be on its way with the news"
    assert due(link, 6) == []
    assert due(link, 8) == [0]
    assert link.wake_at(8) == 8 + 10, "patience begins anew"


@pytest.mark.parametrize("event", ["connected", "acknowledged"])
def test_patience_begins_anew(link: Uplink, memory: AgentStore, event: str) -> None:
    make(memory, 1)
    make(memory, 2)
    due(link, 0)
    due(link, 5)
    assert link.wake_at(5) == 15
    if event == "connected":
        link.on_connect(6)
    else:
        link.on_ack(Ack(1))
    assert due(link, 6) == [0]
    assert link.wake_at(6) == 11


def test_chunks_within_the_window(link: Uplink, memory: AgentStore) -> None:
    make(memory, 1, chunks=7)
    assert due(link, 0) == [0, 1, 2, 3]
    assert due(link, 0, unacked=4) == []
    assert link.wake_at(0) is None, "the broker's word is awaited, no time"
    assert due(link, 1, unacked=2) == [4, 5]
    assert due(link, 2, unacked=0) == [6]
    assert link.wake_at(2) == 7


def test_of_an_unanswered_long_update_it_asks(link: Uplink, memory: AgentStore) -> None:
    make(memory, 1, chunks=4)
    assert due(link, 0) == [0, 1, 2, 3]
    (message,) = link.due(5, connected=True, unacked=0)
    found = read(message, lambda topic: KEY.public_key())
    assert (found.properties.header.kind, found.properties.header.sequence) == ("resume-request", 1)
    assert ResumeRequest.parse(found.body) == ResumeRequest(signed(1, 4).properties.message_id, 4)
    link.on_resume(resume(1, 4, 1, 3), 6)
    assert due(link, 6) == [1, 3]
    link.on_resume(resume(1, 4, 1, 3), 7)
    assert due(link, 7) == [], "the same answer again: nobody asked"
    assert due(link, 11) == ["resume-request"]
    assert link.counts == {"chunks": 6, "resume-requests": 2, "repeats": 2, "other-resumes": 1}


def test_nothing_missing_is_no_acknowledgement(link: Uplink, memory: AgentStore) -> None:
    make(memory, 1, chunks=2)
    due(link, 0)
    assert due(link, 5) == ["resume-request"]
    link.on_resume(resume(1, 2), 6)
    assert memory.head() is not None
    assert due(link, 15.9) == []
    assert due(link, 16) == ["resume-request"]


@pytest.mark.parametrize("other", [resume(2, 4, 0), resume(1, 2, 0)], ids=["update", "count"])
def test_an_answer_about_another_message(link: Uplink, memory: AgentStore, other: Resume) -> None:
    make(memory, 1, chunks=4)
    due(link, 0)
    due(link, 5)
    link.on_resume(other, 6)
    assert due(link, 6) == []
    assert link.counts["other-resumes"] == 1
    link.on_resume(resume(1, 4, 2), 6)
    assert due(link, 6) == [2], "the right one still counts"


class Gate(Rate):
    """A rate that can be shut."""

    shut = False

    def take(self, size: int, now: float) -> bool:
        return not self.shut and super().take(size, now)


def test_a_late_answer_takes_the_place_of_a_question_not_yet_sent(memory: AgentStore) -> None:
    make(memory, 1, chunks=4)
    gate = Gate(None, 1)
    link = uplink(memory, gate)
    link.on_connect(0)
    assert due(link, 0) == ["resume-request"]
    gate.shut = True
    assert due(link, 5) == [], "patience is over, but the link may carry no more for now"
    link.on_resume(resume(1, 4, 2), 6)
    gate.shut = False
    assert due(link, 6) == [2]


def test_what_waits_is_signed_with_the_key_of_today(memory: AgentStore) -> None:
    make(memory, 1, chunks=2)
    today = Ed25519PrivateKey.from_private_bytes(bytes(32))
    link = Uplink(memory, today, Rate(None, 1), rng=random.Random(0))
    link.on_connect(0)
    (ask,) = link.due(0, connected=True, unacked=0)
    link.on_resume(resume(1, 2, 0, 1), 0)
    for message in [ask, *link.due(0, connected=True, unacked=0)]:
        read(message, lambda topic: today.public_key())
    assert link.counts["chunks"] == 2, "and it is the same message, so no chunk is lost"


@pytest.mark.parametrize("chunks", [1, 4])
def test_after_a_break_a_short_one_is_sent_again_and_a_long_one_asked_for(
    link: Uplink, memory: AgentStore, chunks: int
) -> None:
    make(memory, 1, chunks)
    due(link, 0)
    link.on_disconnect()
    assert link.wake_at(1) is None
    link.on_connect(2)
    assert due(link, 2) == ([0] if chunks == 1 else ["resume-request"])


@pytest.mark.parametrize("chunks", [1, 4])
def test_so_does_a_new_process(memory: AgentStore, chunks: int) -> None:
    make(memory, 1, chunks)
    make(memory, 2, chunks)
    link = uplink(memory)
    link.on_connect(0)
    assert due(link, 0) == ([0] if chunks == 1 else ["resume-request"])
    assert link.on_ack(Ack(1))
    assert due(link, 0) == list(range(chunks)), "of the second nothing can have been sent"


def test_a_break_before_anything_was_sent_asks_nothing(link: Uplink, memory: AgentStore) -> None:
    make(memory, 1, chunks=2)
    assert link.wake_at(0) == 0
    link.on_disconnect()
    link.on_connect(2)
    assert due(link, 2) == [0, 1]


def test_a_break_in_the_middle_forgets_answers_to_come(link: Uplink, memory: AgentStore) -> None:
    make(memory, 1, chunks=4)
    due(link, 0)
    assert due(link, 5) == ["resume-request"]
    link.on_disconnect()
    link.on_connect(6)
    link.on_resume(resume(1, 4, 0, 1, 2, 3), 6)
    assert due(link, 6) == ["resume-request"], "what was asked on the old link is asked again"


def test_no_more_bytes_than_the_link_may_carry(memory: AgentStore) -> None:
    make(memory, 1, chunks=4)
    every = uplink(memory)
    every.on_connect(0)
    every.on_resume(resume(1, 4, 0, 1, 2, 3), 0)
    (request,) = every.due(0, connected=True, unacked=0)
    size = len(request.payload) + sum(len(name) + len(value) for name, value in request.pairs)
    every.on_resume(resume(1, 4, 0, 1, 2, 3), 0)
    chunk = every.due(0, connected=True, unacked=0)[0]
    burst = len(chunk.payload) + sum(len(name) + len(value) for name, value in chunk.pairs)
    link = uplink(memory, Rate(size / 10, burst))
    link.on_connect(0)
    assert due(link, 0) == ["resume-request"]
    link.on_resume(resume(1, 4, 0, 1, 2, 3), 0)
    assert due(link, 0) == []
    wake = link.wake_at(0)
    assert wake == pytest.approx(10), "as long as the request's bytes take"
    assert due(link, wake - 0.01) == []
    assert due(link, wake + 1e-6) == [0]


def test_an_acknowledgement_that_cannot_be_noted_comes_again(
    link: Uplink, memory: AgentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(memory, 1)
    due(link, 0)
    with monkeypatch.context() as patch:

        def full(*_: object, **__: object) -> bool:
            raise StorageFull("disk full")

        patch.setattr(memory, "acknowledged", full)
        with pytest.raises(StorageFull):
            link.on_ack(Ack(1))
    assert due(link, 5) == [0]
    assert link.on_ack(Ack(1))


def test_a_refusal_and_what_the_client_makes_of_it_are_one(
    link: Uplink, memory: AgentStore
) -> None:
    make(memory, 1)
    assert link.on_ack(Ack(1, "unknown-base"), client=({"sequence": 1, "told": 0}, {}))
    assert memory.client() == ({"sequence": 1, "told": 0}, {})
