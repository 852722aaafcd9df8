"""How an update becomes bytes: safetensors for the tensors, JSON for what is said about them.

A codec packs the tensors of a delta; the envelope around them is the same for all. The bytes
are checked against bounds before anything is parsed, because they come from outside.
"""

from __future__ import annotations

import json
import struct
from typing import Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from gradsense.errors import InputError
from gradsense.federation.update import Array, Tensors, Update

#: No message may be larger: 2 GiB holds the adapters of any model that a gateway can train.
MAX_MESSAGE_BYTES = 2 << 30
_MAX_HEADER_BYTES = 1 << 20
_MAGIC = b"GSU1"


class Codec(Protocol):
    """The interface of every codec."""

    name: str

    def pack(self, tensors: Tensors) -> bytes:
        """The tensors as bytes."""
        ...

    def unpack(self, data: bytes) -> dict[str, Array]:
        """The tensors again, up to the codec's error bound.

        Raises:
            InputError: the bytes are not this codec's.
        """
        ...


class Plain:
    """float32 as it is, in safetensors: exact."""

    name = "none"

    def pack(self, tensors: Tensors) -> bytes:
        return save_tensors({name: np.ascontiguousarray(value) for name, value in tensors.items()})

    def unpack(self, data: bytes) -> dict[str, Array]:
        try:
            return load_tensors(data)
        except (SafetensorError, ValueError, KeyError, AttributeError) as error:
            raise InputError(
                f"not safetensors: {error}", mend="have the client send its update again"
            ) from None


#: Every codec by name.
CODECS: dict[str, Codec] = {codec.name: codec for codec in (Plain(),)}


def encode(update: Update, codec: Codec) -> bytes:
    """One message: magic, header length (4 bytes, little endian), JSON header, packed tensors."""
    header = {
        "client": update.client,
        "base_version": update.base_version,
        "sequence": update.sequence,
        "samples": update.samples,
        "reason": update.reason,
        "score": update.score,
        "codec": codec.name,
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    return b"".join((_MAGIC, struct.pack("<I", len(text)), text, codec.pack(update.delta)))


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
    mend = "have the client send its update again"
    if len(message) > MAX_MESSAGE_BYTES:
        raise InputError(f"a message of {len(message)} bytes", mend="send fewer tensors")
    if message[:4] != _MAGIC or len(message) < 8:
        raise InputError("not a gradsense update", mend=mend)
    (length,) = struct.unpack_from("<I", message, 4)
    if length > _MAX_HEADER_BYTES or 8 + length > len(message):
        raise InputError("the header's length is out of bounds", mend=mend)
    try:
        header = json.loads(message[8 : 8 + length])
    except (ValueError, RecursionError):
        raise InputError("the header is not JSON", mend=mend) from None
    if not isinstance(header, dict):
        raise InputError("the header is not a JSON object", mend=mend)
    for field, types in _HEADER_TYPES.items():
        value = header.get(field)
        if not isinstance(value, types) or isinstance(value, bool):
            raise InputError("missing or of the wrong type", field=field, mend=mend)
    if header["codec"] not in CODECS:
        raise InputError(f"unknown codec '{header['codec']}'", field="codec", mend=mend)
    delta = CODECS[header["codec"]].unpack(message[8 + length :])
    fields = {field: header[field] for field in _HEADER_TYPES if field != "codec"}
    return Update(**fields, delta=delta)
