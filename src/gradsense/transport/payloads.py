"""What a body holds: an update, a global model, an acknowledgement, a presence.

Everything here comes from outside and was verified before (``wire.check_body``), but a device that
was taken over signs well. So sizes are bounded before anything is allocated, and each refusal has
a name.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from gradsense.errors import InputError, UpdateRefused
from gradsense.federation.update import GlobalModel, Update, decode, encode
from gradsense.learning.learner import Tensors
from gradsense.transport.protocol import Properties, SizeLimits, TooLarge, WrongHash

ONLINE, OFFLINE = b"online", b"offline"

_MAX_MODEL_HEADER = 8 << 20
_MAX_REASON = 64
_ACK = struct.Struct("<4sQB")
_ACK_MAGIC = b"GSA1"
_ZSTD_LEVEL = 3


class BadBody(UpdateRefused):
    """The body is of the right hash, but cannot be read."""

    reason = "bad-body"


class Mismatch(UpdateRefused):
    """What the body says of itself differs from its properties."""

    reason = "envelope-mismatch"


# Small ones ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ack:
    """What became of an update, said only once that is durable.

    Attributes:
        sequence: the update's.
        refusal: the name under which it was refused; empty if it was pooled.
    """

    sequence: int
    refusal: str = ""

    def pack(self) -> bytes:
        """Magic, sequence (u64), length of the name (u8), name; little endian."""
        name = self.refusal.encode("ascii")
        return _ACK.pack(_ACK_MAGIC, self.sequence, len(name)) + name

    @classmethod
    def open(cls, body: bytes, properties: Properties) -> Ack:
        """The acknowledgement in a body that ``wire.check_body`` let pass.

        Raises:
            BadBody: it is none.
            Mismatch: it speaks of another sequence than its properties.
        """
        if len(body) < _ACK.size:
            raise BadBody("no acknowledgement")
        magic, sequence, length = _ACK.unpack_from(body)
        name = body[_ACK.size :]
        if magic != _ACK_MAGIC or length != len(name) or length > _MAX_REASON:
            raise BadBody("no acknowledgement")
        if not all(byte in b"abcdefghijklmnopqrstuvwxyz0123456789-" for byte in name):
            raise BadBody("the refusal has no name")
        if sequence != properties.header.sequence:
            raise Mismatch("the acknowledgement is of another sequence than its properties")
        return cls(sequence, name.decode("ascii"))


def open_status(body: bytes) -> bool:
    """Whether a device says that it is there; its last will says that it is not.

    Raises:
        BadBody: neither.
    """
    if body not in (ONLINE, OFFLINE):
        raise BadBody("neither online nor offline")
    return body == ONLINE


# Updates and models -------------------------------------------------------------------------


def pack_update(update: Update) -> bytes:
    """An update's body: ``federation.message.encode`` inside one zstd frame."""
    return compress(encode(update))


def open_update(body: bytes, properties: Properties, limits: SizeLimits | None = None) -> Update:
    """The update in a body that ``check_body`` let pass (and that was unsealed, if sealed).

    Raises:
        TooLarge: it would unpack to more than the limit, at any level.
        BadBody: it is no update, or holds numbers that no client sends.
        Mismatch: it names another client, sequence or base than its properties.
    """
    limits = limits or SizeLimits()
    message = expand(body, limits.raw)
    _check_codec_size(message, limits.raw)
    try:
        update = decode(message)
    # Last line before hostile bytes meet a codec: whatever it stumbles over is a refusal.
    except (InputError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise BadBody(f"no update: {error}") from None
    header = properties.header
    said = (update.client, update.sequence, update.base_version)
    if said != (header.device, header.sequence, header.base_version):
        raise Mismatch("the update's client, sequence or base version is not the properties'")
    if abs(update.samples) >= 1 << 53 or len(update.reason) > _MAX_REASON:
        raise BadBody("the sample count or the reason is out of bounds")
    if update.score is not None and not (
        abs(update.score) < 1 << 53 and math.isfinite(update.score)
    ):
        raise BadBody("the score is not finite")
    return update


def pack_model(model: GlobalModel) -> bytes:
    """A global model's body: a safetensors blob with metadata inside one zstd frame."""
    said = {
        "version": model.version,
        "hash": model_hash(model.tensors),
        "participants": None if model.participants is None else sorted(model.participants),
    }
    # One entry: safetensors writes several in an order that changes between processes.
    text = json.dumps(said, separators=(",", ":"), sort_keys=True)
    tensors = {name: np.asarray(t, dtype="<f4", order="C") for name, t in model.tensors.items()}
    return compress(save_tensors(tensors, metadata={"gradsense": text}))


def open_model(
    body: bytes, properties: Properties, limits: SizeLimits | None = None
) -> GlobalModel:
    """The global model in a body that ``check_body`` let pass (and that was unsealed, if sealed).

    Raises:
        TooLarge: it would unpack to more than the limit.
        BadBody: it is no model.
        Mismatch: it is another version than its properties name.
        WrongHash: its tensors are not those that the properties name.
    """
    blob = expand(body, (limits or SizeLimits()).raw)
    said = _model_metadata(blob)
    tensors = _load(blob)
    if any(tensor.dtype != np.float32 for tensor in tensors.values()):
        raise BadBody("a model's tensors are float32")
    header = properties.header
    if said["version"] != header.base_version or header.sequence != header.base_version:
        raise Mismatch("the model's version is not the properties'")
    if not said["hash"] == header.base_hash == model_hash(tensors):
        raise WrongHash("the model's tensors are not those that its hash names")
    names = said["participants"]
    return GlobalModel(said["version"], tensors, None if names is None else frozenset(names))


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


def compress(raw: bytes) -> bytes:
    """One zstd frame (RFC 8878) that declares its content's size."""
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(raw)


def expand(frame: bytes, limit: int) -> bytes:
    """The content of one zstd frame, with no more than ``limit`` bytes ever allocated for it.

    Raises:
        TooLarge: it declares more than the limit.
        BadBody: no frame, no declared size, another size than declared, or bytes after it.
    """
    _check_frame(frame, limit)
    try:
        # The output is allocated at the declared size; a frame that holds more is an error.
        return zstandard.ZstdDecompressor().decompress(
            frame, max_output_size=limit, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise BadBody(f"no zstd frame: {error}") from None


def _check_frame(frame: bytes, limit: int) -> None:
    try:
        size = zstandard.frame_content_size(frame)
    except zstandard.ZstdError as error:
        raise BadBody(f"no zstd frame: {error}") from None
    if size <= 0:
        raise BadBody("a zstd frame that declares no content")
    if size > limit:
        raise TooLarge(f"it would unpack to {size} bytes; the limit is {limit}")


def _load(blob: bytes) -> dict[str, np.ndarray]:
    try:
        return load_tensors(blob)
    except (SafetensorError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise BadBody(f"no safetensors: {error}") from None


def _check_codec_size(message: bytes, limit: int) -> None:
    """Refuse what a codec would blow up: its own zstd frame, and the shapes that it names.

    Codecs trust sizes up to 2 GiB; a coordinator that hears thousands of devices does not.
    """
    try:
        (length,) = struct.unpack_from("<I", message, 4)
        header = json.loads(message[8 : 8 + min(length, len(message))])
        plain = header["codec"] == "none"
    except (struct.error, ValueError, RecursionError, TypeError, LookupError):
        raise BadBody("no update header") from None
    if plain:
        return
    parts = _load(expand(message[8 + length :], limit))
    asked = sum(4 * part.size for name, part in parts.items() if ":" not in name)
    for name, part in parts.items():
        if name.startswith("shape:"):
            if part.dtype != np.int64 or part.ndim != 1 or (part < 0).any():
                raise BadBody("a shape that is none")
            asked += 4 * math.prod(part.tolist())
    if asked > limit:
        raise TooLarge(f"its tensors would take {asked} bytes; the limit is {limit}")


def _model_metadata(blob: bytes) -> dict[str, Any]:
    refusal = BadBody("the model's metadata cannot be read")
    try:
        (length,) = struct.unpack_from("<Q", blob)
        if length > min(_MAX_MODEL_HEADER, len(blob) - 8):
            raise refusal
        said = json.loads(json.loads(blob[8 : 8 + length])["__metadata__"]["gradsense"])
        names, version = said["participants"], said["version"]
        well = type(version) is int and isinstance(said["hash"], str)
    except (struct.error, ValueError, RecursionError, TypeError, LookupError):
        raise refusal from None
    if names is not None:
        well = well and isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not well:
        raise refusal
    return {"version": version, "hash": said["hash"], "participants": names}
