"""How an update travels: an envelope of JSON around a codec's bytes.

Everything is checked against bounds before it is parsed, because it comes from outside.
"""

from __future__ import annotations

import json
import struct

from gradsense.errors import InputError
from gradsense.federation.codec import CODECS, MAX_MESSAGE_BYTES
from gradsense.federation.update import Update

_MAX_HEADER_BYTES = 1 << 20
_MAGIC = b"GSU1"


def encode(update: Update) -> bytes:
    """One message: magic, header length (4 bytes, little endian), JSON header, packed tensors."""
    header = {
        "client": update.client,
        "base_version": update.base_version,
        "sequence": update.sequence,
        "samples": update.samples,
        "reason": update.reason,
        "score": update.score,
        "codec": update.codec,
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    packed = update.packed or CODECS[update.codec].pack(update.delta)
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
    for field, types in _HEADER_TYPES.items():
        value = header.get(field)
        if not isinstance(value, types) or isinstance(value, bool):
            raise InputError("missing or of the wrong type", field=field, hint=hint)
    if header["codec"] not in CODECS:
        raise InputError(f"unknown codec '{header['codec']}'", field="codec", hint=hint)
    delta = CODECS[header["codec"]].unpack(message[8 + length :])
    return Update(**{field: header[field] for field in _HEADER_TYPES}, delta=delta)
