"""The forward pass of an OPT classifier without the part that nobody reads.

``OPTForSequenceClassification`` scores every position and keeps the last token's row. In the
last layer all other positions matter only as keys and values, so their queries, projections and
feed-forward rows can be left out. The logits are the same; a step of the two-layer ``nano`` is
about half again as fast. It reads the modules by their checkpoint names, and tests hold it
against the library's own forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import OPTForSequenceClassification

#: OPT's position table starts with two rows that no position uses.
_POSITION_OFFSET = 2


def applies_to(model: nn.Module) -> bool:
    """Whether ``last_token_logits`` computes what ``model`` computes."""
    if not isinstance(model, OPTForSequenceClassification):
        return False
    config: Any = model.config
    return bool(
        config.do_layer_norm_before
        and config.word_embed_proj_dim == config.hidden_size
        and config.dropout == config.attention_dropout == config.layerdrop == 0
        and model.model.decoder.final_layer_norm is not None
    )


def last_token_logits(
    model: nn.Module, input_ids: torch.Tensor, lengths: torch.Tensor | None
) -> torch.Tensor:
    """Logits [n, classes] of ``input_ids`` [n, length], padded on the right if at all.

    Args:
        model: one that ``applies_to`` accepts.
        lengths: number of real tokens of each row, int64 [n]; None where no row is padded.
    """
    network: Any = model
    decoder = network.model.decoder
    places = slice(_POSITION_OFFSET, _POSITION_OFFSET + input_ids.shape[1])
    hidden = decoder.embed_tokens(input_ids) + decoder.embed_positions.weight[places]
    for layer in decoder.layers[:-1]:
        normed = layer.self_attn_layer_norm(hidden)
        # Causal: with padding on the right no real token sees a pad.
        hidden = _feed_forward(layer, hidden + _attend(layer, normed, normed, None, causal=True))
    layer = decoder.layers[-1]
    normed = layer.self_attn_layer_norm(hidden)
    seen = None
    if lengths is not None:
        seen = torch.arange(input_ids.shape[1], device=lengths.device) < lengths[:, None]
    attended = _attend(layer, _last(normed, lengths), normed, seen, causal=False)
    hidden = _feed_forward(layer, _last(hidden, lengths) + attended)
    logits: torch.Tensor = network.score(decoder.final_layer_norm(hidden[:, 0]))
    return logits


def _last(hidden: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """The last real position of every row, [n, 1, hidden]."""
    if lengths is None:
        return hidden[:, -1:]
    return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1].unsqueeze(1)


def _attend(
    layer: Any,
    queries: torch.Tensor,
    keys: torch.Tensor,
    seen: torch.Tensor | None,
    *,
    causal: bool,
) -> torch.Tensor:
    """Self-attention from ``queries`` [n, q, hidden] to ``keys`` [n, k, hidden].

    ``seen``: bool [n, k], which keys may be looked at; None for all.
    """
    attention = layer.self_attn
    heads = (attention.num_heads, attention.head_dim)
    query = attention.q_proj(queries).unflatten(-1, heads).transpose(1, 2)
    key = attention.k_proj(keys).unflatten(-1, heads).transpose(1, 2)
    value = attention.v_proj(keys).unflatten(-1, heads).transpose(1, 2)
    mask = None if seen is None else seen[:, None, None, :]
    mixed = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal
    )
    out: torch.Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return out


def _feed_forward(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    inner = layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden)))
    out: torch.Tensor = hidden + layer.fc2(inner)
    return out
