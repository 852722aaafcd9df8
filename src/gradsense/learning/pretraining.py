"""Self-supervised training of an embedded model: predict each prompt's next word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from gradsense.models.classifier import TextClassifier


def pretrain(
    classifier: TextClassifier,
    texts: list[str],
    *,
    epochs: int,
    seed: int,
    lr: float = 3e-3,
    batch_size: int = 64,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> float:
    """Train the decoder of an embedded OPT on unlabelled prompts; the head is not touched.

    The output weights are the input embeddings, as in OPT (Zhang et al. 2022, arXiv 2205.01068).
    The learning rate warms up over a tenth of the steps and then falls to zero.

    Args:
        classifier: an embedded model without adapters.
        texts: distinct prompts of its template, all of one length.
        epochs: passes over them.
        seed: of the order.
        on_step: called with (step, steps, loss in nats a word) after each step.

    Returns:
        The mean loss of the last epoch, in nats a word.
    """
    network: Any = classifier.model
    decoder = network.model.decoder
    ids = classifier.encode(texts).input_ids
    per_epoch = -(-len(ids) // batch_size)
    steps = epochs * per_epoch
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=lr, total_steps=steps, pct_start=0.1
    )
    generator = torch.Generator().manual_seed(seed)
    classifier.model.train()
    total = 0.0
    for step in range(steps):
        if step % per_epoch == 0:
            order, total = torch.randperm(len(ids), generator=generator), 0.0
        start = step % per_epoch * batch_size
        batch = ids[order[start : start + batch_size]]
        hidden = decoder(input_ids=batch).last_hidden_state[:, :-1]
        logits = hidden @ decoder.embed_tokens.weight.T
        loss = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        total += loss.item() * len(batch)
        on_step(step + 1, steps, loss.item())
    return total / len(ids)
