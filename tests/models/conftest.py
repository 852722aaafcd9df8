"""A small template and tiny random Hugging Face folders, built offline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)

WORDS = tuple(f"w{number}" for number in range(20))


@dataclass(frozen=True)
class StandIn:
    """What the models layer reads of a prompt template."""

    name: str = "stand-in"
    version: int = 1
    budget: int = 6
    length: int | None = None  # the tests' texts differ in length

    def vocabulary(self) -> tuple[str, ...]:
        return WORDS


@pytest.fixture
def template() -> StandIn:
    return StandIn()


def _tokenizer(pad: bool, closing: bool) -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<unk>": 1, "<s>": 2, "</s>": 3}
    vocabulary |= {word: 4 + place for place, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if closing:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 3)]
        )
    names = {"pad_token": "<pad>"} if pad else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", **names
    )


def _network(family: str) -> PreTrainedModel:
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 24}
    wide = {**shape, "intermediate_size": 32, "max_position_embeddings": 34, "pad_token_id": 0}
    gpt2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 24}
    t5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 24}
    makers: dict[str, Callable[[], PreTrainedModel]] = {
        "opt": lambda: OPTForCausalLM(
            OPTConfig(**shape, ffn_dim=32, max_position_embeddings=32, pad_token_id=0)
        ),
        "bert": lambda: BertModel(BertConfig(**wide)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**gpt2, bos_token_id=2, eos_token_id=3)),
        "gpt_neox": lambda: GPTNeoXForCausalLM(
            GPTNeoXConfig(**{**wide, "pad_token_id": None}, bos_token_id=2, eos_token_id=3)
        ),
        "roberta": lambda: RobertaModel(RobertaConfig(**wide), add_pooling_layer=False),
        "deberta-v2": lambda: DebertaV2Model(DebertaV2Config(**wide)),
        "t5": lambda: T5ForConditionalGeneration(
            T5Config(**t5, pad_token_id=0, eos_token_id=3, decoder_start_token_id=0)
        ),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return makers[family]()


FAMILIES = ("opt", "bert", "gpt2", "gpt_neox", "roberta", "deberta-v2", "t5")


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A pretrained folder of a family, without a classification head, as hubs carry them."""
    root = tmp_path_factory.mktemp("families")

    def folder(family: str) -> Path:
        path = root / family
        if not path.exists():
            _network(family).save_pretrained(path)
            without_pad = family in {"gpt2", "gpt_neox"}
            _tokenizer(pad=not without_pad, closing=family == "t5").save_pretrained(path)
        return path

    return folder
