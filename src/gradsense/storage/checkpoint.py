"""A run's checkpoint: one file, written whole or not at all, from which a run continues exactly.

zstd around safetensors, with the JSON values in the safetensors metadata. An array that several
clients share is stored once and shared again after loading. ``dumps`` and ``loads`` give and take
the same bytes where a database keeps them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from gradsense.errors import GradsenseError, InputError
from gradsense.storage import files

#: A checkpoint larger than this once unpacked is not ours.
MAX_BYTES = 16 << 30
#: What a reader of arbitrary bytes may run into.
_FAULTS = (
    zstandard.ZstdError,
    SafetensorError,
    MemoryError,
    RecursionError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)
Groups = Mapping[str, Mapping[str, np.ndarray]]


def dumps(values: dict[str, Any], groups: Groups) -> bytes:
    """The bytes of a checkpoint.

    Args:
        values: JSON-able.
        groups: named mappings of named arrays; an array that stands in several is stored once.
    """
    keys: dict[int, str] = {}
    tensors: dict[str, np.ndarray] = {}
    layouts: dict[int, int] = {}
    shared: list[dict[str, str]] = []
    members: dict[str, int] = {}
    for group, arrays in groups.items():
        # Clients that hold the same global model hold the same mapping: one layout serves all.
        if id(arrays) not in layouts:
            layout = {}
            for name, array in arrays.items():
                key = keys.setdefault(id(array), f"t{len(keys)}")
                tensors[key] = np.ascontiguousarray(array)
                layout[name] = key
            layouts[id(arrays)] = len(shared)
            shared.append(layout)
        members[group] = layouts[id(arrays)]
    text = json.dumps({"values": values, "layouts": shared, "groups": members})
    # The checksum finds flipped bits, which would otherwise be trained on.
    compressor = zstandard.ZstdCompressor(level=1, write_checksum=True)
    return compressor.compress(save_tensors(tensors, {"gradsense": text}))


def loads(data: bytes) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """The values and groups of a checkpoint; what was shared is shared again.

    Raises:
        ValueError: the bytes are damaged, or of something else.
    """
    try:
        raw = zstandard.ZstdDecompressor().decompress(data, max_output_size=MAX_BYTES)
        header_size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + header_size])
        meta = json.loads(header["__metadata__"]["gradsense"])
        tensors = load_tensors(raw)
        layouts = [{n: tensors[k] for n, k in layout.items()} for layout in meta["layouts"]]
        return meta["values"], {group: layouts[i] for group, i in meta["groups"].items()}
    except _FAULTS as error:
        raise ValueError(str(error) or type(error).__name__) from error


def save(path: Path, values: dict[str, Any], groups: Groups) -> None:
    """Write a checkpoint; whoever reads ``path`` sees the old one or the new one, whole.

    Raises:
        InputError: the folder cannot be written.
    """
    data = dumps(values, groups)
    try:
        files.write(path, data, mode=0o666)
    except OSError as error:
        raise InputError(
            f"cannot write the checkpoint: {error.strerror}",
            hint="free some space or choose another --out",
            file=path,
        ) from None


def load(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """The values and groups of a checkpoint.

    Raises:
        GradsenseError: the file is damaged.
    """
    try:
        return loads(path.read_bytes())
    except (OSError, MemoryError, ValueError) as error:
        raise damaged(path, str(error) or type(error).__name__) from error


def remove(path: Path) -> None:
    """Remove a checkpoint, and the half of one that a killed process left."""
    path.unlink(missing_ok=True)
    files.temporary(path).unlink(missing_ok=True)


def damaged(path: Path, why: str) -> GradsenseError:
    """The error for a checkpoint that cannot be continued from."""
    return GradsenseError(
        f"{path}: the checkpoint is damaged ({why}); delete it to start the run again"
    )
