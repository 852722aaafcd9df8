"""How the fleets of ``poisoning`` learn, and what their coordinators refuse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.federated.poisoning_fedavg import averaged
from benchmarks.federated.poisoning_fleet import Fleet, Flows, lie
from gradsense.errors import UpdateRefused
from gradsense.federation.algorithms.gsfs import Gsfs, RidgeSum
from gradsense.federation.bounds import Bounds
from gradsense.federation.pools import Pooled, PooledUpdate
from gradsense.federation.rules import Rule, rules
from gradsense.federation.update import Update, exactly
from gradsense.learning.screening import contradictions
from gradsense.learning.statistics import HEAD_BIAS, HEAD_WEIGHT, STATISTICS, factorise, solve

#: nano's states, and a half more than the longest of its flows.
_WIDTH, _LENGTH = 80, 207.0
#: A contradiction that no honest fleet has shown.
_HONEST = 0.1
_BEFORE = 1e3  # the norm that a coordinator once allowed


@dataclass(frozen=True)
class Method:
    """One way to run a fleet.

    Attributes:
        rule: how the cloud aggregates.
        checked: refuse what cannot be, and bound norms and samples.
        watched: a person revokes whom the contradictions point to.
    """

    rule: Rule
    checked: bool = True
    watched: bool = False


METHODS = {
    "gsfs, before": Method(RidgeSum(cap=None), checked=False),
    "gsfs": Method(RidgeSum()),
    "gsfs, watched": Method(RidgeSum(), watched=True),
    "fedavg, before": Method(rules()["mean"], checked=False),
    "fedavg": Method(rules()["mean"]),
    **{
        f"fedavg, {name}": Method(rules()[name])
        for name in ("clipped-mean", "trimmed-mean", "median", "krum")
    },
}


@dataclass(frozen=True)
class Made:
    """The head of a whole run, and what the coordinator did."""

    weight: NDArray[Any]
    bias: NDArray[Any]
    refused: int = 0
    out: tuple[str, ...] = ()
    contradictions: dict[str, float] = field(default_factory=dict)


def run(method: Method, fleet: Fleet, attackers: set[str], attack: str | None, seed: int) -> Made:
    """Run a fleet; without an attack the attackers do not take part."""
    if isinstance(method.rule, RidgeSum):
        return _summed(method, method.rule, fleet, attackers, attack)
    found = averaged(
        fleet, attackers, attack, rule=method.rule, seed=seed, bounds=_bounds(method.checked)
    )
    return Made(found.weight, found.bias, found.refused)


def _bounds(checked: bool) -> Bounds:
    return Bounds(_BEFORE, norm_ratio=4.0, max_samples=500) if checked else Bounds(_BEFORE)


# gsfs ---------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def honest_factors(fleet: Fleet) -> dict[str, NDArray[np.float32]]:
    """Every site's R of its true flows."""
    return {name: factor_of(own, len(fleet.classes)) for name, own in fleet.sites.items()}


def factor_of(flows: Flows, classes: int) -> NDArray[np.float32]:
    """R of these flows as it arrives."""
    algorithm = Gsfs()
    rows = np.hstack(
        [flows.states, np.ones((len(flows.labels), 1)), np.eye(classes)[flows.labels]]
    ).astype(np.float64)
    sent = {STATISTICS: factorise(np.sqrt(flows.counts)[:, None] * rows, algorithm.tolerance)}
    arrived: NDArray[np.float32] = algorithm.codec.unpack(
        algorithm.codec.pack(sent), exactly(sent)
    )[STATISTICS]
    return arrived


def bent(
    factor: NDArray[np.float32], attack: str, classes: int, ratio: float
) -> NDArray[np.float32]:
    """What an attacker sends instead of a factor."""
    features = slice(0, -classes - 1)
    changed, size = factor.copy(), math.sqrt(float(np.square(factor).mean()))
    if attack == "scaled to the bound":
        changed[:, features] *= ratio
    elif attack == "random":
        changed = np.random.default_rng(0).normal(size=factor.shape).astype(np.float32) * size
    elif attack == "negated":
        changed[:, -classes:] *= -1
    elif attack == "constant":
        changed = np.full_like(factor, size)
    return changed


def _summed(
    method: Method, rule: RidgeSum, fleet: Fleet, attackers: set[str], attack: str | None
) -> Made:
    classes, features = len(fleet.classes), fleet.test.shape[1]
    tensors = {
        HEAD_WEIGHT: np.zeros((classes, features), np.float32),
        HEAD_BIAS: np.zeros(classes, np.float32),
    }
    algorithm = Gsfs(rule=rule, state_width=_WIDTH, state_length=_LENGTH)
    honest = honest_factors(fleet)
    updates, norms, refused = [], dict[str, float](), 0
    for name in sorted(fleet.sites, key=lambda name: (name in attackers, name)):
        flows, factor = fleet.sites[name], honest[name]
        if name in attackers:
            if attack is None:
                continue
            flows = lie(fleet, attack, flows)
            factor = factor_of(flows, classes)
            usual = math.sqrt(features / _WIDTH * _LENGTH / 1.5)
            factor = bent(factor, attack, classes, 4.0 if method.checked else _BEFORE / usual)
        update = Update(name, 0, 1, int(flows.counts.sum()), "news", {STATISTICS: factor})
        try:
            if method.checked:
                norm = algorithm.norm(update, tensors)
                if norm > _bounds(True).norm(name, norms, tensors):
                    raise UpdateRefused("too loud")
                norms[name] = norm
        except UpdateRefused:
            refused += 1
        else:
            updates.append(PooledUpdate(update, 0.0, 0))
    given = rule.contributions(tensors, Pooled(updates, {}))
    factors = {name: own.tensors[STATISTICS] for name, own in given.items()}
    records = {name: own.records for name, own in given.items()}
    out: list[str] = []
    if method.watched:
        out = revoked(rule, factors, records, classes)
        records = {name: number for name, number in records.items() if name not in out}
    weights = rule.weights(records)
    total = np.zeros((features + 1 + classes,) * 2)
    for name, each in weights.items():
        rows = factors[name].astype(np.float64) * math.sqrt(each)
        total += rows.T @ rows
    weight, bias = solve(total, classes, rule.regularisation)
    flags = {}
    if method.checked and attack:
        flags = contradictions(factors.__getitem__, weights, classes, rule.regularisation)
    return Made(weight, bias, refused, tuple(out), flags)


def revoked(
    rule: RidgeSum,
    factors: Mapping[str, NDArray[np.float32]],
    records: Mapping[str, float],
    classes: int,
) -> list[str]:
    """Whom a person revokes who knows no more than ``fleet status`` says.

    Those with the highest contradictions (four fifths of the highest) go, and the others are looked
    at again, until none is above what no honest site reaches, or a third of the fleet is gone.
    """
    left, out = dict(records), list[str]()
    while True:
        scores = contradictions(
            factors.__getitem__, rule.weights(left), classes, rule.regularisation
        )
        worst = max(scores.values(), default=0.0)
        bad = [site for site in scores if scores[site] > max(_HONEST, 0.8 * worst)]
        bad = sorted(bad, key=lambda site: -scores[site])[: len(records) // 3 - len(out)]
        if not bad:
            return out
        out += bad
        left = {site: number for site, number in left.items() if site not in bad}
