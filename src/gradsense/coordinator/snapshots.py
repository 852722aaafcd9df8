"""Snapshots of a run: a global model and the server's state, each in a safetensors file.

A file is whole and durable before the journal names it. A file that the journal does not name was
made by a process that was killed in between, and is removed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from gradsense.errors import InputError
from gradsense.learning.learner import Array
from gradsense.storage import files

FOLDER = "models"
_NAME = "version-{}.safetensors"

#: Group to name to array, as ``Coordinator.state()`` has them.
Groups = Mapping[str, Mapping[str, NDArray[np.floating[Any]]]]


def save(folder: Path, version: int, groups: Groups) -> tuple[str, str]:
    """Write a snapshot; once this returns it is durable.

    Returns:
        the file's name, and the SHA-256 of its bytes in hex.

    Raises:
        OSError: it cannot be written.
    """
    named = {f"{group}/{name}": t for group, inner in groups.items() for name, t in inner.items()}
    data = save_tensors({name: np.asarray(tensor, order="C") for name, tensor in named.items()})
    name = _NAME.format(version)
    files.write(folder / name, data)
    return name, hashlib.sha256(data).hexdigest()


def load(file: Path, sha256: str) -> dict[str, dict[str, Array]]:
    """The groups of a snapshot, bit for bit.

    Args:
        sha256: of the file, as the journal has it.

    Raises:
        InputError: it is gone or altered.
    """
    hint = "put this file back from a backup; the journal beside it may stay as it is"
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(
            f"the newest snapshot cannot be read ({error.strerror or error})", hint=hint, file=file
        ) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InputError("the newest snapshot is damaged", hint=hint, file=file)
    try:
        named = load_tensors(data)
    except SafetensorError as error:
        raise InputError(f"is no snapshot ({error})", hint=hint, file=file) from error
    groups: dict[str, dict[str, Array]] = {"model": {}, "server": {}}
    for key, tensor in named.items():
        group, _, name = key.partition("/")
        groups[group][name] = tensor
    return groups


def sweep(folder: Path, keep: Collection[str]) -> None:
    """Remove every snapshot that is not among ``keep``, and what a killed process left.

    Raises:
        OSError: one cannot be removed.
    """
    pattern = Path(_NAME.format("*"))
    for file in [*folder.glob(pattern.name), *folder.glob(files.temporary(pattern).name)]:
        if file.name not in keep:
            file.unlink(missing_ok=True)
