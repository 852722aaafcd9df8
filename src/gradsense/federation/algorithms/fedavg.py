"""FedAvg (McMahan et al. 2017, arXiv 1602.05629), the paper's eq 1-2.

client    θ_{k,t+1} = θ_{k,t} − η ∇L(θ_{k,t}, D_k), repeated for E epochs     (eq 1)
trigger   after every local round
pool      all who were asked and are still there
rule      θ ← θ + Σ_k |D_k| Δθ_k / Σ_k |D_k|                                  (eq 2)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from gradsense.federation.algorithm import Algorithm, LocalState, Outgoing, Plan
from gradsense.federation.parts import AtLeastOne, part
from gradsense.federation.pools import AllInvited, Pool
from gradsense.federation.rules.rule import DeltaRule, WeightedMean
from gradsense.federation.triggers import EveryRound, Sensed, Trigger
from gradsense.learning.learner import Learner, Tensors, Trained, layer_of


@dataclass
class TrainingState(LocalState):
    """``local`` is θ_k, ``reference`` the adopted global model plus all that was sent since.

    Their difference is the unsent movement. After an upload the reference moves by exactly what
    arrives, so a layer that stayed behind, or what a lossy codec rounded away, remains in the
    difference and travels later (error feedback).
    """

    reference: Tensors = field(default_factory=dict)


@part
class FedAvg(Algorithm[TrainingState]):
    """Every client trains and uploads its movement; the cloud takes the mean.

    Attributes:
        keep_local: put the client's unsent movement on top of a new global model. False
            overwrites it, as eq 15 does.
        partial: upload only the layers that triggered; the rest stays at the client and grows.
        looks: decisions for each E local epochs. With 5, a local round is a fifth of that long and
            the trigger looks five times as often; the compute that may be spent is the same.
    """

    name: ClassVar[str] = "fedavg"
    summary: ClassVar[str] = "everyone trains, then the mean weighted by samples (eq 1-2)"

    trigger: Trigger = EveryRound()
    pool: Pool = AllInvited()
    rule: DeltaRule = WeightedMean()
    keep_local: bool = False
    partial: bool = False
    looks: AtLeastOne = 1

    # At the client --------------------------------------------------------------------------

    def begin(self) -> TrainingState:
        return TrainingState(sensing=self.trigger.init())

    def adopt(self, state: TrainingState, tensors: Tensors) -> None:
        local, reference = state.local, state.reference
        state.local = tensors
        if self.keep_local and local and local is not reference:
            state.local = {
                name: tensor
                if local[name] is reference[name]
                else tensor + (local[name] - reference[name])
                for name, tensor in tensors.items()
            }
        state.reference = tensors
        state.fresh = True

    def plan(self, state: TrainingState, learner: Learner, round_steps: int, budget: int) -> Plan:
        passes = 1 + state.fresh if self.trigger.needs_score else 0
        return Plan(min(budget, max(1, round(round_steps / self.looks))), passes)

    def local_round(
        self, state: TrainingState, learner: Learner, steps: int, *, first_step: int, rounds: int
    ) -> Outgoing | None:
        asks = self.trigger.needs_score
        if state.fresh:  # the broadcast moved the reference: eq 7 compares with M(θ_ref) from here
            score = learner.score(state.reference) if asks else None
            state.sensing = self.trigger.reset(state.sensing, score)
            state.fresh = False
        trained = self.train(state, learner, first_step, steps)
        state.local = trained.tensors
        score = learner.score(state.local) if asks else None
        seen = Sensed(trained.gradient_norms, score, rounds, trained.step_norms)
        state.sensing, decision = self.trigger.sense(state.sensing, seen)
        if decision.reason is None:
            return None
        chosen = decision.layers if self.partial else None
        movement = {
            name: tensor - state.reference[name]
            for name, tensor in state.local.items()
            if chosen is None or layer_of(name) in chosen
        }
        return Outgoing(decision.reason, movement, learner.samples, score)

    def train(self, state: TrainingState, learner: Learner, first_step: int, steps: int) -> Trained:
        """The local steps of one round (eq 1), from ``state.local``."""
        return learner.train(state.local, first_step=first_step, steps=steps)

    def sent(self, state: TrainingState, outgoing: Outgoing, arrives: Tensors) -> None:
        state.sensing = self.trigger.reset(state.sensing, outgoing.score)
        # What was sent exactly needs no second copy: the reference is then θ itself.
        exact = arrives is outgoing.tensors
        kept = state.reference
        sent = state.local if exact else {name: kept[name] + d for name, d in arrives.items()}
        state.reference = {
            name: sent[name] if name in arrives else kept[name] for name in state.local
        }
