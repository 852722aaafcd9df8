"""What travels: a client's ``Update`` upwards, the ``GlobalModel`` downwards."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field

from gradsense.errors import InputError
from gradsense.federation.transforms import codecs
from gradsense.federation.transforms.transform import MAX_MESSAGE_BYTES
from gradsense.learning.learner import Tensors, layers_of

_MAX_HEADER_BYTES = 1 << 20
_MAGIC = b"GSU1"


@dataclass(frozen=True)
class Update:
    """What one client sends: named tensors, and what the coordinator must know about them.

    Attributes:
        client: the sender.
        base_version: the global model that the update starts from.
        sequence: 1, 2, 3, ... for each client; a number is never used twice.
        samples: |D_k|, the records that the client trains on, or of which its statistics are.
        reason: why it is sent now, in the trigger's words.
        delta: named tensors: what to add to the base, or sufficient statistics. Tensors that are
            not named did not move enough to travel.
        score: the client's validation loss in nats when it was sent; None where none was taken.
        codec: the name of the codec that packed it.
        packed: the delta as that codec's bytes, where the client has packed it already.
    """

    client: str
    base_version: int
    sequence: int
    samples: int
    reason: str
    delta: Tensors
    score: float | None = None
    codec: str = "none"
    packed: bytes = field(default=b"", repr=False)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that travel."""
        return layers_of(self.delta)


@dataclass(frozen=True)
class GlobalModel:
    """What the cloud broadcasts.

    Attributes:
        version: 0 for the first model, one more with each aggregation.
        tensors: every tensor that is trained.
        participants: who is asked to train on it; None asks everybody.
    """

    version: int
    tensors: Tensors
    participants: frozenset[str] | None = None

    def invites(self, client: str) -> bool:
        """Whether this client is asked to train on this model."""
        return self.participants is None or client in self.participants


# Bytes --------------------------------------------------------------------------------------


def encode(update: Update) -> bytes:
    """One message: magic, header length (4 bytes, little endian), JSON header, packed tensors."""
    header = {name: getattr(update, name) for name in _HEADER_TYPES}
    text = json.dumps(header, separators=(",", ":")).encode()
    packed = update.packed or codecs()[update.codec].pack(update.delta)
    return b"".join((_MAGIC, struct.pack("<I", len(text)), text, packed))


_HEADER_TYPES: dict[str, tuple[type, ...]] = {
    "client": (str,),
    "base_version": (int,),
    "sequence": (int,),
    "samples": (int,),
    "reason": (str,),
    "score": (int, float, type(None)),
    "codec": (str,),
}


def decode(message: bytes) -> Update:
    """The update in a message; whether it may be used is the coordinator's to say.

    Raises:
        InputError: too large, not a gradsense update, or a header that lacks a field.
    """
    hint = "have the client send its update again"
    if len(message) > MAX_MESSAGE_BYTES:
        raise InputError(f"a message of {len(message)} bytes", hint="send fewer tensors")
    if message[:4] != _MAGIC or len(message) < 8:
        raise InputError("not a gradsense update", hint=hint)
    (length,) = struct.unpack_from("<I", message, 4)
    if length > _MAX_HEADER_BYTES or 8 + length > len(message):
        raise InputError("the header's length is out of bounds", hint=hint)
    try:
        header = json.loads(message[8 : 8 + length])
    except (ValueError, RecursionError):
        raise InputError("the header is not JSON", hint=hint) from None
    if not isinstance(header, dict):
        raise InputError("the header is not a JSON object", hint=hint)
    for name, types in _HEADER_TYPES.items():
        value = header.get(name)
        if not isinstance(value, types) or isinstance(value, bool):
            raise InputError("missing or of the wrong type", field=name, hint=hint)
    if header["codec"] not in codecs():
        raise InputError(f"unknown codec '{header['codec']}'", field="codec", hint=hint)
    delta = codecs()[header["codec"]].unpack(message[8 + length :])
    return Update(**{name: header[name] for name in _HEADER_TYPES}, delta=delta)
