"""Snapshots of a run, files beside its journal: a global model, and the server's state with it.

Each is whole and durable before the journal names it. Few are kept, and no more bytes than stated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Set
from contextlib import suppress
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from gradsense.errors import InputError
from gradsense.learning.learner import Array
from gradsense.storage import files
from gradsense.storage.checkpoint import Groups
from gradsense.storage.sqlite import StorageFull

#: Snapshots that keep their file, beside that of version 0: so many while they are no more bytes
#: than that together, but always the last two.
KEPT_MODELS, KEPT_BYTES = 20, 512 << 20
FOLDER, _NAME = "models", "version-{}.safetensors"


class Snapshots:
    """The files in a run's folder.

    Attributes:
        kept: how many there may be, as the last one saved was so large.
    """

    def __init__(self, run: Path) -> None:
        self._folder, self.kept = run / FOLDER, KEPT_MODELS

    def save(self, version: int, groups: Groups) -> tuple[str, str]:
        """Write a snapshot; once this returns it is durable.

        Args:
            groups: group to name to array, as ``Coordinator.snapshot()`` has them.

        Returns:
            the file's name, and the SHA-256 of its bytes in hex.

        Raises:
            StorageFull: it cannot be written.
        """
        arrays = {f"{group}/{name}": t for group, own in groups.items() for name, t in own.items()}
        data = save_tensors({name: np.asarray(t, order="C") for name, t in arrays.items()})
        self.kept = max(2, min(KEPT_MODELS, KEPT_BYTES // max(1, len(data))))
        name = _NAME.format(version)
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            files.write(self._folder / name, data)
        except OSError as error:
            raise StorageFull(f"{self._folder}: no model can be written: {error}") from error
        return name, hashlib.sha256(data).hexdigest()

    def load(self, name: str, sha256: str) -> dict[str, dict[str, Array]]:
        """The groups of a snapshot, bit for bit.

        Raises:
            InputError: it is gone or altered.
        """
        file = self._folder / name
        hint = "put this file back from a backup; the journal beside it may stay as it is"
        try:
            data = file.read_bytes()
        except OSError as error:
            reason = error.strerror or error
            raise InputError(
                f"the snapshot cannot be read ({reason})", hint=hint, file=file
            ) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise InputError("the snapshot is damaged", hint=hint, file=file)
        try:
            named = load_tensors(data)
        except SafetensorError as error:
            raise InputError(f"is no snapshot ({error})", hint=hint, file=file) from error
        groups: dict[str, dict[str, Array]] = {"model": {}, "server": {}}
        for key, tensor in named.items():
            group, _, part = key.partition("/")
            groups[group][part] = tensor
        return groups

    def sweep(self, keep: Set[str]) -> None:
        """Remove all but these, and what a killed process left."""
        pattern = Path(_NAME.format("*"))
        with suppress(OSError):  # superfluous files do no harm
            for name in (pattern.name, files.temporary(pattern).name):
                for file in self._folder.glob(name):
                    if file.name not in keep:
                        file.unlink(missing_ok=True)
