"""What a body holds: an update, a global model, an acknowledgement, a device's presence.

Everything here comes from outside and was verified before, but a device that was taken over signs
well. So each decoder takes a limit, sizes are checked before anything is allocated, and each
refusal has a name. No body repeats what topic and properties have.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from gradsense.errors import InputError, UpdateRefused
from gradsense.federation.transforms import codecs
from gradsense.federation.transforms.transform import (
    Codec,
    OverLimit,
    compress,
    compressed_most,
    decompress,
)
from gradsense.federation.update import GlobalModel, ShapeBounds, Update
from gradsense.learning.learner import Tensors
from gradsense.transport.messages import SEAL_OVERHEAD
from gradsense.transport.protocol import MessageHeader, TooLarge, WrongHash

ONLINE, OFFLINE = b"online", b"offline"

_MAX_UPDATE_HEADER = 4096
_MAX_MODEL_HEADER = 8 << 20
#: Whole numbers up to here are exact in float64, too.
_EXACT = 1 << 53
_REFUSAL = re.compile(rb"[a-z0-9-]{0,64}")


class BadBody(UpdateRefused):
    """The body is of the right hash, but cannot be read."""


class WrongCodec(UpdateRefused):
    """The update travels in another codec than its run has."""


class OutOfMemory(UpdateRefused):
    """There is no memory to open the body."""


# Small ones ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ack:
    """What became of an update, sent only once that is durable.

    Attributes:
        sequence: the update's.
        refusal: the name under which it was refused; empty if it was pooled.
    """

    sequence: int
    refusal: str = ""

    def pack(self) -> bytes:
        """The refusal's name; the sequence is in the properties."""
        return self.refusal.encode("ascii")

    @classmethod
    def open(cls, body: bytes, header: MessageHeader) -> Ack:
        """The acknowledgement in a verified body.

        Raises:
            BadBody: it is none.
        """
        if _REFUSAL.fullmatch(body) is None:
            raise BadBody("the refusal has no name")
        return cls(header.sequence, body.decode("ascii"))


def open_presence(body: bytes) -> bool:
    """Whether a device reports that it is there; its last will reports that it is not.

    Raises:
        BadBody: neither.
    """
    if body not in (ONLINE, OFFLINE):
        raise BadBody("neither online nor offline")
    return body == ONLINE


# Updates ------------------------------------------------------------------------------------


class _Header(BaseModel):
    """What an update's body says beside its tensors, within what any client sends."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    samples: int = Field(gt=-_EXACT, lt=_EXACT)
    reason: str = Field(max_length=64)
    score: float | None = Field(gt=-_EXACT, lt=_EXACT)
    codec: str


def pack_update(update: Update) -> bytes:
    """An update's body: length of the header (u32, little endian), header (JSON), one zstd frame.

    The frame is what the codec gives. Only a codec that does not compress is compressed here.
    """
    header = {name: getattr(update, name) for name in _Header.model_fields}
    text = json.dumps(header, separators=(",", ":")).encode()
    packed = update.packed or codecs()[update.codec].pack(update.delta)
    frame = packed if codecs()[update.codec].compressed else compress(packed)
    return struct.pack("<I", len(text)) + text + frame


def update_limit(codec: Codec, bounds: ShapeBounds) -> int:
    """The bytes that the body of an update may have as it travels, sealed or not."""
    return 4 + _MAX_UPDATE_HEADER + compressed_most(codec.most_bytes(bounds)) + SEAL_OVERHEAD


def open_update(body: bytes, header: MessageHeader, codec: Codec, bounds: ShapeBounds) -> Update:
    """The update in a verified body (that was unsealed, if sealed).

    Args:
        codec: the run's; no other is taken.
        bounds: the tensors that it may have.

    Raises:
        WrongCodec: it travels in another codec.
        TooLarge: it would take more than such tensors can.
        UnknownTensor, WrongShape, WrongDtype: it has other tensors.
        OutOfMemory: there is no memory for it.
        BadBody: it is no update, or holds numbers that no client sends.
    """
    try:
        return _opened(body, header, codec, bounds)
    except MemoryError:
        raise OutOfMemory(f"{len(body)} bytes") from None


def _opened(body: bytes, header: MessageHeader, codec: Codec, bounds: ShapeBounds) -> Update:
    try:
        (length,) = struct.unpack_from("<I", body)
        if length > _MAX_UPDATE_HEADER:
            raise BadBody(f"an update header of {length} bytes")
        fields = _Header.model_validate_json(body[4 : 4 + length]).model_dump()
    except (struct.error, ValidationError) as error:
        raise BadBody(f"no update header: {error}") from None
    if fields["codec"] != codec.name:
        raise WrongCodec(f"codec '{fields['codec'][:80]}', where the run has '{codec.name}'")
    frame = body[4 + length :]
    packed = frame if codec.compressed else expand(frame, codec.most_bytes(bounds))
    try:
        delta = codec.unpack(packed, bounds)
    except OverLimit as error:
        raise TooLarge(str(error)) from None
    # Last line before hostile bytes meet a codec: whatever it stumbles over is a refusal.
    except (InputError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise BadBody(f"no update: {error}") from None
    return Update(header.device, header.base_version, header.sequence, delta=delta, **fields)


# Models -------------------------------------------------------------------------------------


def pack_model(model: GlobalModel) -> bytes:
    """A global model's body: a safetensors blob with metadata inside one zstd frame."""
    names = None if model.participants is None else sorted(model.participants)
    # One entry: safetensors writes several in an order that changes between processes.
    text = json.dumps({"participants": names}, separators=(",", ":"))
    tensors = {name: np.asarray(t, dtype="<f4", order="C") for name, t in model.tensors.items()}
    return compress(save_tensors(tensors, metadata={"gradsense": text}))


def open_model(body: bytes, header: MessageHeader, limit: int) -> GlobalModel:
    """The global model in a verified body (that was unsealed, if sealed).

    Args:
        limit: bytes that it may take unpacked.

    Raises:
        TooLarge: it would take more.
        BadBody: it is no model.
        WrongHash: its tensors are not those that the properties name.
    """
    blob = expand(body, limit)
    names = _participants(blob)
    try:
        tensors = load_tensors(blob)
    except (SafetensorError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise BadBody(f"no safetensors: {error}") from None
    if any(tensor.dtype != np.float32 for tensor in tensors.values()):
        raise BadBody("a model's tensors are float32")
    if header.base_hash != model_hash(tensors):
        raise WrongHash("the model's tensors are not those that its hash names")
    return GlobalModel(header.base_version, tensors, names)


def model_hash(tensors: Tensors) -> str:
    """SHA-256 of names, shapes and values, as hex: equal exactly if the tensors are, bit for bit.

    Over the tensors in the order of their names in UTF-8: u32 length and name, u32 dimensions,
    u64 each extent, then the values as float32; everything little endian.
    """
    digest = hashlib.sha256(b"gradsense-tensors-v1")
    for name, tensor in sorted((name.encode(), tensor) for name, tensor in tensors.items()):
        digest.update(struct.pack("<I", len(name)) + name)
        digest.update(struct.pack(f"<I{tensor.ndim}Q", tensor.ndim, *tensor.shape))
        digest.update(np.asarray(tensor, dtype="<f4", order="C").tobytes())
    return digest.hexdigest()


def expand(frame: bytes, limit: int) -> bytes:
    """The content of one zstd frame.

    Raises:
        TooLarge: it declares more than the limit.
        BadBody: no frame, no declared size, another size than declared, or bytes after it.
    """
    try:
        return decompress(frame, limit)
    except OverLimit as error:
        raise TooLarge(str(error)) from None
    except InputError as error:
        raise BadBody(str(error)) from None


class _Metadata(BaseModel):
    """What a model's body says beside its tensors."""

    participants: frozenset[str] | None


def _participants(blob: bytes) -> frozenset[str] | None:
    refusal = BadBody("the model's metadata cannot be read")
    try:
        (length,) = struct.unpack_from("<Q", blob)
        if length > min(_MAX_MODEL_HEADER, len(blob) - 8):
            raise refusal
        metadata = json.loads(blob[8 : 8 + length])["__metadata__"]["gradsense"]
        return _Metadata.model_validate_json(metadata, strict=True).participants
    except (struct.error, ValueError, RecursionError, TypeError, LookupError):
        raise refusal from None
