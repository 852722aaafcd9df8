"""The pretrained bases that come with the package: decoders that have read unlabelled traffic.

The paper presumes a pretrained language model. A base is the decoder of an embedded model after
next-token training on synthetic traffic without labels (``gradsense pretrain`` makes it again);
the classification head is never part of it. It fits one size and one version of one template.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import nn

from gradsense.prompts.templates import Template

_FOLDER = files("gradsense.models") / "bases"


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
