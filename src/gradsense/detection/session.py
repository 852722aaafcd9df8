"""An edge bundle's graph, open under onnxruntime, with the encoder of its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from gradsense.detection import bundle
from gradsense.detection.bundle import Manifest
from gradsense.detection.encode import Encoder, Inputs, encoder
from gradsense.detection.head import Head, read_head
from gradsense.errors import InputError
from gradsense.prompts.templates import Template

#: The graph's names for the head; see ``models.graph``.
_WEIGHT, _BIAS = "model.score.weight", "model.score.bias"
#: Of logits that the graph and numpy compute from the same features, relative to the largest.
_ROUNDING = 1e-3


class Session:
    """A graph, and the head that it borrows: onnxruntime keeps no copy of these arrays.

    Args:
        inference: of onnxruntime.
        borrowed: values that must live as long as it.
    """

    def __init__(
        self, inference: ort.InferenceSession, borrowed: Sequence[ort.OrtValue] = ()
    ) -> None:
        self._inference, self._borrowed = inference, tuple(borrowed)
        self.outputs = tuple(output.name for output in inference.get_outputs())

    def run(self, outputs: Sequence[str], inputs: Inputs) -> list[npt.NDArray[np.float32]]:
        """These outputs; what is not asked for is not copied."""
        found: list[npt.NDArray[np.float32]] = self._inference.run(outputs, inputs)
        return found


@dataclass(frozen=True)
class Opened:
    """A bundle that is ready to answer.

    Args:
        manifest, template: of the bundle.
        session: its graph, with the bundle's head or another one.
        encoder: makes the graph's inputs.
    """

    manifest: Manifest
    template: Template
    session: Session
    encoder: Encoder


def open_bundle(path: Path | str, *, threads: int, head: Head | None = None) -> Opened:
    """Open a bundle, every file checked against its hash first.

    Args:
        path: a folder that ``gradsense export`` or ``detection.head`` wrote.
        threads: of the graph.
        head: in place of the bundle's own.

    Raises:
        InputError: no bundle, a damaged or altered one, or a head of another model.
    """
    path = Path(path)
    manifest, template = bundle.read(path)
    head = head or read_head(path, manifest)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Threads spin from one operator to the next, which is worth a fifth of the time, but not
    # while no flow comes: a gateway has better things to do.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    try:
        borrowed = _lend(head, options)
        inference = ort.InferenceSession(
            str(path / bundle.GRAPH_FILE), options, providers=["CPUExecutionProvider"]
        )
        words = encoder(manifest.tokens, template, path / bundle.TOKENIZER_FILE)
        opened = Opened(manifest, template, Session(inference, borrowed), words)
        if head is not None:
            _check_taken(opened, head)
    except Exception as error:  # the libraries raise classes of their own and bare Exception
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"the bundle cannot be opened: {lines[0]}",
            hint="export it again with this version of gradsense",
            file=path,
        ) from error
    return opened


def _lend(head: Head | None, options: Any) -> list[ort.OrtValue]:
    """Give the graph this head instead of its own."""
    if head is None:
        return []
    borrowed = []
    for name, array in ((_WEIGHT, head.weight), (_BIAS, head.bias)):
        borrowed.append(ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)))
        options.add_initializer(name, borrowed[-1])
    return borrowed


def _check_taken(opened: Opened, head: Head) -> None:
    """Whether the graph answers by this head: onnxruntime passes over names that it lacks.

    Raises:
        ValueError: it does not.
    """
    session = opened.session
    if "features" not in session.outputs:
        raise ValueError("its graph says no features, so it takes no other head")
    phrase_ids = np.zeros((1, len(opened.template.fields)), np.uint16)
    logits, features = session.run(["logits", "features"], opened.encoder.phrase_ids(phrase_ids))
    if features.shape[1] != head.weight.shape[1]:
        raise ValueError(
            f"its graph has {features.shape[1]} features, the head reads {head.weight.shape[1]}"
        )
    expected = head.logits(features)
    scale = max(1.0, float(np.abs(expected).max()))
    if not np.allclose(logits, expected, atol=_ROUNDING * scale):
        raise ValueError("its graph does not take the head")
