"""The embedded models: small OPTs, their word-level tokenizer, and their pretrained bases.

A template writes each field as one word of a list known beforehand, so a tokenizer of one token a
word loses nothing and keeps a flow at about 14 tokens, where a subword tokenizer needs 60.

The paper presumes a pretrained language model. A base, which comes with the package, is the
decoder of an embedded model after next-token training on synthetic traffic without labels
(``gradsense pretrain`` makes it again); the classification head is never part of it. It fits one
size and one version of one template.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import (
    OPTConfig,
    OPTForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from gradsense.prompts.templates import Template

_FOLDER = files("gradsense.models") / "bases"

PAD, UNK, BOS, EOS = "[PAD]", "[UNK]", "[BOS]", "[EOS]"

#: Their ids are their places here, in every vocabulary. [BOS] and [EOS] are reserved for
#: next-token pretraining; classification reads the last word and does not spend tokens on them.
SPECIALS = (PAD, UNK, BOS, EOS)


@dataclass(frozen=True)
class Size:
    """Shape of an embedded OPT. Few wide layers: on a CPU they train faster than many thin ones."""

    hidden: int
    layers: int
    heads: int


#: The embedded models; the feed-forward width is four times ``hidden``, as in OPT.
SIZES: dict[str, Size] = {
    "nano": Size(hidden=80, layers=2, heads=4),  # about 0.2 M parameters
    "micro": Size(hidden=160, layers=3, heads=5),  # about 1 M
    "mini": Size(hidden=320, layers=4, heads=5),  # about 5 M
}


def build_tokenizer(words: Iterable[str], *, max_tokens: int) -> PreTrainedTokenizerFast:
    """A word-level tokenizer whose ids depend on nothing but ``words`` and their order.

    Args:
        words: the vocabulary; a word that occurs twice takes the id of its first place.
        max_tokens: longer texts are cut to this many tokens.

    Raises:
        ValueError: a word is empty, holds whitespace or is a special token's name.
    """
    ids = {token: place for place, token in enumerate(SPECIALS)}
    for word in words:
        if word.split() != [word]:
            raise ValueError(f"{word!r} is not one whitespace-separated word")
        if word in SPECIALS:
            raise ValueError(f"{word!r} is the name of a special token")
        ids.setdefault(word, len(ids))
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNK))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=max_tokens,
        padding_side="right",
        truncation_side="right",
    )


def embedded(
    size: Size, template: Template, labels: tuple[str, ...]
) -> tuple[PreTrainedModel, Any]:
    """A model of this size for prompts of the template, at random, and its tokenizer."""
    tokenizer = build_tokenizer(template.vocabulary(), max_tokens=template.budget)
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        ffn_dim=4 * size.hidden,
        # Two more than the longest prompt: room for [BOS] and [EOS] in pretraining.
        max_position_embeddings=template.budget + 2,
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
        use_cache=False,  # a classifier never generates, and the cache costs time each step
        pad_token_id=SPECIALS.index(PAD),
        bos_token_id=SPECIALS.index(BOS),
        eos_token_id=SPECIALS.index(EOS),
        **label_maps(labels),
    )
    return OPTForSequenceClassification(config), tokenizer


def label_maps(labels: tuple[str, ...]) -> dict[str, Any]:
    """The labels as a Hugging Face configuration has them."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def base_path(size: str, template: Template) -> Path:
    """Where the base of this size and template is, or would be."""
    return Path(str(_FOLDER / f"{size}-{template.name}-v{template.version}.safetensors"))


def has_base(size: str, template: Template) -> bool:
    """Whether the package brings a base for this size and template."""
    return base_path(size, template).is_file()


def fingerprint(words: Iterable[str]) -> str:
    """SHA-256 of a vocabulary: token ids mean the same only where it is the same."""
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def save_base(decoder: nn.Module, template: Template, path: Path) -> None:
    """Write a decoder's weights in half precision; twice as small, and training hardly notices."""
    tensors = {
        name: value.detach().to(torch.float16).numpy()
        for name, value in decoder.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"vocabulary": fingerprint(template.vocabulary())})


def load_base(decoder: nn.Module, size: str, template: Template) -> None:
    """Overwrite a decoder's weights with the base's.

    Raises:
        ValueError: the base was made for another vocabulary; remake it.
    """
    with safe_open(base_path(size, template), framework="np") as file:
        if file.metadata()["vocabulary"] != fingerprint(template.vocabulary()):
            raise ValueError(
                f"the base of {size} was made for another vocabulary of '{template.name}'; "
                f"run: gradsense pretrain --model {size} --template {template.name}"
            )
        names = list(file.keys())
        state = {name: torch.from_numpy(np.float32(file.get_tensor(name))) for name in names}
    decoder.load_state_dict(state)
