"""A bundle's head as a file of its own beside the graph, so that a new head needs no new graph.

Where a fleet trains only the head, each global model is a few kilobytes. A device stores them
beside its graph, and the detector uses them in place of the graph's own head. numpy only: neither
torch nor onnx is needed.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from gradsense.detection import bundle
from gradsense.detection.bundle import GRAPH_FILE, HEAD_FILE, TOKENIZER_FILE, Manifest
from gradsense.errors import InputError
from gradsense.learning.learner import Array, Tensors
from gradsense.learning.statistics import HEAD_BIAS, HEAD_WEIGHT

#: 4,096 features of 1,000 classes, and room for names.
_MAX_BYTES = 20 << 20


@dataclass(frozen=True)
class Head:
    """``weight`` float32 [classes, d] and ``bias`` float32 [classes]."""

    weight: Array
    bias: Array

    @classmethod
    def of(cls, tensors: Tensors, classes: int) -> Head:
        """The head among a model's tensors.

        Raises:
            ValueError: there is none, it holds more, or it is not one of finite float32 values
                for so many classes.
        """
        if tensors.keys() != {HEAD_WEIGHT, HEAD_BIAS}:
            raise ValueError(f"it holds {sorted(tensors)[:3]}, not {HEAD_WEIGHT} and {HEAD_BIAS}")
        weight, bias = tensors[HEAD_WEIGHT], tensors[HEAD_BIAS]
        if weight.ndim != 2 or len(weight) != classes or bias.shape != (classes,):
            raise ValueError(
                f"it has shapes {list(weight.shape)} and {list(bias.shape)}, not those of "
                f"{classes} classes"
            )
        if any(
            array.dtype != np.float32 or not np.isfinite(array).all() for array in (weight, bias)
        ):
            raise ValueError("it holds something else than finite float32 values")
        return cls(weight, bias)

    def logits(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """[n, classes] of features [n, d]."""
        answers: npt.NDArray[np.float32] = features @ self.weight.T + self.bias
        return answers

    def packed(self) -> bytes:
        """The content of ``head.safetensors``."""
        tensors = {HEAD_WEIGHT: self.weight, HEAD_BIAS: self.bias}
        return safetensors.numpy.save({n: np.ascontiguousarray(t) for n, t in tensors.items()})


def read_head(path: Path, manifest: Manifest) -> Head | None:
    """The head beside a bundle's graph; None if the bundle uses the graph's own.

    Raises:
        InputError: it is missing, altered, too large, or of other classes than the manifest's.
    """
    listed = manifest.files.get(HEAD_FILE)
    if listed is None:
        return None
    file = path / HEAD_FILE
    try:
        if listed.bytes > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES >> 20} MiB")
        with file.open("rb") as stream:
            data = stream.read(listed.bytes + 1)
        # The hash is of what was read, not of the file: the folder may be replaced at any moment.
        if len(data) != listed.bytes or hashlib.sha256(data).hexdigest() != listed.sha256:
            raise ValueError("it is not the file that the manifest names")
        return Head.of(safetensors.numpy.load(data), len(manifest.labels))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(
            f"the head cannot be used: {error}",
            hint="copy the bundle again, all of its files",
            file=file,
        ) from error


def with_head(source: Path, out: Path, head: Head, update: Mapping[str, Any]) -> Manifest:
    """Write a bundle with the graph of another one and this head, all of it or nothing.

    Returns the manifest written. The graph is linked, not copied, where the disk allows it: a
    device may receive a head every minute.

    Args:
        source: a bundle whose graph has the output ``features``.
        out: a new folder, or one that holds a bundle, which is replaced; may be ``source``.
        head: of the source's labels and features; ``session.open_bundle`` checks that it fits.
        update: manifest fields that change with the head: its thresholds, and ``provenance``.
            ``verified`` described the previous head, and becomes None unless it is given.

    Raises:
        InputError: ``source`` is no bundle or a damaged one, or ``out`` holds something else.
        GradsenseError: it cannot be written.
    """
    manifest, _ = bundle.read(source)
    changed = manifest.model_copy(update={"verified": None, **update})
    with tempfile.TemporaryDirectory(prefix="gradsense-") as scratch:
        file = Path(scratch, HEAD_FILE)
        file.write_bytes(head.packed())
        files = {name: source / name for name in (GRAPH_FILE, TOKENIZER_FILE)}
        return bundle.write(out, changed, files | {HEAD_FILE: file}, link=True)
