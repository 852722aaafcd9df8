"""Text in, decision out: a Hugging Face sequence classifier with its tokenizer and labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from gradsense.models.heads.last_token import applies_to, last_token_logits
from gradsense.models.heads.readout import Readout

if TYPE_CHECKING:
    from gradsense.prompts.templates import Template

#: Decoders that read left to right and number positions from the first token. With padding on
#: the right no real token sees a pad, so they need no attention mask at all.
_MASK_FREE = frozenset({"opt", "gpt2", "gpt_neox"})

#: Rows that go through a model at once where only their features are wanted.
_FEATURE_ROWS = 1024

#: No prompt needs more; a longer limit of a pretrained tokenizer (or none) comes down to it.
_MAX_TOKENS = 512


@dataclass(frozen=True)
class Encoded:
    """Token ids of n texts, padded to one length.

    ``input_ids``: int64 [n, length]. ``attention_mask``: int64 [n, length], 1 for real tokens,
    or None where no row is padded.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    def take(self, rows: torch.Tensor) -> Encoded:
        """These rows, without the padding that none of them needs."""
        ids = self.input_ids[rows]
        if self.attention_mask is None:
            return Encoded(ids, None)
        mask = self.attention_mask[rows]
        used = mask.any(dim=0)
        ids, mask = ids[:, used], mask[:, used]
        return Encoded(ids, None if bool(mask.all()) else mask)


class TextClassifier:
    """A sequence classifier that reads prompts and answers with class probabilities.

    Args:
        model: takes ``input_ids`` and ``attention_mask``, answers with ``logits`` [n, classes].
        tokenizer: has a padding token.
        labels: class names in the order of the logits.
        template: turns flows into the texts that the model was made for.
        base: what ``build`` was asked for: a size, a folder or a hub name.
        lora_rank: rank of the LoRA adapters; None where the whole model trains.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        labels: tuple[str, ...],
        template: Template,
        base: str,
        lora_rank: int | None = None,
    ) -> None:
        self.model, self.tokenizer, self.labels = model, tokenizer, labels
        self.template, self.base, self.lora_rank = template, base, lora_rank
        config: Any = model.config
        self.max_tokens = _max_tokens(config, tokenizer)
        self._mask_free = config.model_type in _MASK_FREE and tokenizer.padding_side == "right"
        self._last_token_only = self._mask_free and applies_to(model)
        # Walking the module tree costs a millisecond; a fleet loads tensors thousands of times.
        self._trainable = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self._device = next(model.parameters()).device

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Token ids of ``texts``. Each distinct text is tokenized once."""
        distinct, rows = _distinct(texts)
        if not distinct:
            return Encoded(torch.zeros((0, 1), dtype=torch.int64), None)
        batch = self.tokenizer(
            distinct,
            padding="longest",
            truncation=True,
            max_length=self.max_tokens,
            return_attention_mask=True,
            return_tensors="pt",
        )
        index = torch.from_numpy(rows)
        mask = batch["attention_mask"]
        return Encoded(batch["input_ids"][index], None if bool(mask.all()) else mask[index])

    def forward(self, encoded: Encoded, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [n, classes] of all of ``encoded`` or of these ``rows``, for autograd or not."""
        batch = encoded if rows is None else encoded.take(rows)
        ids, mask = batch.input_ids.to(self._device), batch.attention_mask
        if self._last_token_only:
            lengths = None if mask is None else mask.sum(dim=1).clamp(min=1).to(self._device)
            return last_token_logits(self.model, ids, lengths)
        if mask is not None:
            # Our own head must know where a prompt ends, even where the base need not.
            masks = isinstance(self.model, Readout) or not self._mask_free
            mask = mask.to(self._device) if masks else None
        logits: torch.Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return logits

    def features(self, encoded: Encoded, rows: torch.Tensor) -> torch.Tensor:
        """What the head reads of these rows, float [n, features], for sufficient statistics.

        Raises:
            ValueError: the head is not of our own (``models.heads.readout``).
        """
        if not isinstance(self.model, Readout):
            raise ValueError("a Hugging Face classifier keeps its features to itself")
        parts = []
        for some in torch.split(rows, _FEATURE_ROWS):
            batch = encoded.take(some)
            mask = None if batch.attention_mask is None else batch.attention_mask.to(self._device)
            parts.append(self.model.features(batch.input_ids.to(self._device), mask))
        return torch.cat(parts)

    def to(self, device: torch.device | str) -> TextClassifier:
        """Move the weights to ``device`` (in place) and return self."""
        self.model.to(device)
        self._device = next(self.model.parameters()).device
        return self

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that train and travel, in the model's own fixed order."""
        return dict(self._trainable)

    def tensors(self) -> dict[str, npt.NDArray[np.float32]]:
        """Copies of the trainable parameters, in the order of ``trainable``."""
        return {
            name: parameter.detach().to("cpu", torch.float32).numpy().copy()
            for name, parameter in self._trainable.items()
        }

    def load(self, tensors: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Overwrite the trainable parameters in place. Nothing changes if this raises.

        Raises:
            ValueError: a tensor is missing, has no place in the model, or has another shape.
        """
        if tensors.keys() != self._trainable.keys():
            missing = sorted(self._trainable.keys() - tensors.keys())
            unknown = sorted(tensors.keys() - self._trainable.keys())
            raise ValueError(f"tensors do not fit: missing {missing[:3]}, unknown {unknown[:3]}")
        for name, parameter in self._trainable.items():
            if tensors[name].shape != tuple(parameter.shape):
                raise ValueError(
                    f"tensor {name} has shape {tensors[name].shape}, not {tuple(parameter.shape)}"
                )
        for name, parameter in self._trainable.items():
            if parameter.device.type == "cpu" and parameter.dtype == torch.float32:
                # Through numpy's view: read-only arrays are fine and nothing is allocated.
                np.copyto(parameter.detach().numpy(), tensors[name])
            else:
                parameter.data.copy_(torch.tensor(tensors[name]))

    def probabilities(self, texts: Sequence[str], batch_size: int = 512) -> npt.NDArray[np.float32]:
        """Class probabilities [n, classes] of ``texts``; each distinct text is computed once."""
        distinct, places = _distinct(texts)
        table = np.zeros((len(distinct), len(self.labels)), dtype=np.float32)
        encoded = self.encode(distinct)
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                for rows in _batches(encoded, batch_size):
                    logits = self.forward(encoded, rows).float()
                    table[rows.numpy()] = torch.softmax(logits, dim=-1).cpu().numpy()
        finally:
            self.model.train(training)
        return table[places]


def _batches(encoded: Encoded, size: int) -> Iterator[torch.Tensor]:
    """All rows, the short ones first, so that a batch holds little padding."""
    if encoded.attention_mask is None:
        order = torch.arange(len(encoded))
    else:
        order = torch.argsort(encoded.attention_mask.sum(dim=1), stable=True)
    for start in range(0, len(encoded), size):
        yield order[start : start + size]


def _distinct(texts: Sequence[str]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The distinct texts in order of first appearance, and each text's place among them."""
    places: dict[str, int] = {}
    rows = np.fromiter(
        (places.setdefault(text, len(places)) for text in texts), dtype=np.int64, count=len(texts)
    )
    return list(places), rows


def _max_tokens(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens that tokenizer, positions and gradsense itself allow."""
    positions = getattr(config, "max_position_embeddings", None) or _MAX_TOKENS
    if config.model_type in {"roberta", "xlm-roberta", "camembert"}:
        positions -= 2  # their first position number is the padding id plus one
    return int(min(tokenizer.model_max_length, positions, _MAX_TOKENS))
