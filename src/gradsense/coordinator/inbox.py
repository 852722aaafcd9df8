"""From a message that came to an update that may be pooled: verified, assembled, opened.

The order is that of docs/protocol.md, so that nothing is parsed before it is verified. A body's
size is checked before its first chunk is kept, and its hash by the assembler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gradsense.coordinator.records import JournalEntry, Piece, Upload
from gradsense.coordinator.trial import SetAside, Trials
from gradsense.errors import UnknownTensor, WrongDtype, WrongShape
from gradsense.federation.transforms.transform import Codec
from gradsense.federation.update import ShapeBounds, Update
from gradsense.transport import messages
from gradsense.transport.chunks import Assembler, Chunk, DeviceQuota, Quota, Resume, ResumeRequest
from gradsense.transport.identity import Identity
from gradsense.transport.messages import CannotOpen, Message, Read
from gradsense.transport.payloads import (
    BadBody,
    OutOfMemory,
    WrongCodec,
    open_update,
    update_limit,
)
from gradsense.transport.protocol import (
    UP,
    BadTopic,
    Properties,
    TooLarge,
    Topic,
    WrongHash,
)

#: (device, seconds since 1970) to its public signing key, 32 bytes; None: refuse it.
KeyOf = Callable[[str, float], bytes | None]

#: What sending the same message again cannot change. Other refusals leave the message open: a body
#: of the wrong hash too, since chunks are not signed one by one and anybody on the way may have
#: spoilt one.
FINAL = (
    TooLarge,
    DeviceQuota,
    CannotOpen,
    BadBody,
    WrongCodec,
    UnknownTensor,
    WrongShape,
    WrongDtype,
    OutOfMemory,
    SetAside,
)


@dataclass(frozen=True)
class Setting:
    """Settings of a run that do not come from its journal; see ``run.Run``."""

    key_of: KeyOf
    identity: Identity
    trials: Trials
    quota: Quota | None  # None: what the run's bodies need
    timer: Callable[[], float]


class Inbox:
    """Verifies, assembles and opens what devices send to one run.

    Args:
        run: whose topics these are.
        codec, bounds: of its updates.
        pieces: of uploads that were not whole when the journal was closed, grouped by upload.

    Attributes:
        limit: bytes that a body may have.
    """

    def __init__(
        self, run: str, setting: Setting, codec: Codec, bounds: ShapeBounds, pieces: Iterable[Piece]
    ) -> None:
        self.run, self._setting, self._codec, self._bounds = run, setting, codec, bounds
        self.limit = update_limit(codec, bounds)
        self._assembler = Assembler(setting.quota or Quota.of(self.limit))
        for piece in pieces:
            self._assembler.restore(piece.device, piece.chunk, piece.at)
        self._kept: set[Upload] = self._assembler.uploads()  # that have pieces in the journal
        # Since the last flush: what came, and what of the journal's is needed no longer.
        self._fresh: dict[Upload, list[Piece]] = {}
        self._gone: set[Upload] = set()

    @property
    def held(self) -> int:
        """Bytes that wait for missing chunks, with their overhead."""
        return self._assembler.held

    # Steps ----------------------------------------------------------------------------------

    def read(self, message: Message, wall: float) -> Read:
        """Verify who sent a message.

        Raises:
            UpdateRefused: one of its named kinds.
        """

        def key(topic: Topic) -> Ed25519PublicKey | None:
            if topic.run != self.run or topic.kind not in UP:
                raise BadTopic(f"topic {topic} is not one that devices of '{self.run}' publish")
            raw = self._setting.key_of(topic.device, wall)
            return None if raw is None else _public_key(raw)

        return messages.read(message, key)

    def assemble(self, device: str, chunk: Chunk, now: float) -> bytes | None:
        """Keep a chunk; the whole body if this was the last that was missing.

        Raises:
            UpdateRefused: of ``FINAL``, or for now.
        """
        upload = device, chunk.message
        before = self._assembler.counts.total()
        try:
            progress = self._assembler.add(device, chunk, now)
        except WrongHash:
            self._drop(upload)
            raise
        except MemoryError:
            raise OutOfMemory(f"{chunk.total} bytes") from None
        finally:
            if self._assembler.counts.total() != before:
                self._drop_given_up()
        if progress.missing:
            self._fresh.setdefault(upload, []).append(Piece(device, chunk, now))
        else:
            self._drop(upload)
        return progress.body

    def open(self, body: bytes, properties: Properties) -> tuple[Update, bytes]:
        """The update in a whole body, and the body in the clear.

        Raises:
            UpdateRefused: of ``FINAL``.
        """
        try:
            clear = messages.unsealed(body, properties, self._setting.identity.own_seal_key)
        except MemoryError:
            raise OutOfMemory(f"{len(body)} bytes") from None
        return open_update(clear, properties.header, self._codec, self._bounds), clear

    def resume(self, device: str, body: bytes) -> Resume:
        """The answer to a resume request: which chunks are missing.

        Raises:
            BadResume: it is no such request.
        """
        return self._assembler.resume(device, ResumeRequest.parse(body))

    # Room -----------------------------------------------------------------------------------

    def forget(self, device: str, message: bytes) -> None:
        """Drop what came of a message that is decided."""
        self._assembler.forget(device, message)
        self._drop((device, message))

    def expire(self, now: float) -> None:
        """Give up uploads that got nothing for too long."""
        if self._assembler.expire(now):
            self._drop_given_up()

    def _drop(self, upload: Upload) -> None:
        self._fresh.pop(upload, None)
        if upload in self._kept:
            self._kept.remove(upload)
            self._gone.add(upload)

    def _drop_given_up(self) -> None:
        for upload in (self._kept | self._fresh.keys()) - self._assembler.uploads():
            self._drop(upload)

    def flush(self, batch: JournalEntry) -> dict[str, int]:
        """Put into ``batch`` what changed since the last call.

        Returns:
            uploads given up since then, by reason.
        """
        for pieces in self._fresh.values():
            batch.pieces += pieces
        batch.gone |= self._gone
        self._kept |= self._fresh.keys()
        self._fresh, self._gone = {}, set()
        given_up = {reason: n for reason, n in self._assembler.counts.items() if n}
        self._assembler.counts.clear()
        return given_up


@lru_cache(maxsize=16_384)
def _public_key(raw: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(raw)
