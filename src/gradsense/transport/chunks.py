"""Large bodies in pieces: cut, paced, put together in any order, and continued after a break.

A body of ``total`` bytes in ``count`` chunks is cut at ``i * total // count``: no chunk's size
needs to be said, and none may differ. A message's id follows from its verified properties, so a
restarted sender arrives at the same id and goes on where it was. ``Rate`` and ``Assembler``
hold no clock: time is passed in.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from gradsense.errors import UpdateRefused
from gradsense.transport.protocol import MAX_CHUNKS, Properties, WrongHash

#: A body above this travels in several chunks.
CHUNK_BYTES = 256 << 10
#: Charged for each chunk beside its bytes, so that many tiny ones cannot take unseen memory.
CHUNK_OVERHEAD = 256

_RESUME = struct.Struct("<16sI")


class BadChunk(UpdateRefused):
    """A chunk has another length than its place in the message needs."""


class ChunkMismatch(UpdateRefused):
    """A chunk contradicts an earlier one of its message."""


class BadResume(UpdateRefused):
    """A resume request or its answer cannot be read."""


class DeviceQuota(UpdateRefused):
    """A single message would take more than one device may have waiting."""


class AssemblerFull(UpdateRefused):
    """All devices together have too much waiting; the device tries again later."""


# Cutting ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """One piece of a body and where it belongs.

    Attributes:
        message: its ``Properties.message_id``.
        index, count: which piece of how many.
        total: bytes of the whole body.
        digest: SHA-256 of the whole body.
        piece: bytes ``index * total // count`` to ``(index + 1) * total // count`` of it.
    """

    message: bytes
    index: int
    count: int
    total: int
    digest: bytes
    piece: bytes = field(repr=False)

    @classmethod
    def of(cls, properties: Properties, piece: bytes) -> Chunk:
        """The chunk that came with these properties.

        Raises:
            BadChunk: the piece has another length than its place needs.
        """
        index, count = properties.chunk_index, properties.chunk_count
        total = properties.body_size
        start, end = _bounds(index, count, total)
        if len(piece) != end - start:
            raise BadChunk(f"chunk {index} has {len(piece)} bytes, not {end - start}")
        digest = bytes.fromhex(properties.body_sha256)
        return cls(properties.message_id, index, count, total, digest, piece)


def _bounds(index: int, count: int, total: int) -> tuple[int, int]:
    return index * total // count, (index + 1) * total // count


def chunk_count(size: int, limit: int = CHUNK_BYTES) -> int:
    """Chunks that a body of ``size`` bytes needs, none with more than ``limit`` bytes of it.

    Raises:
        ValueError: more than ``MAX_CHUNKS``; the limit is too small for this body.
    """
    count = max(1, math.ceil(size / limit))
    if count > MAX_CHUNKS:
        raise ValueError(f"{count} chunks; {MAX_CHUNKS} are allowed")
    return count


def split(body: bytes, properties: Properties, indices: Iterable[int] | None = None) -> list[Chunk]:
    """The chunks of a body, as many as its properties say.

    Args:
        indices: only these, as a ``Resume`` lists them; None: all.
    """
    count, total = properties.chunk_count, len(body)
    return [
        Chunk.of(properties.at(index), body[slice(*_bounds(index, count, total))])
        for index in (range(count) if indices is None else indices)
    ]


@dataclass(frozen=True)
class ResumeRequest:
    """A sender that was cut off asks what is still missing of a message."""

    message: bytes
    count: int

    def pack(self) -> bytes:
        """20 bytes: message id, count."""
        return _RESUME.pack(self.message, self.count)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Raises: BadResume: of the wrong length, or its count is out of bounds."""
        if len(body) < _RESUME.size:
            raise BadResume(f"{len(body)} bytes")
        message, count = _RESUME.unpack_from(body)
        if not 1 <= count <= MAX_CHUNKS:
            raise BadResume(f"{count} chunks")
        return cls(message, count, *cls._rest(body[_RESUME.size :], count))

    @staticmethod
    def _rest(rest: bytes, count: int) -> tuple[Any, ...]:
        if rest:
            raise BadResume(f"{len(rest)} bytes too many")
        return ()


@dataclass(frozen=True)
class Resume(ResumeRequest):
    """The answer: which chunks are missing. None missing is not yet an acknowledgement."""

    missing: tuple[int, ...]

    def pack(self) -> bytes:
        """Message id, count, then a bitmap: bit i % 8 of byte i // 8 is chunk i.

        Bit 0 is the lowest; a set bit is a missing chunk.
        """
        bits = bytearray(-(-self.count // 8))
        for index in self.missing:
            bits[index // 8] |= 1 << index % 8
        return super().pack() + bytes(bits)

    @staticmethod
    def _rest(rest: bytes, count: int) -> tuple[Any, ...]:
        if len(rest) != -(-count // 8):
            raise BadResume(f"a bitmap of {len(rest)} bytes for {count} chunks")
        missing = tuple(i for i in range(8 * len(rest)) if rest[i // 8] >> i % 8 & 1)
        if missing and missing[-1] >= count:
            raise BadResume("bits beyond the last chunk")
        return (missing,)


# Putting together ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Quota:
    """What may wait for its missing chunks.

    Attributes:
        device_bytes: of one device, counted as if all chunks of its messages were there.
        total_bytes: of all devices, as far as chunks are there.
        age_s: seconds without a new chunk after which a message is given up.
        finished: whole messages that are remembered, so that a late duplicate opens none anew.
    """

    device_bytes: int = 128 << 20
    total_bytes: int = 128 << 20
    age_s: float = 3600.0
    finished: int = 16_384

    @classmethod
    def of(cls, body: int) -> Self:
        """What a run needs whose bodies have up to so many bytes: two of them for each device.

        A device is certain to have ``total_bytes / n`` while n devices have uploads waiting.
        """
        device = 2 * (body + (chunk_count(body) + 1) * CHUNK_OVERHEAD)
        return cls(device_bytes=device, total_bytes=max(cls.total_bytes, device))


@dataclass
class _Transfer:
    count: int
    total: int
    digest: bytes
    touched_s: float
    pieces: dict[int, bytes] = field(default_factory=dict)
    held: int = 0  # bytes that are there, with their overhead

    @property
    def claimed(self) -> int:
        return self.total + (self.count + 1) * CHUNK_OVERHEAD


@dataclass(frozen=True)
class UploadProgress:
    """What a chunk led to.

    Attributes:
        body: the whole body, with the chunk that completes it; else None.
        missing: chunks still to come; none without a body: the message was whole before.
    """

    body: bytes | None = field(default=None, repr=False)
    missing: int = 0


class Assembler:
    """Puts chunks together, of many devices, in any order, also twice.

    Only chunks whose signed properties were verified may take memory: see ``messages.read``. A
    message of one chunk takes none. Where all is full, the device that has most waiting loses its
    oldest message, so that however many devices fill it, another is certain of its equal share.

    Attributes:
        counts: messages given up: ``expired`` by age, ``displaced`` by newer ones of the same
            device, ``evicted`` to make room for a device that has less.
    """

    def __init__(self, quota: Quota | None = None) -> None:
        self.quota = quota or Quota()
        self.counts: Counter[str] = Counter()
        self.held = 0  # bytes of all chunks, with their overhead; never above total_bytes
        self._transfers: dict[str, dict[bytes, _Transfer]] = {}
        self._held_by: Counter[str] = Counter()  # the same, by device
        self._finished: OrderedDict[tuple[str, bytes], int] = OrderedDict()  # to its count

    def _transfer(self, device: str, message: bytes) -> _Transfer | None:
        return self._transfers.get(device, {}).get(message)

    def add(self, device: str, chunk: Chunk, now: float) -> UploadProgress:
        """Take a chunk.

        Raises:
            ChunkMismatch: the same chunk came before with other bytes; the earlier one stays.
            DeviceQuota: its message alone is more than a device may have.
            AssemblerFull: no room, and no other device has more waiting than this one.
            WrongHash: it completes a body that is not the one promised; all its chunks are
                dropped, and the sender starts it anew.
        """
        if (device, chunk.message) in self._finished:
            return UploadProgress()
        if chunk.count == 1:
            return UploadProgress(body=self._verified(device, chunk, chunk.piece))
        transfer = self._transfer(device, chunk.message)
        if transfer is None:
            transfer = _Transfer(chunk.count, chunk.total, chunk.digest, now)
        if chunk.index in transfer.pieces:
            if transfer.pieces[chunk.index] != chunk.piece:
                raise ChunkMismatch(f"chunk {chunk.index} came before with other bytes")
            return UploadProgress(missing=transfer.count - len(transfer.pieces))
        self._make_room(device, transfer, len(chunk.piece), now)
        self._keep(device, chunk, transfer, now)
        if len(transfer.pieces) < transfer.count:
            return UploadProgress(missing=transfer.count - len(transfer.pieces))
        body = b"".join(transfer.pieces[index] for index in range(transfer.count))
        self._drop(device, chunk.message)
        return UploadProgress(body=self._verified(device, chunk, body))

    def _make_room(self, device: str, transfer: _Transfer, size: int, now: float) -> None:
        if transfer.claimed > self.quota.device_bytes:
            raise DeviceQuota(f"'{device}': a message of {transfer.total} bytes")
        if not transfer.pieces:
            own = self._transfers.get(device, {})
            claimed = transfer.claimed + sum(other.claimed for other in own.values())
            while own and claimed > self.quota.device_bytes:
                oldest = min(own, key=lambda message: own[message].touched_s)
                claimed -= own[oldest].claimed
                self._drop(device, oldest)
                self.counts["displaced"] += 1
        needed = size + 2 * CHUNK_OVERHEAD  # the second for the message, which may be new
        if self.held + needed > self.quota.total_bytes:
            self.expire(now)
        while self.held + needed > self.quota.total_bytes:
            most = max(self._held_by, key=self._held_by.__getitem__, default=device)
            if self._held_by[most] <= self._held_by[device]:
                raise AssemblerFull(f"{self.held} bytes wait for missing chunks")
            own = self._transfers[most]
            self._drop(most, min(own, key=lambda message: own[message].touched_s))
            self.counts["evicted"] += 1

    def _keep(self, device: str, chunk: Chunk, transfer: _Transfer, now: float) -> None:
        # ``_make_room`` may have expired this very message; then it goes on with this chunk.
        if self._transfer(device, chunk.message) is not transfer:
            transfer.pieces, transfer.held = {}, CHUNK_OVERHEAD
            self.held += CHUNK_OVERHEAD
            self._held_by[device] += CHUNK_OVERHEAD
            self._transfers.setdefault(device, {})[chunk.message] = transfer
        charge = len(chunk.piece) + CHUNK_OVERHEAD
        transfer.pieces[chunk.index] = chunk.piece
        transfer.held += charge
        transfer.touched_s = now
        self.held += charge
        self._held_by[device] += charge

    def _verified(self, device: str, chunk: Chunk, body: bytes) -> bytes:
        if hashlib.sha256(body).digest() != chunk.digest:
            raise WrongHash(f"'{device}': the chunks do not give the body that was promised")
        self._finished[device, chunk.message] = chunk.count
        while len(self._finished) > self.quota.finished:
            self._finished.popitem(last=False)
        return body

    def _drop(self, device: str, message: bytes) -> None:
        held = self._transfers[device].pop(message).held
        self.held -= held
        self._held_by[device] -= held
        if not self._transfers[device]:
            del self._transfers[device], self._held_by[device]

    def expire(self, now: float) -> int:
        """Give up what has waited too long; how many messages that were."""
        old = [
            (device, message)
            for device, transfers in self._transfers.items()
            for message, transfer in transfers.items()
            if now - transfer.touched_s > self.quota.age_s
        ]
        for device, message in old:
            self._drop(device, message)
        self.counts["expired"] += len(old)
        return len(old)

    def forget(self, device: str, message: bytes) -> None:
        """Take a message's chunks anew, whole or not: for example, its body could not be stored."""
        self._finished.pop((device, message), None)
        if self._transfer(device, message) is not None:
            self._drop(device, message)

    def resume(self, device: str, request: ResumeRequest) -> Resume:
        """What is missing of a message; all of it, where nothing is known."""
        held: Collection[int] = ()
        transfer = self._transfer(device, request.message)
        if self._finished.get((device, request.message)) == request.count:
            held = range(request.count)
        elif transfer is not None and transfer.count == request.count:
            held = transfer.pieces
        missing = tuple(index for index in range(request.count) if index not in held)
        return Resume(request.message, request.count, missing)

    def uploads(self) -> set[tuple[str, bytes]]:
        """Device and message of all that waits for missing chunks."""
        return {(device, message) for device, own in self._transfers.items() for message in own}

    def restore(self, device: str, chunk: Chunk, at: float) -> None:
        """Take again a chunk that an earlier assembler held, last touched at ``at``."""
        transfer = self._transfer(device, chunk.message)
        if transfer is None:
            transfer = _Transfer(chunk.count, chunk.total, chunk.digest, at)
        self._keep(device, chunk, transfer, max(at, transfer.touched_s))
