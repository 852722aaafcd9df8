"""Prompts to the graph's inputs: words by a table, or subwords by the ``tokenizers`` library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gradsense.detection.bundle import Tokens
from gradsense.prompts.templates import Template

#: ``input_ids`` and, for padded prompts, ``attention_mask``: int64 [n, length].
Inputs = dict[str, npt.NDArray[np.int64]]

_UNKNOWN = "[UNK]"


class Encoder(Protocol):
    """Makes the graph's inputs."""

    def phrase_ids(self, phrase_ids: npt.NDArray[np.uint16]) -> Inputs:
        """Of prompts as phrase indices, [n, fields]."""

    def texts(self, texts: Sequence[str]) -> Inputs:
        """Of prompts as text. Raises ValueError for a text of another length than the graph's."""


def encoder(tokens: Tokens, template: Template, tokenizer: Path) -> Encoder:
    """The encoder of a bundle.

    Raises:
        ValueError: ``tokenizer`` does not fit the template.
    """
    if tokens.kind == "words":
        return Words(template, json.loads(tokenizer.read_bytes())["model"]["vocab"])
    return Subwords(template, tokenizer, tokens)


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

    def phrase_ids(self, phrase_ids: npt.NDArray[np.uint16]) -> Inputs:
        return {"input_ids": self._ids[phrase_ids + self._starts]}

    def texts(self, texts: Sequence[str]) -> Inputs:
        words = [text.split() for text in texts]
        if any(len(row) != len(self._starts) for row in words):
            raise ValueError(f"a prompt has {len(self._starts)} words")
        unknown = self._vocabulary[_UNKNOWN]
        ids = [[self._vocabulary.get(word, unknown) for word in row] for row in words]
        return {"input_ids": np.array(ids, dtype=np.int64)}


class Subwords:
    """Text through a Hugging Face fast tokenizer, cut and padded as the bundle says."""

    def __init__(self, template: Template, file: Path, tokens: Tokens) -> None:
        from tokenizers import Tokenizer  # noqa: PLC0415  (not needed by a bundle of words)

        self._template = template
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.enable_truncation(tokens.max_tokens)
        self._tokenizer.enable_padding(pad_id=tokens.pad_id)

    def phrase_ids(self, phrase_ids: npt.NDArray[np.uint16]) -> Inputs:
        return self.texts(self._template.texts(phrase_ids))

    def texts(self, texts: Sequence[str]) -> Inputs:
        encoded = self._tokenizer.encode_batch(list(texts))
        return {
            "input_ids": np.array([one.ids for one in encoded], dtype=np.int64),
            "attention_mask": np.array([one.attention_mask for one in encoded], dtype=np.int64),
        }
