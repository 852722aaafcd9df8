"""The paper's GSFS (Otoum, Asad, Nayak 2025, arXiv 2504.16032), in two readings.

    client    local steps                                                          (eq 1)
    trigger   the validation metric has moved since the last reference point       (eq 7-8)
              or a layer's gradient is larger than its own history says            (eq 9-11)
    pool      60 % of all clients, for ever                                        (eq 12)
    rule      θ ← θ + Σ_k α_k Δθ_k, α_k by submission frequency                    (eq 13-14)
    broadcast every client takes θ and resets its reference                        (eq 15)

``gsfs-literal`` takes eq 9-11 step by step, as they are written: every batch gradient enters the
history and is held against it, and a local round in which any step fired ends in an upload. One
step in a few is above two mean deviations, so nearly every round does. ``gsfs-paper`` looks once
a local round, at the norm averaged over its steps: what batches draw by chance is no news.

What the paper does not fix, alike in both: M is the validation loss; δ^perf starts at 0.05 nats
and follows the client's own history; α = 0.9 and β = 2; five decisions for each E local epochs,
since with one a client has too few to bring ten aggregations about; a client's several updates in
one pool are pieces of one movement; after an upload it trains on.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from gradsense.federation.algorithms.fedavg import FedAvg
from gradsense.federation.parts import AtLeastOne, NonNegative, Share, part
from gradsense.federation.pools import Pool, Pooled, Quorum
from gradsense.federation.rules.rule import DeltaRule, WeightedSum
from gradsense.federation.triggers import AnyOf, Gradient, Performance, Trigger


@part
class FrequencyMean(WeightedSum):
    """Eq 13-14: θ ← θ + Σ α_k Δθ_k, α_k proportional to k's submission frequency.

    Read literally, the share of all submissions so far: α_k = s_k / Σ_j s_j over the pool's
    distinct clients. Several updates of one client are consecutive pieces of one movement, so
    each carries the whole α_k. ``gsfs-tune`` tempers this in ways on which the paper is silent.

    Attributes:
        samples_power: multiply the weight by |D_k|^p. 0 is the paper; 0.5 listens to large sites
            without letting them drown the small.
        frequency_power: use s_k^p. 1 is the paper, 0 ignores frequency.
        frequency_bound: s_k counts at most this many times the pool's smallest; None is the
            paper. It keeps a frequent uploader from deciding for the fleet.
        staleness_exponent: discount (1 + staleness)^-a; 0 is the paper.
        full_step_share: a pool with fewer of the clients that have sent so far than this share
            moves the model in proportion only; 0 is the paper. A deadline can close a pool that
            holds one site, and that site's model must not become everybody's.
    """

    name: ClassVar[str] = "frequency-mean"

    samples_power: NonNegative = 0.0
    frequency_power: NonNegative = 1.0
    frequency_bound: Annotated[float, Field(ge=1)] | None = None
    staleness_exponent: NonNegative = 0.0
    full_step_share: Share = 0.0

    def weights(self, pooled: Pooled) -> list[float]:
        """As eq 14; untempered, they sum to 1 over distinct clients."""
        samples = {entry.update.client: entry.update.samples for entry in pooled.updates}
        frequency = {client: float(pooled.submissions[client]) for client in samples}
        if self.frequency_bound is not None:
            ceiling = self.frequency_bound * min(frequency.values())
            frequency = {client: min(value, ceiling) for client, value in frequency.items()}
        raw = {
            client: value**self.frequency_power * samples[client] ** self.samples_power
            for client, value in frequency.items()
        }
        step = 1.0
        if self.full_step_share > 0:
            step = min(1.0, len(raw) / len(pooled.submissions) / self.full_step_share)
        total = sum(raw.values())
        return [
            step * raw[e.update.client] / total * (1 + e.staleness) ** -self.staleness_exponent
            for e in pooled.updates
        ]


@part
class GsfsPaper(FedAvg):
    """The paper's Gradient Sensing Federated Strategy, with one look a local round."""

    name: ClassVar[str] = "gsfs-paper"
    summary: ClassVar[str] = "the paper's gradient sensing (eq 7-15), one look a local round"

    trigger: Trigger = AnyOf((Performance(), Gradient()))
    pool: Pool = Quorum(0.6, among="all")
    rule: DeltaRule = FrequencyMean()
    wait: bool = False
    looks: AtLeastOne = 5


@part
class GsfsLiteral(GsfsPaper):
    """The paper's strategy with eq 9-11 taken at every step."""

    name: ClassVar[str] = "gsfs-literal"
    summary: ClassVar[str] = "as gsfs-paper, sensing at every step, as eq 9-11 are written"

    trigger: Trigger = AnyOf((Performance(), Gradient(per="step")))
