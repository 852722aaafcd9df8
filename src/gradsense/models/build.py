"""Builds the classifiers that gradsense trains: small embedded OPTs and Hugging Face models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import model_info, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_OFFLINE
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as hf_logging

from gradsense.errors import InputError, first_line
from gradsense.models.card import Kind
from gradsense.models.classifier import TextClassifier
from gradsense.models.embedded import SIZES, embedded, has_base, label_maps, load_base
from gradsense.models.heads.readout import Readout, feasible

if TYPE_CHECKING:
    from gradsense.prompts.templates import Template


#: LoRA rank of a Hugging Face model when nobody asks for another.
DEFAULT_LORA_RANK = 8

#: Seconds to find out whether the hub can be reached.
_HUB_TIMEOUT = 10.0

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def build(
    model: str,
    *,
    template: Template,
    labels: tuple[str, ...],
    seed: int,
    lora_rank: int | None = None,
    pretrained: bool = True,
    readout: Kind = "last",
    frozen: bool = False,
) -> TextClassifier:
    """Build a classifier of ``labels`` for prompts of ``template``.

    Args:
        model: a size of ``SIZES``, a local Hugging Face folder, or ``owner/name`` on the hub.
            Weights are read from safetensors only and no code of the model's is run.
        seed: fixes the initial weights that no checkpoint brings: all of an embedded model, else
            the head and the adapters. The global random state is left as it was.
        lora_rank: rank of the LoRA adapters, 0 for none. None means 8 for a Hugging Face model
            and none for an embedded one. With adapters only they and the head train and travel.
        pretrained: start an embedded model from the package's base, where it brings one for this
            size and template.
        readout: what the head reads: the last token's state, as Hugging Face's classifiers do, or
            more of them (``models.heads.readout``), and then without adapters. ``tokens`` becomes
            ``pooled`` where it cannot be.
        frozen: train the head only.

    Raises:
        InputError: there is no such model, it cannot be loaded, or adapters are asked for where
            they could not train.
    """
    if lora_rank and (frozen or readout != "last"):
        raise InputError(
            "there are no LoRA adapters under a head of our own or on a frozen base",
            hint="leave --lora-rank out, or use an algorithm with neither: gsfs-tune",
        )
    with _seeded(seed):
        if model in SIZES:
            network, tokenizer = embedded(SIZES[model], template, labels)
            if pretrained and has_base(model, template):
                load_base(network.model.decoder, model, template)
            heads, rank, length = _heads(network), lora_rank or 0, template.length
        else:
            network, tokenizer, heads = _pretrained(model, labels)
            rank = DEFAULT_LORA_RANK if lora_rank is None else lora_rank
            length = None  # its tokenizer cuts words as it likes
        trained: nn.Module = network
        if frozen or readout != "last":
            if network.config.is_encoder_decoder:
                raise InputError(
                    f"'{model}' is an encoder-decoder, of which our head cannot read the states",
                    hint="use an algorithm that trains such a model: gsfs-tune or fedavg",
                )
            kind = feasible(readout, base_of(network), length)
            trained = Readout(
                base_of(network), kind=kind, length=length or 0, classes=len(labels), frozen=frozen
            )
            rank = 0
        elif rank:
            trained = _with_lora(network, rank, heads)
    return TextClassifier(
        trained, tokenizer, labels=labels, template=template, base=model, lora_rank=rank or None
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Weights drawn inside depend on ``seed`` alone; the CPU generator resumes afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _pretrained(name: str, labels: tuple[str, ...]) -> tuple[PreTrainedModel, Any, list[str]]:
    """Model, tokenizer and the names of the modules that the checkpoint does not bring."""
    local = _find(name)
    sources = {"local_files_only": local, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **sources)
        with quiet_transformers():
            network, info = AutoModelForSequenceClassification.from_pretrained(
                name,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **label_maps(labels),
                **sources,
            )
    except Exception as error:  # any library below may raise anything on a broken folder
        raise InputError(
            f"cannot load model '{name}': {first_line(error)}",
            hint="it needs config.json, model.safetensors and a tokenizer of a family that "
            "AutoModelForSequenceClassification knows",
        ) from error
    network.float()  # many checkpoints rest in half precision, in which a CPU trains badly
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(
                f"the tokenizer of '{name}' has neither a padding nor an end token",
                hint="set pad_token in its tokenizer_config.json",
            )
        tokenizer.pad_token = tokenizer.eos_token
    if network.config.pad_token_id is None:
        network.config.pad_token_id = tokenizer.pad_token_id
    return network, tokenizer, _heads(network) + _fresh_modules(network, info, name)


def _find(name: str) -> bool:
    """Whether ``name`` is on this machine; raises InputError where it cannot be had at all."""
    if (Path(name) / "config.json").is_file():
        return True
    if Path(name).is_dir():
        raise InputError(
            "the model folder has no config.json",
            hint="give a folder in the Hugging Face layout",
            file=name,
        )
    if not _HUB_NAME.fullmatch(name):
        raise InputError(
            f"unknown model '{name}'",
            hint=f"use {', '.join(SIZES)}, a Hugging Face folder, or a hub name such as "
            "facebook/opt-350m",
        )
    try:
        # The loaders retry for half a minute; one request shows whether that is worth it.
        if HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set and the cache lacks the model")
        model_info(name, timeout=_HUB_TIMEOUT)
    except Exception as error:  # the HTTP library's own errors included
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return True
        raise InputError(
            f"cannot get model '{name}' from the Hugging Face hub: {first_line(error)}",
            hint="check the name and the connection, or give a local folder",
        ) from error
    return False


def base_of(network: PreTrainedModel) -> nn.Module:
    """The encoder or decoder under the classification head."""
    base: nn.Module = getattr(network, network.base_model_prefix)
    return base


def _heads(network: PreTrainedModel) -> list[str]:
    """Names of the modules on top of the base: ``score``, ``classifier``, sometimes a pooler."""
    return [
        name
        for name, module in network.named_children()
        if module is not base_of(network) and any(True for _ in module.parameters())
    ]


def _fresh_modules(network: PreTrainedModel, info: dict[str, Any], name: str) -> list[str]:
    """Modules inside the base that the checkpoint lacks; they start at random and must train."""
    prefix = f"{network.base_model_prefix}."
    missing = [key for key in info["missing_keys"] if key.startswith(prefix)]
    mismatched = [entry[0] for entry in info["mismatched_keys"] if entry[0].startswith(prefix)]
    if mismatched or 2 * len(missing) > len(list(base_of(network).parameters())):
        raise InputError(
            f"the weights of '{name}' do not fit its config.json "
            f"({len(missing)} tensors missing, {len(mismatched)} of another shape)",
            hint="give a folder whose two files belong together",
        )
    return sorted({key.rsplit(".", 1)[0] for key in missing})


def _with_lora(network: PreTrainedModel, rank: int, heads: list[str]) -> nn.Module:
    """LoRA on every linear layer of the base; ``heads`` train whole (Hu et al. 2021)."""
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415  a second that nano need not pay

    base = base_of(network)
    linear = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and name.startswith(f"{network.base_model_prefix}.")
        and name not in heads
    }
    if not linear:
        raise InputError(
            f"LoRA finds no linear layer in a {type(base).__name__}",
            hint="train the whole model with LoRA rank 0",
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=list(linear),
        modules_to_save=heads,
        fan_in_fan_out=all(isinstance(module, Conv1D) for module in linear.values()),
    )
    adapted: nn.Module = get_peft_model(network, config)
    return adapted


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without progress bars and the report that the head is new: it always is."""
    log: Any = hf_logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
