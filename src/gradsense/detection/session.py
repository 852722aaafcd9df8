"""A bundle that is open: its graph under onnxruntime, and the encoder of its prompts.

An encoder makes the graph's inputs: words by a table, or subwords by the ``tokenizers`` library.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from gradsense.detection import bundle
from gradsense.detection.bundle import Manifest, Tokens
from gradsense.detection.head import Head, read_head
from gradsense.errors import InputError, first_line
from gradsense.prompts.templates import Template

#: ``input_ids`` and, for padded prompts, ``attention_mask``: int64 [n, length].
Inputs = dict[str, npt.NDArray[np.int64]]
Outputs = npt.NDArray[np.float32]
#: uint16 [n, fields]: which phrase of each field a prompt has.
PhraseIds = npt.NDArray[np.uint16]

#: Prompts of one run of the graph: more are hardly faster, and take memory.
BATCH = 32

_UNKNOWN = "[UNK]"
#: The graph's names for the head; see ``models.graph``.
_WEIGHT, _BIAS = "model.score.weight", "model.score.bias"
#: Tolerance between the graph's logits and numpy's, relative to the largest of them.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Opened:
    """An open bundle.

    Args:
        manifest, template: of the bundle.
        graph: its graph under onnxruntime, with the bundle's head or another one.
        encoder: makes the graph's inputs.
        borrowed: arrays of a head that the graph uses without a copy: kept alive with it.
    """

    manifest: Manifest
    template: Template
    graph: ort.InferenceSession
    encoder: Encoder
    borrowed: Sequence[ort.OrtValue] = ()

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of what the graph gives."""
        return tuple(output.name for output in self.graph.get_outputs())

    def blocks(self, outputs: Sequence[str], phrase_ids: PhraseIds) -> Iterator[list[Outputs]]:
        """The values of these outputs, in order, for ``BATCH`` prompts [n, fields] at a time."""
        for start in range(0, len(phrase_ids), BATCH):
            inputs = self.encoder.phrase_ids(phrase_ids[start : start + BATCH])
            yield self.graph.run(outputs, inputs)


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
    # Threads may spin between two operators, which saves a fifth of the time, but not while no
    # flow comes: a gateway's processor has other work.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    try:
        borrowed = _lend(head, options)
        graph = ort.InferenceSession(
            str(path / bundle.GRAPH_FILE), options, providers=["CPUExecutionProvider"]
        )
        encode = encoder(manifest.tokens, template, path / bundle.TOKENIZER_FILE)
        opened = Opened(manifest, template, graph, encode, borrowed)
        if head is not None:
            _check_taken(opened, head)
    except Exception as error:  # the libraries raise classes of their own and bare Exception
        raise InputError(
            f"the bundle cannot be opened: {first_line(error)}",
            hint="export it again with this version of gradsense",
            file=path,
        ) from error
    return opened


def _lend(head: Head | None, options: Any) -> list[ort.OrtValue]:
    """Register this head's arrays in place of the graph's own."""
    if head is None:
        return []
    borrowed = []
    for name, array in ((_WEIGHT, head.weight), (_BIAS, head.bias)):
        borrowed.append(ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)))
        options.add_initializer(name, borrowed[-1])
    return borrowed


def _check_taken(opened: Opened, head: Head) -> None:
    """``ValueError`` if the graph does not use it: onnxruntime ignores names that it lacks."""
    if "features" not in opened.outputs:
        raise ValueError("its graph has no output 'features', so it takes no other head")
    phrase_ids = np.zeros((1, len(opened.template.fields)), np.uint16)
    logits, features = next(opened.blocks(["logits", "features"], phrase_ids))
    if features.shape[1] != head.weight.shape[1]:
        raise ValueError(
            f"its graph has {features.shape[1]} features, the head reads {head.weight.shape[1]}"
        )
    expected = head.logits(features)
    scale = max(1.0, float(np.abs(expected).max()))
    if not np.allclose(logits, expected, atol=_ROUNDING * scale):
        raise ValueError("its graph does not take the head")


# Prompts to inputs ----------------------------------------------------------------------------


class Words:
    """Every phrase is one word of a vocabulary, so a prompt's ids are looked up, not tokenized.

    Args:
        template: all of its prompts have one word a field.
        vocabulary: word to id.
    """

    def __init__(self, template: Template, vocabulary: dict[str, int]) -> None:
        phrases = [phrase for field in template.fields for phrase in field.phrases]
        missing = [phrase for phrase in phrases if phrase not in vocabulary]
        if missing:
            raise ValueError(f"the vocabulary lacks '{missing[0]}'")
        self._vocabulary = vocabulary
        self._ids = np.array([vocabulary[phrase] for phrase in phrases], dtype=np.int64)
        sizes = [len(field.phrases) for field in template.fields]
        self._starts = np.cumsum([0, *sizes[:-1]])

    def phrase_ids(self, phrase_ids: PhraseIds) -> Inputs:
        """The graph's inputs from phrase ids, [n, fields]."""
        return {"input_ids": self._ids[phrase_ids + self._starts]}

    def texts(self, texts: Sequence[str]) -> Inputs:
        """The graph's inputs from text.

        Raises:
            ValueError: a text has another length than the graph's input.
        """
        words = [text.split() for text in texts]
        if any(len(row) != len(self._starts) for row in words):
            raise ValueError(f"a prompt has {len(self._starts)} words")
        unknown = self._vocabulary[_UNKNOWN]
        ids = [[self._vocabulary.get(word, unknown) for word in row] for row in words]
        return {"input_ids": np.array(ids, dtype=np.int64)}


class Subwords:
    """Encodes text with a Hugging Face fast tokenizer, cut and padded as the manifest states."""

    def __init__(self, template: Template, file: Path, tokens: Tokens) -> None:
        from tokenizers import Tokenizer  # noqa: PLC0415  (not needed by a bundle of words)

        self._template = template
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.enable_truncation(tokens.max_tokens)
        self._tokenizer.enable_padding(pad_id=tokens.pad_id)

    def phrase_ids(self, phrase_ids: PhraseIds) -> Inputs:
        return self.texts(self._template.texts(phrase_ids))

    def texts(self, texts: Sequence[str]) -> Inputs:
        encoded = self._tokenizer.encode_batch(list(texts))
        return {
            "input_ids": np.array([one.ids for one in encoded], dtype=np.int64),
            "attention_mask": np.array([one.attention_mask for one in encoded], dtype=np.int64),
        }


Encoder = Words | Subwords


def encoder(tokens: Tokens, template: Template, tokenizer: Path) -> Encoder:
    """The encoder of a bundle.

    Raises:
        ValueError: ``tokenizer`` does not fit the template.
    """
    if tokens.kind == "words":
        return Words(template, json.loads(tokenizer.read_bytes())["model"]["vocab"])
    return Subwords(template, tokenizer, tokens)
