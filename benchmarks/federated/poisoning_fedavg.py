"""FedAvg in ``poisoning``: sites train the head over the frozen base, and attackers theirs."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from benchmarks.federated.poisoning_fleet import SENT_ATTACKS, Fleet, Flows, lie
from gradsense.federation.bounds import Bounds
from gradsense.federation.pools import Pooled, PooledUpdate
from gradsense.federation.rules import Rule
from gradsense.federation.update import Update
from gradsense.learning.learner import Array, Tensors, norm_of
from gradsense.learning.statistics import HEAD_BIAS, HEAD_WEIGHT

_ROUNDS, _BATCH, _LR, _DECAY = 40, 32, 1e-3, 0.01
#: Of a flow that is all that an attacker has.
_REPEATS = 512


@dataclass(frozen=True)
class Trained:
    """The head after all rounds; ``refused`` attackers had no update taken in the last one."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    refused: int


def averaged(
    fleet: Fleet,
    attackers: set[str],
    attack: str | None,
    *,
    rule: Rule,
    seed: int,
    bounds: Bounds,
) -> Trained:
    """All rounds; without an attack the attackers do not take part."""
    classes, features = len(fleet.classes), fleet.test.shape[1]
    model: Tensors = {
        HEAD_WEIGHT: np.zeros((classes, features), np.float32),
        HEAD_BIAS: np.zeros(classes, np.float32),
    }
    state, norms, refused = rule.init(model), dict[str, float](), 0
    order = sorted(fleet.sites, key=lambda name: (name in attackers, name))
    for number in range(_ROUNDS):
        pooled, refused = [], 0
        for name in order:
            flows, hostile = fleet.sites[name], name in attackers
            if hostile:
                if attack is None:
                    continue
                flows = lie(fleet, attack, flows)
            rng = np.random.default_rng([seed, number, zlib.crc32(name.encode())])
            delta = trained(model, flows, rng)
            allowed = bounds.norm(name, norms, model)
            if hostile and attack in SENT_ATTACKS:
                delta = bent(delta, attack, 0.999 * allowed, rng)
            if (norm := norm_of(delta)) > allowed:
                refused += hostile
                continue
            norms[name] = max(norm, norms.get(name, 0.0))
            samples = min(int(flows.counts.sum()), bounds.max_samples or 1 << 53)
            pooled.append(PooledUpdate(Update(name, number, 1, samples, "round", delta), 0.0, 0))
        model, state = rule.apply(model, Pooled(pooled, {}), state)
    return Trained(model[HEAD_WEIGHT], model[HEAD_BIAS], refused)


def trained(model: Tensors, flows: Flows, rng: np.random.Generator) -> dict[str, Array]:
    """What one epoch moves."""
    rows = np.repeat(np.arange(len(flows.labels)), flows.counts // flows.counts.min())
    if len(rows) == 1:
        rows = np.repeat(rows, _REPEATS)
    rows = rng.permutation(rows)
    states, labels = torch.from_numpy(flows.states), torch.from_numpy(flows.labels)
    weight = torch.from_numpy(model[HEAD_WEIGHT].copy()).requires_grad_()
    bias = torch.from_numpy(model[HEAD_BIAS].copy()).requires_grad_()
    optimizer = torch.optim.AdamW([weight, bias], lr=_LR, weight_decay=_DECAY, fused=True)
    for start in range(0, len(rows), _BATCH):
        batch = torch.from_numpy(rows[start : start + _BATCH])
        loss = functional.cross_entropy(states[batch] @ weight.T + bias, labels[batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {
        HEAD_WEIGHT: weight.detach().numpy() - model[HEAD_WEIGHT],
        HEAD_BIAS: bias.detach().numpy() - model[HEAD_BIAS],
    }


def bent(delta: Tensors, attack: str, allowed: float, rng: np.random.Generator) -> dict[str, Array]:
    """What an attacker sends instead of a movement; all but the negated one as far as allowed."""
    if attack == "negated":
        return {name: -value for name, value in delta.items()}
    if attack == "random":
        delta = {name: rng.normal(size=t.shape).astype(np.float32) for name, t in delta.items()}
    elif attack == "constant":
        delta = {name: np.ones_like(value) for name, value in delta.items()}
    by = np.float32(allowed / norm_of(delta))
    return {name: value * by for name, value in delta.items()}
