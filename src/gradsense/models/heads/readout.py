"""A classifier whose head reads more of a prompt than the last token's state.

The base stays a Hugging Face model; one linear layer on top reads its hidden states. For prompts
of one length, as the embedded templates write them, that can be every position's state side by
side (``tokens``): each field keeps its own place, and classes that the last token's state mixes up
come apart linearly. ``pooled`` is the mean state and the last one, ``last`` the last alone.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from gradsense.models.card import Kind

#: With more features the sufficient statistics of a site are too large to send and to solve.
MAX_FEATURES = 4096


class Readout(nn.Module):
    """A base and a linear head ``score`` over its states.

    Args:
        base: gives ``last_hidden_state`` [n, length, hidden].
        kind: what the head reads.
        length: tokens of every prompt; only ``tokens`` needs it.
        classes: how many logits.
        frozen: whether only the head trains.
    """

    def __init__(
        self, base: nn.Module, *, kind: Kind, length: int, classes: int, frozen: bool
    ) -> None:
        super().__init__()
        self.base, self.kind, self.length = base, kind, length
        self.config: Any = base.config
        states = {"last": 1, "pooled": 2, "tokens": length}[kind]
        self.features_per_prompt = states * state_width(base)
        self.score = nn.Linear(self.features_per_prompt, classes)
        # An untrained head gives all classes the same score.
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)
        if frozen:
            base.requires_grad_(False)

    def features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """What the head reads, float [n, features_per_prompt].

        Raises:
            ValueError: ``tokens`` was given prompts of another length.
        """
        states = self.base(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.kind == "tokens":
            if attention_mask is not None or input_ids.shape[1] != self.length:
                raise ValueError(f"a head over {self.length} tokens needs prompts of that length")
            flat: torch.Tensor = states.flatten(1)
            return flat
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        places = torch.arange(states.shape[1], device=states.device)
        last = (places * attention_mask).argmax(dim=1)
        last_state: torch.Tensor = states[torch.arange(len(states)), last]
        if self.kind == "last":
            return last_state
        weights = attention_mask.to(states.dtype).unsqueeze(-1)
        mean = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return torch.cat([mean, last_state], dim=1)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> SimpleNamespace:
        """``logits`` [n, classes], under the name that Hugging Face models give them."""
        return SimpleNamespace(logits=self.score(self.features(input_ids, attention_mask)))


def state_width(base: nn.Module) -> int:
    """Values of one hidden state. Asked of the model itself: some project it on the way out."""
    with torch.inference_mode():
        states = base(input_ids=torch.zeros((1, 2), dtype=torch.int64)).last_hidden_state
    return int(states.shape[-1])


def feasible(kind: Kind, base: nn.Module, length: int | None) -> Kind:
    """``kind``, but ``pooled`` instead of ``tokens`` where prompts differ in length (None) or the
    head would have more than ``MAX_FEATURES``."""
    if kind == "tokens" and (length is None or state_width(base) * length > MAX_FEATURES):
        return "pooled"
    return kind
