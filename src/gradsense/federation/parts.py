"""Parts of an algorithm: frozen values whose fields carry their own bounds.

Here are the two that say when: triggers (when does a client upload?) and pools (when does the cloud
aggregate?). Rules and transforms are parts too, and so is an algorithm itself.

A trigger has three verbs over a small state that the client keeps: ``init`` makes the state,
``sense`` looks at one local round and decides, ``reset`` follows an upload or a broadcast. The
state is a flat JSON-able mapping, so it survives a kill with the client.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import Annotated, ClassVar, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from gradsense.federation.update import Update

T = TypeVar("T")

Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
AtLeastOne = Annotated[int, Field(ge=1)]

_CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def part(cls: type[T]) -> type[T]:
    """A frozen dataclass that checks the types and bounds of its fields when it is made."""
    made: type[T] = dataclass(frozen=True, config=_CONFIG)(cls)  # type: ignore[assignment]
    return made


# Triggers -----------------------------------------------------------------------------------

#: A trigger's.
State = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Sensed:
    """What a client measured in one local round (one uninterrupted piece of local training).

    Attributes:
        gradient_norms: layer to ‖g‖, the batch gradient's L2 norm averaged over the round's steps;
            for a site that only reads, class to its relative norm (``learner.Observed``).
        score: M(θ_k; D_k^val), the validation loss after the round; None if not asked for.
        rounds: local rounds since the last upload, this one included.
    """

    gradient_norms: Mapping[str, float]
    score: float | None
    rounds: int


@dataclasses.dataclass(frozen=True)
class Decision:
    """Upload or not.

    Attributes:
        reason: why to upload; None: do not.
        layers: the layers that should travel; None means all.
    """

    reason: str | None
    layers: tuple[str, ...] | None = None


SILENT = Decision(None)


@part
class Trigger(ABC):
    """The interface of every trigger."""

    @property
    def needs_score(self) -> bool:
        """Whether ``sense`` reads ``Sensed.score``; taking it costs a pass over D_k^val."""
        return False

    def init(self) -> State:
        """The state of a client that has not trained yet."""
        return {}

    @abstractmethod
    def sense(self, state: State, seen: Sensed) -> tuple[State, Decision]:
        """Take in one local round; return the new state and the decision."""

    def reset(self, state: State, score: float | None) -> State:
        """Move the reference point after an upload or a broadcast.

        ``score`` is M(θ_ref; D_k^val) of the new reference; None if ``needs_score`` is False.
        """
        return state


@part
class EveryRound(Trigger):
    """Upload after every local round: FedAvg and FedOpt (E epochs), FedBuff (K steps)."""

    def sense(self, state: State, seen: Sensed) -> tuple[State, Decision]:
        return state, Decision("round")


@part
class Performance(Trigger):
    """Upload when the validation metric has moved since the last reference point (eq 7-8).

    Eq 7: ΔM_k = |M(θ_k) − M(θ_k,ref)|, with M the validation loss in nats. Eq 8: upload if
    ΔM_k > δ_k^perf. The paper calls δ_k^perf adaptive and says no more; here it follows the
    client's own history, δ ← α δ + (1−α) ΔM_k after each look, so that what is usual for a site
    stops being news.

    Attributes:
        delta: δ before the first look, in nats.
        alpha: memory of δ, 0 to 1; 1 keeps it fixed.
        floor: δ never falls below this, or a converged site would report its noise.
    """

    delta: NonNegative = 0.05
    alpha: Share = 0.9
    floor: NonNegative = 0.0

    @property
    def needs_score(self) -> bool:
        return True

    def init(self) -> State:
        return {"delta": self.delta}

    def sense(self, state: State, seen: Sensed) -> tuple[State, Decision]:
        if seen.score is None:
            raise ValueError("Performance needs Sensed.score")
        moved = abs(seen.score - state["reference"])
        decision = Decision("performance") if moved > state["delta"] else SILENT
        delta = max(self.floor, self.alpha * state["delta"] + (1 - self.alpha) * moved)
        return {**state, "delta": delta}, decision

    def reset(self, state: State, score: float | None) -> State:
        if score is None:
            raise ValueError("Performance needs the score of the new reference point")
        return {**state, "reference": score}


@part
class Gradient(Trigger):
    """Upload when a layer's gradient is larger than its own history says (eq 9-11).

    Per layer: μ ← α μ + (1−α) ‖g‖ (eq 9); σ ← α σ + (1−α) |‖g‖ − μ| (eq 10); δ = μ + β σ
    (eq 11). Upload if any layer has ‖g‖ > δ. The first round only sets μ: with no history
    nothing can be unusual. The history outlives an upload.

    Attributes:
        alpha: memory of μ and σ, 0 to 1.
        beta: how many mean deviations above the mean are news.
    """

    alpha: Share = 0.9
    beta: NonNegative = 2.0

    def sense(self, state: State, seen: Sensed) -> tuple[State, Decision]:
        new, loud = dict(state), []
        for layer, norm in seen.gradient_norms.items():
            first = f"mu:{layer}" not in state
            mean = norm if first else self.alpha * state[f"mu:{layer}"] + (1 - self.alpha) * norm
            spread = self.alpha * state.get(f"sigma:{layer}", 0.0)
            spread += (1 - self.alpha) * abs(norm - mean)
            new[f"mu:{layer}"], new[f"sigma:{layer}"] = mean, spread
            if norm > mean + self.beta * spread:
                loud.append(layer)
        return new, Decision("gradient", tuple(loud)) if loud else SILENT


@part
class Unexplained(Trigger):
    """Upload when some class's records still pull at the head (for sites that only read).

    There the norms are by class and relative: 1 where the global head knows nothing of a class,
    0 where it cannot do better. The loudest class decides, so a few flows of a rare attack are
    not drowned by a site's thousand benign ones.

    Attributes:
        floor: relative norms up to this are no news. 0 reports everything.
    """

    floor: NonNegative = 0.1

    def sense(self, state: State, seen: Sensed) -> tuple[State, Decision]:
        loud = [name for name, norm in seen.gradient_norms.items() if norm > self.floor]
        return state, Decision("gradient") if loud else SILENT


@part
class Silence(Trigger):
    """Upload after so many rounds without one, so that no site is left out for ever.

    Not in the paper, which does not say what happens when fewer than 60 % ever trigger.
    """

    rounds: AtLeastOne = 3

    def sense(self, state: State, seen: Sensed) -> tuple[State, Decision]:
        return state, Decision("silence") if seen.rounds >= self.rounds else SILENT


@part
class AnyOf(Trigger):
    """Upload when any of these triggers says so; the first that fires gives the reason.

    A trigger that names no layers wants all of them to travel. Only when every trigger that
    fired named layers is the upload partial.
    """

    triggers: tuple[Trigger, ...]

    @property
    def needs_score(self) -> bool:
        return any(trigger.needs_score for trigger in self.triggers)

    def init(self) -> State:
        return {
            f"{index}/{key}": value
            for index, trigger in enumerate(self.triggers)
            for key, value in trigger.init().items()
        }

    def _own(self, state: State, index: int) -> State:
        prefix = f"{index}/"
        return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

    def sense(self, state: State, seen: Sensed) -> tuple[State, Decision]:
        new: State = {}
        fired = []
        for index, trigger in enumerate(self.triggers):
            own, decision = trigger.sense(self._own(state, index), seen)
            new |= {f"{index}/{key}": value for key, value in own.items()}
            if decision.reason is not None:
                fired.append(decision)
        if not fired:
            return new, SILENT
        if any(decision.layers is None for decision in fired):
            return new, Decision(fired[0].reason)
        layers = dict.fromkeys(layer for decision in fired for layer in decision.layers or ())
        return new, Decision(fired[0].reason, tuple(layers))

    def reset(self, state: State, score: float | None) -> State:
        return {
            f"{index}/{key}": value
            for index, trigger in enumerate(self.triggers)
            for key, value in trigger.reset(self._own(state, index), score).items()
        }


# Pools --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PooledUpdate:
    """One entry of the pool, (Δθ_k, time_k, k) of eq 12.

    Attributes:
        update: what arrived.
        arrived_s: when, in the engine's seconds.
        staleness: global versions issued since the update's base, counted on arrival.
    """

    update: Update
    arrived_s: float
    staleness: int


@dataclasses.dataclass(frozen=True)
class Pooled:
    """What is aggregated.

    Attributes:
        updates: at least one, in the order of arrival.
        submissions: updates accepted from each client since the run began, these included.
    """

    updates: Sequence[PooledUpdate]
    submissions: Mapping[str, int]


@part
class Pool(ABC):
    """The interface of every pool.

    Attributes:
        synchronous: an update must start from the current model; a later one is refused.
        deadline_s: seconds from the pool's first update after which it is aggregated as it is;
            None: never.
    """

    synchronous: ClassVar[bool] = False
    deadline_s: NonNegative | None = Field(default=None, kw_only=True)

    @abstractmethod
    def needed(self, invited: int) -> int:
        """How many distinct clients, or updates, the pool waits for, of so many invited."""

    @abstractmethod
    def ready(self, pooled: Sequence[PooledUpdate], invited: Collection[str]) -> bool:
        """Whether to aggregate now. ``invited`` are the connected clients asked to take part."""


def senders(pooled: Sequence[PooledUpdate]) -> set[str]:
    """The distinct clients in a pool."""
    return {entry.update.client for entry in pooled}


@part
class AllInvited(Pool):
    """Wait for everybody who was asked and is still connected: FedAvg, FedOpt."""

    synchronous: ClassVar[bool] = True

    def needed(self, invited: int) -> int:
        return max(1, invited)

    def ready(self, pooled: Sequence[PooledUpdate], invited: Collection[str]) -> bool:
        # Counted first: a fleet of thousands is not compared by name at every update.
        enough = len(pooled) >= self.needed(len(invited))
        return enough and senders(pooled) >= set(invited)


@part
class Quorum(Pool):
    """Wait for a share of distinct clients, 60 % in the paper (eq 12).

    The paper's pool can wait for ever when too few clients ever trigger; ``deadline_s`` ends that.

    >>> Quorum(0.6, deadline_s=30.0).needed(invited=5)
    3
    """

    share: Share = 0.6

    def needed(self, invited: int) -> int:
        # The share as it is written: 0.55 of 100 is 55, although 0.55 * 100 is a little more.
        return max(1, math.ceil(Fraction(repr(self.share)) * invited))

    def ready(self, pooled: Sequence[PooledUpdate], invited: Collection[str]) -> bool:
        needed = self.needed(len(invited))
        return len(pooled) >= needed and len(senders(pooled)) >= needed


@part
class Count(Pool):
    """Wait for K updates, whoever sent them: FedBuff (Nguyen et al. 2022, arXiv 2106.06639).

    A fleet of fewer than K clients would fill its pool with repeats, so K never exceeds it.
    """

    updates: AtLeastOne = 10

    def needed(self, invited: int) -> int:
        return max(1, min(self.updates, invited))

    def ready(self, pooled: Sequence[PooledUpdate], invited: Collection[str]) -> bool:
        return len(pooled) >= self.needed(len(invited))
