"""The head of a bundle as two arrays of their own, so that a new one needs no new graph.

Where a fleet trains the head alone, every global model is a few kilobytes over the same graph. A
device puts them beside the graph that it has, and the detector lets them take the place of the
graph's own. numpy only: neither torch nor onnx is needed.
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
        """The file's content."""
        tensors = {HEAD_WEIGHT: self.weight, HEAD_BIAS: self.bias}
        return safetensors.numpy.save({n: np.ascontiguousarray(t) for n, t in tensors.items()})


def read_head(path: Path, manifest: Manifest) -> Head | None:
    """The head beside a bundle's graph; None where the graph's own is right.

    Raises:
        InputError: it is missing, altered, too large, or of other classes than the manifest's.
    """
    said = manifest.files.get(HEAD_FILE)
    if said is None:
        return None
    file = path / HEAD_FILE
    try:
        if said.bytes > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES >> 20} MiB")
        with file.open("rb") as stream:
            data = stream.read(said.bytes + 1)
        # What was read is what is used: the folder may be replaced at any moment.
        if len(data) != said.bytes or hashlib.sha256(data).hexdigest() != said.sha256:
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

    The graph is linked, not copied, where the disk allows it: a device may get a head a minute.

    Args:
        source: a bundle whose graph says features.
        out: a new folder, or one that holds a bundle, which is replaced; may be ``source``.
        head: of the source's labels and features; ``session.open_bundle`` finds out if it fits.
        update: manifest fields that change with the head: its thresholds, and ``provenance``.
            ``verified`` was about the head before, and is None unless it is given.

    Returns:
        the manifest written.

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
