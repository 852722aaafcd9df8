"""Pretrain a base on unlabelled synthetic traffic: it predicts each prompt's next word."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch.nn import functional

from gradsense.data.datasets.captures import load
from gradsense.data.synthetic.traffic import write_fleet
from gradsense.errors import InputError
from gradsense.models.build import build
from gradsense.models.classifier import TextClassifier
from gradsense.models.embedded import SIZES, save_base
from gradsense.prompts.templates import Template, get_template

#: Fleets of other seeds than any demonstration or test trains and tests on.
_FLEET_SEEDS = (1001, 1002, 1003)
_SITES, _FLOWS = 12, 1500

_SIZES_OF_ONE_FLOW = (
    *("orig_bytes", "resp_bytes", "orig_pkts", "resp_pkts"),
    *("orig_ip_bytes", "resp_ip_bytes"),
)
_SHUFFLED = (
    *("resp_p", "service", "conn_state", "history", "duration"),
    *("ctx_flows", "ctx_rate", "ctx_failed", "ctx_fresh", "ctx_same_port"),
)


def make_base(
    size: str,
    template_name: str,
    out: Path,
    *,
    epochs: int = 4,
    seed: int = 0,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> float:
    """Pretrain an embedded model and write its base; the final loss in nats a word.

    Raises:
        InputError: ``size`` is not an embedded one, or the template's prompts vary in length.
    """
    if size not in SIZES:
        raise InputError(f"'{size}' is not embedded", hint=f"choose from {', '.join(SIZES)}")
    template = get_template(template_name)
    texts = pretraining_texts(template, seed=seed)
    if len({text.count(" ") for text in texts}) > 1:
        raise InputError(
            f"prompts of '{template_name}' vary in length", hint="choose compact or context"
        )
    torch.set_num_threads(1)
    classifier = build(
        size, template=template, labels=("Benign", "Malicious"), seed=seed, pretrained=False
    )
    loss = pretrain(classifier, texts, epochs=epochs, seed=seed, on_step=on_step)
    network: Any = classifier.model
    save_base(network.model.decoder, template, out)
    return loss


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


def pretraining_texts(template: Template, *, seed: int) -> list[str]:
    """Distinct prompts of synthetic fleets, as they are and varied; no label is read."""
    texts: set[str] = set()
    for number, fleet_seed in enumerate(_FLEET_SEEDS):
        with tempfile.TemporaryDirectory(prefix="gradsense-") as folder:
            write_fleet(Path(folder), sites=_SITES, flows=_FLOWS, seed=fleet_seed)
            flows = load(Path(folder), cap=0, seed=0).flows
        texts |= set(template.render(flows))
        texts |= set(template.render(varied(flows, np.random.default_rng([seed, number]))))
    return sorted(texts)


def varied(flows: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """Flows that no generator's profile has, so that the base learns words and not our devices.

    Sizes of a flow are scaled together, and durations alone, by log-normal factors; then a third
    of each other property is swapped between flows.
    """
    scale = pl.Series(rng.lognormal(0.0, 1.5, flows.height))
    stretch = pl.Series(rng.lognormal(0.0, 2.0, flows.height))
    flows = flows.with_columns(
        *[(pl.col(name) * scale).round().cast(pl.Int64) for name in _SIZES_OF_ONE_FLOW],
        pl.col("duration") * stretch,
    )
    swapped = []
    for name in _SHUFFLED:
        rows = np.arange(flows.height)
        chosen = rng.random(flows.height) < 1 / 3
        rows[chosen] = rng.permutation(rows[chosen])
        swapped.append(flows[name].gather(rows))
    return flows.with_columns(swapped)
