"""gsfs, ours: sites read, and send sufficient statistics of what the fleet does not know yet.

    client    reads its records through the frozen base, each distinct one once. With features x, a
              constant 1 and a one-hot label y, S_k = Σ [x; y][x; y]ᵀ, sent as a factor R, RᵀR ≈ S_k
    trigger   the gradient of the global head's cross-entropy over some class of the records that
              were not reported is large: the fleet does not explain that class
    pool      30 % of the clients, or 2 s
    rule      S = Σ_k w_k S_k over sites, each of no more records than most of them have, and the
              head that ridge regression finds from S

The sum has no order, no staleness and no drift, so no label skew bends it and whoever sent is
counted once, late or not. Unrounded, the head is that of pooled least squares (Fed3R: Fanì et al.
2024, arXiv 2406.01116; AFL: He et al. 2025). The head over all tokens, the factor as payload and
the sensing are ours. ``learning.statistics`` has the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gradsense.errors import BadSampleCount, NormTooLarge
from gradsense.federation.algorithm import Algorithm, LocalState, Outgoing, Plan, Readout
from gradsense.federation.contributions import Contribution, Contributions
from gradsense.federation.parts import NonNegative, Share, part
from gradsense.federation.pools import Pool, Pooled, Quorum
from gradsense.federation.rules.rule import Aggregated, SumRule
from gradsense.federation.transforms.transform import Codec
from gradsense.federation.transforms.uniform import Uniform
from gradsense.federation.triggers import Sensed, Trigger, Unexplained
from gradsense.federation.update import ShapeBound, ShapeBounds, Update
from gradsense.learning.learner import FlowCost, Learner, ServerState, Tensors, norm_of
from gradsense.learning.statistics import (
    HEAD_BIAS,
    HEAD_WEIGHT,
    STATISTICS,
    FleetStatistics,
    joined,
    solve,
)
from gradsense.learning.structure import check_structure

#: A lossy codec rounds a factor, up as well as down: of one record alone by up to 28 %.
_ROUNDED = 2.0
#: What S is counted in: the square of what R is rounded to, far below any codec's rounding.
UNIT = 2.0**-34
#: So many records fit into the 53 bits of a float64, and 20,000 sites of them into the 64 of S.
_MOST_RECORDS = 512.0
#: Of less than one record, rounded, are no statistics; and nobody makes others count for less.
_LEAST_RECORDS = 0.5


@part
class RidgeSum(SumRule):
    """Ridge regression on one-hot labels over all sites' statistics (``statistics.solve``).

    S is a sum of whole numbers, in units of 2^-34, one term for each site. So it is the same in
    whatever order they came, and a site can be taken out of it without a trace.

    Who says that it has read a million flows must not outweigh the others, and a site that reads
    much must not drown those that read little. So no site counts for more records than the ``cap``
    quantile of all sites' has, rounded down to a power of two: the terms are made anew when it
    changes, which is seldom.

    Attributes:
        regularisation: λ of ``statistics.solve``.
        sharpness: what the regression's outputs, near 0 and 1, are multiplied with to become
            logits. It changes no verdict, only how sure the softmax sounds: with 10, an output
            of 1 against nine of 0 reads as 99.96 %.
        cap: a quantile of the sites' records. One that has read more weighs as much as if it had
            read so many of the same kind; None: every site counts for what it has read.
    """

    name: ClassVar[str] = "ridge-sum"

    regularisation: Annotated[float, Field(ge=1e-12)] = 1e-4
    sharpness: Annotated[float, Field(gt=0, le=1e6)] = 10.0
    cap: Share | None = 0.25

    def init(self, tensors: Tensors) -> ServerState:
        classes, features = tensors[HEAD_WEIGHT].shape
        width = features + 1 + classes
        return {STATISTICS: np.zeros((width, width), dtype=np.int64)}

    def contributions(self, tensors: Tensors, pooled: Pooled) -> dict[str, Contribution]:
        found: dict[str, Contribution] = {}
        constant = -len(tensors[HEAD_BIAS]) - 1
        for entry in pooled.updates:
            client, factor = entry.update.client, entry.update.delta[STATISTICS]
            before, updates = found.get(client) or pooled.contributions.get(client), 1
            if before is not None:
                factor = joined(before.tensors[STATISTICS], factor)
                updates += before.updates
            records = float(np.square(factor[:, constant], dtype=np.float64).sum())
            found[client] = Contribution(updates, records, {STATISTICS: factor})
        return found

    def total(self, tensors: Tensors, contributions: Contributions) -> ServerState:
        total = self.init(tensors)[STATISTICS]
        for client, weight in self.weights(contributions.records).items():
            total += _term(contributions[client], weight)
        return {STATISTICS: total}

    def weights(self, records: Mapping[str, float]) -> dict[str, float]:
        """What each record of a site counts for.

        Args:
            records: site to those that it has contributed.
        """
        if self.cap is None or not records:
            return dict.fromkeys(records, 1.0)
        ordered = sorted(records.values())
        _, exponent = math.frexp(ordered[int(self.cap * (len(ordered) - 1))])
        most = max(1.0, 2.0 ** (exponent - 1))
        scale = min(1.0, _MOST_RECORDS / most)  # of all alike, which changes no head
        return {site: scale * most / max(number, most) for site, number in records.items()}

    def changed(
        self,
        tensors: Tensors,
        state: ServerState,
        contributions: Contributions,
        changes: Mapping[str, Contribution | None],
    ) -> Aggregated:
        """As ``SumRule.changed``; the state holds S, int64 in units of ``UNIT``."""
        records = dict(contributions.records)
        before = self.weights(records)
        for client, own in changes.items():
            records.pop(client, None)
            if own is not None:
                records[client] = own.records
        after = self.weights(records)
        total = state[STATISTICS].copy()
        for client in before.keys() | after.keys():
            if client not in changes and before[client] == after[client]:
                continue
            old = contributions.get(client)
            new = changes.get(client, old)
            if old is not None:
                total -= _term(old, before[client])
            if new is not None:
                total += _term(new, after[client])
        return self._solved(tensors, total)

    def _solved(self, tensors: Tensors, total: NDArray[np.int64]) -> Aggregated:
        weight, bias = solve(
            total.astype(np.float64) * UNIT, len(tensors[HEAD_BIAS]), self.regularisation
        )
        head = {
            HEAD_WEIGHT: (self.sharpness * weight).astype(np.float32),
            HEAD_BIAS: (self.sharpness * bias).astype(np.float32),
        }
        return dict(tensors) | head, {STATISTICS: total}


def _term(contribution: Contribution, weight: float) -> NDArray[np.int64]:
    factor = contribution.tensors[STATISTICS].astype(np.float64)
    # Products and sums of whole numbers are exact in float64, however BLAS orders them, up to 2^53.
    loudest = weight / UNIT * float(np.square(factor).sum(axis=0).max(initial=0.0))
    weight *= min(1.0, 2.0**53 / max(loudest, 1.0))
    whole = np.rint(factor * math.sqrt(weight / UNIT))
    return (whole.T @ whole).astype(np.int64)


@dataclass
class ReadingState(LocalState):
    """How far a site has read, and how far it has reported, in steps of its first epoch.

    ``local`` is the adopted model: nobody changes it here.
    """

    read: int = 0
    reported: int = 0
    reported_before: int = 0  # the last upload


@part
class Gsfs(Algorithm[ReadingState]):
    """Reads once, sends what is new, and lets the cloud solve for the head.

    Attributes:
        tolerance: of ``statistics.factorise``.
        state_width, state_length: of ``structure.check_structure``. A run is opened with its
            base's.
    """

    name: ClassVar[str] = "gsfs"
    summary: ClassVar[str] = (
        "sites send the statistics of what is new to the fleet; the cloud solves for the head"
    )
    trains: ClassVar[bool] = False

    trigger: Trigger = Unexplained()
    pool: Pool = Quorum(0.3, deadline_s=2.0)
    rule: RidgeSum = RidgeSum()
    codec: Codec = Uniform()
    readout: Readout = "tokens"
    frozen: Literal[True] = True
    tolerance: Annotated[float, Field(ge=0, le=0.999)] = 0.005
    state_width: Annotated[int, Field(ge=0)] = 0
    state_length: NonNegative = 0.0

    # At the client --------------------------------------------------------------------------

    def begin(self) -> ReadingState:
        return ReadingState(sensing=self.trigger.init())

    def adopt(self, state: ReadingState, tensors: Tensors) -> None:
        state.local, state.fresh = tensors, True

    def plan(self, state: ReadingState, learner: Learner, round_steps: int, budget: int) -> Plan:
        """No steps where all was reported, or the present model explains the rest."""
        until = min(learner.steps_per_epoch, state.read + round_steps)
        news = until > state.read or (state.fresh and until > state.reported)
        return Plan(min(budget, until - state.reported) if news else 0)

    def local_round(
        self, state: ReadingState, learner: Learner, steps: int, *, first_step: int, rounds: int
    ) -> Outgoing | None:
        seen = learner.observe(
            state.local, first_step=state.reported, steps=steps, tolerance=self.tolerance
        )
        state.fresh = False
        state.read = max(state.read, state.reported + steps)
        sensed = Sensed(seen.gradient_norms, None, rounds)
        state.sensing, decision = self.trigger.sense(state.sensing, sensed)
        if decision.reason is None:
            return None
        state.reported_before, state.reported = state.reported, state.reported + steps
        return Outgoing(decision.reason, {STATISTICS: seen.factor}, seen.flows)

    def refused(self, state: ReadingState) -> None:
        """What was in the last upload counts as never reported and travels again."""
        if state.reported > state.reported_before:
            state.reported, state.fresh = state.reported_before, True

    def reported_steps(self, state: ReadingState) -> int:
        return state.reported

    def flop(self, cost: FlowCost, learner: Learner, plan: Plan) -> float:
        return cost.reading(learner.distinct * (plan.steps / learner.steps_per_epoch))

    # In the cloud ---------------------------------------------------------------------------

    def versions_back(self, version: int, max_staleness: int) -> int:
        """Any: the sum has no order, and what a site that was away for long sends is still news."""
        return version

    def shape_bounds(self, tensors: Tensors, state: ServerState) -> ShapeBounds:
        """As many rows as the site saw directions, but never more than there are."""
        width = len(state[STATISTICS])
        return {STATISTICS: ShapeBound((width, width), fewer_rows=True)}

    def norm(self, update: Update, tensors: Tensors) -> float:
        """The root of the mean square of the records that R is of.

        The squares of R's last columns are counts: the constant's and, together, the labels' are
        the records that R is of. So a site that says it read ten cannot weigh as much as a hundred.
        """
        factor, classes = update.delta[STATISTICS], len(tensors[HEAD_BIAS])
        squares = np.square(factor, dtype=np.float64)
        most = max(squares[:, -classes - 1].sum(), squares[:, -classes:].sum())
        if most > _ROUNDED * update.samples:
            raise NormTooLarge(f"statistics of {most:.0f} records, where it read {update.samples}")
        if most < _LEAST_RECORDS:
            raise BadSampleCount(f"{update.samples} flows read, statistics of {most:.2g}")
        if not self.transforms:  # noise leaves no structure
            check_structure(
                factor,
                update.samples,
                classes,
                off=self.codec.off(factor),
                tolerance=self.tolerance,
                state_width=self.state_width,
                state_length=self.state_length,
            )
        return norm_of(update.delta) / math.sqrt(most)

    def statistics(self, state: ServerState) -> FleetStatistics | None:
        matrix = state[STATISTICS] * UNIT
        if not matrix.any():
            return None
        return FleetStatistics(matrix, self.rule.regularisation, self.rule.sharpness)
