"""Bodies in pieces: any order, loss and repetition give the body; hostile chunks only refusals."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gradsense.errors import UpdateRefused
from gradsense.transport.chunks import (
    CHUNK_OVERHEAD,
    Assembler,
    AssemblerFull,
    BadChunk,
    BadResume,
    Chunk,
    ChunkMismatch,
    DeviceQuota,
    Quota,
    Resume,
    ResumeRequest,
    UploadProgress,
    chunk_count,
    split,
)
from gradsense.transport.protocol import MessageHeader, Properties, WrongHash, describe


def message(body: bytes, count: int, sequence: int = 1) -> tuple[Properties, list[Chunk]]:
    header = MessageHeader("update", "plant", "gate-7", sequence, 0, "00" * 32)
    properties = describe(header, body, chunks=count)
    return properties, split(body, properties)


def waiting(assembler: Assembler) -> list[tuple[str, Chunk, float]]:
    """Every chunk that waits for others of its message: device, chunk, when it last got one."""
    return [
        (device, Chunk(message, index, held.count, held.total, held.digest, piece), held.touched_s)
        for device, own in assembler._transfers.items()
        for message, held in own.items()
        for index, piece in held.pieces.items()
    ]


def restarted(assembler: Assembler) -> Assembler:
    """One that goes on where ``assembler`` is, and knows what was whole."""
    again = Assembler(assembler.quota)
    again.counts, again._finished = assembler.counts, assembler._finished
    for device, chunk, at in waiting(assembler):
        again.restore(device, chunk, at)
    return again


def test_ten_bytes_in_three_chunks() -> None:
    _, chunks = message(b"0123456789", 3)
    assert [chunk.piece for chunk in chunks] == [b"012", b"345", b"6789"]
    assert [chunk_count(size, 4) for size in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]
    with pytest.raises(ValueError, match="65536"):
        chunk_count(65537, 1)


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=200), st.integers(1, 20), st.data())
def test_any_order_loss_and_repetition_give_the_body(
    body: bytes, count: int, data: st.DataObject
) -> None:
    properties, chunks = message(body, min(count, len(body)))
    assembler = Assembler()
    arrived = data.draw(st.lists(st.sampled_from(chunks), max_size=40))
    bodies = [assembler.add("gate-7", chunk, 0.0).body for chunk in arrived]
    assembler = restarted(assembler)
    answer = assembler.resume("gate-7", ResumeRequest(chunks[0].message, len(chunks)))
    assert set(answer.missing) == set(range(len(chunks))) - {chunk.index for chunk in arrived}
    for chunk in split(body, properties, Resume.parse(answer.pack()).missing):
        assert chunk == Chunk.of(properties.at(chunk.index), chunk.piece)
        bodies.append(assembler.add("gate-7", chunk, 1.0).body)
    assert [got for got in bodies if got is not None] == [body]
    assert assembler.held == 0
    assert assembler.add("gate-7", chunks[0], 2.0) == UploadProgress()  # was whole before
    assembler.forget("gate-7", chunks[0].message)
    assert assembler.add("gate-7", chunks[0], 2.0) != UploadProgress()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=120))
def test_hostile_bytes_are_refused_by_name(noise: bytes) -> None:
    properties, _ = message(b"0123456789", 2)
    with suppress(BadChunk):
        assert len(Chunk.of(properties, noise).piece) == 5
    for kind in (ResumeRequest, Resume):
        with suppress(BadResume):
            assert kind.parse(noise).pack() == noise


def test_a_piece_of_another_length_is_refused() -> None:
    properties, (chunk, _) = message(b"0123456789", 2)
    for length in (0, 4, 6):
        with pytest.raises(BadChunk):
            Chunk.of(properties, bytes(length))
    assert Chunk.of(properties, b"01234") == chunk


def test_chunks_that_contradict_each_other() -> None:
    _, chunks = message(b"0123456789", 2)
    _, others = message(b"0123456789", 2, sequence=2)
    assert others[0].message != chunks[0].message, "each number is a message of its own"
    assembler = Assembler()
    assembler.add("gate-7", chunks[0], 0.0)
    with pytest.raises(ChunkMismatch):
        assembler.add("gate-7", replace(chunks[0], piece=b"xxxxx"), 0.0)
    assert assembler.add("gate-7", chunks[1], 0.0).body == b"0123456789"


def test_an_altered_piece_drops_the_message_and_it_can_start_anew() -> None:
    _, chunks = message(b"0123456789", 2)
    assembler = Assembler()
    assembler.add("gate-7", replace(chunks[0], piece=b"xxxxx"), 0.0)
    with pytest.raises(WrongHash):
        assembler.add("gate-7", chunks[1], 0.0)
    assert assembler.held == 0
    assembler.add("gate-7", chunks[1], 0.0)
    assert assembler.add("gate-7", chunks[0], 0.0).body == b"0123456789"


def test_quotas_and_age() -> None:
    quota = Quota(device_bytes=1000 + 3 * CHUNK_OVERHEAD, total_bytes=2000, age_s=10)
    assembler = Assembler(quota)
    with pytest.raises(DeviceQuota):
        assembler.add("a", message(bytes(1001), 2)[1][0], 0.0)
    first, second = message(bytes(1000), 2)[1], message(bytes(1000), 2, sequence=2)[1]
    assembler.add("a", first[0], 0.0)
    assembler.add("a", second[0], 1.0)
    assert assembler.counts == {"displaced": 1}
    assert assembler.held == 500 + 2 * CHUNK_OVERHEAD
    with pytest.raises(AssemblerFull):
        assembler.add("b", first[0], 11.0)
    assembler.add("b", first[0], 11.5)
    assert assembler.counts == {"displaced": 1, "expired": 1}


class Hostile(RuleBasedStateMachine):
    """Random chunks of a few devices; what is held is what is counted, and never above bounds."""

    quota = Quota(device_bytes=3000, total_bytes=5000, age_s=5, finished=3)

    def __init__(self) -> None:
        super().__init__()
        self.assembler = Assembler(self.quota)
        self.now = 0.0

    @rule(
        device=st.sampled_from("abc"),
        sequence=st.integers(1, 3),
        size=st.integers(1, 1200),
        count=st.integers(1, 4),
        index=st.integers(0, 3),
        altered=st.booleans(),
    )
    def chunk(
        self, *, device: str, sequence: int, size: int, count: int, index: int, altered: bool
    ) -> None:
        body = bytes([sequence]) * size
        count = min(count, size)
        chunk = message(body, count, sequence)[1][index % count]
        if altered:
            chunk = replace(chunk, piece=bytes(len(chunk.piece)))
        with suppress(UpdateRefused):
            got = self.assembler.add(device, chunk, self.now).body
            assert got is None or hashlib.sha256(got).digest() == chunk.digest

    @rule(seconds=st.floats(0, 6))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.assembler.expire(self.now)

    @rule()
    def restart(self) -> None:
        again = restarted(self.assembler)
        assert waiting(again) == waiting(self.assembler)
        assert again.held == self.assembler.held
        self.assembler = again

    @invariant()
    def bounded(self) -> None:
        pieces = [chunk.piece for _, chunk, _ in waiting(self.assembler)]
        overhead = CHUNK_OVERHEAD * (len(pieces) + len(self.assembler.uploads()))
        assert self.assembler.held == sum(map(len, pieces)) + overhead
        assert self.assembler.held <= self.quota.total_bytes
        assert len(self.assembler._finished) <= self.quota.finished


Hostile.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestHostile = Hostile.TestCase
