"""Bodies in pieces: any order, loss and repetition give the body; hostile chunks only refusals."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import replace
from random import Random

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
    assembler.add("b", first[0], 11.5)
    assert assembler.counts == {"displaced": 1, "expired": 1}


def test_who_has_most_waiting_makes_room() -> None:
    """By hand: room for three halves of 500 bytes with their overhead of two chunks each."""
    half = 500 + 2 * CHUNK_OVERHEAD
    assembler = Assembler(Quota(device_bytes=1 << 20, total_bytes=3 * half))
    long = [message(bytes(1000), 2, sequence)[1] for sequence in (1, 2, 3)]
    assembler.add("a", long[0][0], 0.0)
    assembler.add("a", long[1][0], 1.0)
    assembler.add("b", long[0][0], 2.0)
    with pytest.raises(AssemblerFull):
        assembler.add("a", long[2][0], 3.0)  # nobody has more
    assembler.add("c", long[0][0], 4.0)  # a loses its older one
    assert +assembler.counts == {"evicted": 1}
    assert {device for device, _ in assembler.uploads()} == {"a", "b", "c"}
    assert assembler.uploads() >= {("a", long[1][0].message)}
    # However full it is, a message of one chunk needs no room, nor has it to be waited for.
    for size in (1, 5000):
        (whole,) = message(bytes(size), 1, sequence=9 + size)[1]
        assert assembler.add("d", whole, 5.0).body == bytes(size)
    assert (assembler.held, +assembler.counts) == (3 * half, {"evicted": 1})
    with pytest.raises(WrongHash):
        assembler.add("d", replace(message(b"xy", 1, 20)[1][0], piece=b"xx"), 6.0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.integers(1, 6), st.integers(1, 4000), st.integers(2, 8)),
        max_size=60,
    ),
    st.integers(2, 4000),
    st.integers(2, 8),
    st.randoms(use_true_random=False),
)
def test_nine_devices_cannot_stop_an_upload_of_an_allowed_size(
    hostile: list[tuple[int, int, int, int]], size: int, count: int, rng: Random
) -> None:
    """Whatever nine devices leave half done, before and between the chunks of a tenth's upload."""
    most = 4000 + 9 * CHUNK_OVERHEAD
    assembler = Assembler(Quota(device_bytes=2 * most, total_bytes=10 * most))
    full = [(device, s, 4000, 8) for device in range(9) for s in (7, 8)]
    body = rng.randbytes(size)
    honest = message(body, min(count, size))[1]
    got = None
    for chunk in honest:
        for device, sequence, length, pieces in [*full, *hostile]:
            chunks = message(bytes(length), min(pieces, length), sequence)[1]
            for one in chunks[: rng.randint(1, max(1, len(chunks) - 1))]:
                with suppress(UpdateRefused):
                    assembler.add(f"hostile-{device}", one, 0.0)
        assert got is None
        got = assembler.add("honest", chunk, 0.0).body
    assert got == body


def test_a_run_gives_each_device_room_for_two_bodies() -> None:
    quota = Quota.of(1 << 20)
    assembler = Assembler(quota)
    for sequence in (1, 2):
        assembler.add("a", message(bytes(1 << 20), 4, sequence)[1][0], 0.0)
    assert not assembler.counts
    assert (quota.device_bytes, quota.total_bytes) == (2 * ((1 << 20) + 5 * 256), 128 << 20)
    assert Quota.of(100 << 20).total_bytes == Quota.of(100 << 20).device_bytes > 200 << 20


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
        assert sum(self.assembler._held_by.values()) == self.assembler.held
        assert self.assembler._held_by.keys() == {name for name, _ in self.assembler.uploads()}
        assert len(self.assembler._finished) <= self.quota.finished


Hostile.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestHostile = Hostile.TestCase
