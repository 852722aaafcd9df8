"""Large bodies in pieces, and what is needed to go on after a break.

A body of ``total`` bytes in ``count`` chunks is cut at ``i * total // count``: no chunk's size
needs to be said, and none may differ. A message's id follows from its verified properties, so a
restarted sender arrives at the same id and goes on where it was.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from gradsense.errors import UpdateRefused
from gradsense.transport.protocol import Properties

#: A body above this travels in several chunks.
CHUNK_BYTES = 256 << 10
MAX_CHUNKS = 1 << 16

_HEADER = struct.Struct("<4s16sIIQ32s")
_RESUME = struct.Struct("<4s16sI")
_CHUNK_MAGIC, _RESUME_MAGIC, _ASK_MAGIC = b"GSC1", b"GSR1", b"GSQ1"
HEADER_BYTES = _HEADER.size


class BadChunk(UpdateRefused):
    """A chunk's header is damaged, out of bounds, or its piece has the wrong length."""

    reason = "bad-chunk"


class ChunkMismatch(UpdateRefused):
    """A chunk belongs to another message than its properties, or contradicts an earlier one."""

    reason = "chunk-mismatch"


class BadResume(UpdateRefused):
    """A question what is missing, or its answer, cannot be read."""

    reason = "bad-resume"


def message_id(properties: Properties) -> bytes:
    """16 bytes that name a message: the same for all its chunks, and after a restart."""
    header = properties.header
    said = (header.run, header.device, header.kind, header.sequence, properties.body_sha256)
    text = "\n".join(("gradsense-message-v1", *map(str, said), str(properties.chunk_count)))
    return hashlib.sha256(text.encode()).digest()[:16]


@dataclass(frozen=True)
class Chunk:
    """One piece of a body and where it belongs.

    Attributes:
        message: the 16 bytes of ``message_id``.
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

    def pack(self) -> bytes:
        """The payload of one publish: a header of 68 bytes, then the piece."""
        header = (self.message, self.index, self.count, self.total, self.digest)
        return _HEADER.pack(_CHUNK_MAGIC, *header) + self.piece

    @classmethod
    def parse(cls, payload: bytes) -> Chunk:
        """The chunk in a payload that came.

        Raises:
            BadChunk: truncated, no chunk, or numbers that do not fit each other.
        """
        if len(payload) < HEADER_BYTES:
            raise BadChunk(f"{len(payload)} bytes hold no chunk")
        magic, message, index, count, total, digest = _HEADER.unpack_from(payload)
        if magic != _CHUNK_MAGIC:
            raise BadChunk("not a gradsense chunk")
        chunk = cls(message, index, count, total, digest, payload[HEADER_BYTES:])
        chunk.check()
        return chunk

    def check(self) -> None:
        """Whether the numbers fit each other.

        Raises:
            BadChunk: they do not.
        """
        if not 0 <= self.index < self.count <= min(self.total, MAX_CHUNKS):
            raise BadChunk(f"chunk {self.index} of {self.count} of {self.total} bytes")
        start, end = _bounds(self.index, self.count, self.total)
        if len(self.piece) != end - start:
            raise BadChunk(f"chunk {self.index} has {len(self.piece)} bytes, not {end - start}")


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
    message, digest = message_id(properties), bytes.fromhex(properties.body_sha256)
    count, total = properties.chunk_count, len(body)
    chosen = range(count) if indices is None else indices
    return [
        Chunk(message, i, count, total, digest, body[slice(*_bounds(i, count, total))])
        for i in chosen
    ]


def check_chunk(chunk: Chunk, properties: Properties) -> None:
    """Whether a chunk belongs to the message whose signed properties came with it.

    Raises:
        ChunkMismatch: it is of another message, or of another place in it.
    """
    promised = (
        message_id(properties),
        properties.chunk_index,
        properties.chunk_count,
        properties.body_size,
        bytes.fromhex(properties.body_sha256),
    )
    if promised != (chunk.message, chunk.index, chunk.count, chunk.total, chunk.digest):
        raise ChunkMismatch("the chunk is of another message than its properties")


@dataclass(frozen=True)
class ResumeRequest:
    """A sender that was cut off asks what is still missing of a message."""

    message: bytes
    count: int

    def pack(self) -> bytes:
        """24 bytes: magic, message id, count."""
        return _RESUME.pack(_ASK_MAGIC, self.message, self.count)

    @classmethod
    def parse(cls, body: bytes) -> ResumeRequest:
        """Raises: BadResume: not a question, or its count is out of bounds."""
        message, count, rest = _resume_header(body, _ASK_MAGIC)
        if rest:
            raise BadResume(f"{len(rest)} bytes too many")
        return cls(message, count)


@dataclass(frozen=True)
class Resume:
    """The answer: which chunks are missing. None missing is not yet an acknowledgement."""

    message: bytes
    count: int
    missing: tuple[int, ...]

    def pack(self) -> bytes:
        """Magic, message id, count, then a bitmap: bit i % 8 of byte i // 8 is chunk i.

        Bit 0 is the lowest; a set bit is a missing chunk.
        """
        bits = bytearray(-(-self.count // 8))
        for index in self.missing:
            bits[index // 8] |= 1 << index % 8
        return _RESUME.pack(_RESUME_MAGIC, self.message, self.count) + bytes(bits)

    @classmethod
    def parse(cls, body: bytes) -> Resume:
        """Raises: BadResume: not an answer, of the wrong length, or bits beyond the last chunk."""
        message, count, bits = _resume_header(body, _RESUME_MAGIC)
        if len(bits) != -(-count // 8):
            raise BadResume(f"a bitmap of {len(bits)} bytes for {count} chunks")
        missing = tuple(i for i in range(8 * len(bits)) if bits[i // 8] >> i % 8 & 1)
        if missing and missing[-1] >= count:
            raise BadResume("bits beyond the last chunk")
        return cls(message, count, missing)


def _resume_header(body: bytes, magic: bytes) -> tuple[bytes, int, bytes]:
    if len(body) < _RESUME.size or body[:4] != magic:
        raise BadResume("neither a question nor an answer about chunks")
    _, message, count = _RESUME.unpack_from(body)
    if not 1 <= count <= MAX_CHUNKS:
        raise BadResume(f"{count} chunks")
    return message, count, body[_RESUME.size :]
