"""When does a client upload? The first column of the strategy table.

A trigger is a frozen value with three verbs over a small state that the client keeps: ``init``
makes the state, ``sense`` looks at one visit and decides, ``reset`` follows an upload or a
broadcast. The state is a flat JSON-able mapping, so it survives a kill with the client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

State = dict[str, float]


@dataclass(frozen=True)
class Sensed:
    """What a client noticed during one visit (one uninterrupted piece of local training).

    Attributes:
        gradient_norms: layer to ‖g‖, the batch gradient's L2 norm averaged over the visit's steps;
            for a site that sends moments, class to its relative norm (``learner.Observed``).
        score: M(θ_k; D_k^val), the validation loss after the visit; None if not asked for.
        visits: visits since the last upload, this one included.
    """

    gradient_norms: Mapping[str, float]
    score: float | None
    visits: int


@dataclass(frozen=True)
class Decision:
    """Speak or stay silent.

    Attributes:
        reason: why to upload, or None to stay silent.
        layers: the layers that have something to tell; None means all.
    """

    reason: str | None
    layers: tuple[str, ...] | None = None


SILENT = Decision(None)


class Trigger(Protocol):
    """The interface of every trigger."""

    @property
    def needs_score(self) -> bool:
        """Whether ``sense`` reads ``Sensed.score``; taking it costs a pass over D_k^val."""
        ...

    def init(self) -> State:
        """The state of a client that has not trained yet."""
        ...

    def sense(self, state: State, seen: Sensed) -> tuple[State, Decision]:
        """Take in one visit; return the new state and the decision."""
        ...

    def reset(self, state: State, score: float | None) -> State:
        """Move the reference point after an upload or a broadcast.

        ``score`` is M(θ_ref; D_k^val) of the new reference; None if ``needs_score`` is False.
        """
        ...


@dataclass(frozen=True)
class EveryRound:
    """Upload after every visit: FedAvg and FedOpt (a visit is E epochs), FedBuff (K steps)."""

    needs_score: bool = False

    def init(self) -> State:
        return {}

    def sense(self, state: State, seen: Sensed) -> tuple[State, Decision]:
        return state, Decision("visit")

    def reset(self, state: State, score: float | None) -> State:
        return state


@dataclass(frozen=True)
class Performance:
    """Upload when the validation metric has moved since the last reference point (eq 7-8).

    Eq 7: ΔM_k = |M(θ_k) − M(θ_k,ref)|, with M the validation loss in nats. Eq 8: upload if
    ΔM_k > δ_k^perf. The paper calls δ_k^perf adaptive and says no more; here it follows the
    client's own habit, δ ← α δ + (1−α) ΔM_k after each look, so that what is usual for a site
    stops being news.

    Attributes:
        delta: δ before the first look, in nats.
        alpha: memory of δ, 0 to 1; 1 keeps it fixed.
        floor: δ never falls below this, or a converged site would report its noise.
    """

    delta: float = 0.05
    alpha: float = 0.9
    floor: float = 0.0
    needs_score: bool = True

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


@dataclass(frozen=True)
class Gradient:
    """Upload when a layer's gradient is larger than its own history says (eq 9-11).

    Per layer: μ ← α μ + (1−α) ‖g‖ (eq 9); σ ← α σ + (1−α) |‖g‖ − μ| (eq 10); δ = μ + β σ
    (eq 11). Upload if any layer has ‖g‖ > δ. The first visit only sets μ: with no history
    nothing can be unusual.

    Attributes:
        alpha: memory of μ and σ, 0 to 1.
        beta: how many mean deviations above the mean are news.
    """

    alpha: float = 0.9
    beta: float = 2.0
    needs_score: bool = False

    def init(self) -> State:
        return {}

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

    def reset(self, state: State, score: float | None) -> State:
        return state  # the history of norms outlives an upload


@dataclass(frozen=True)
class Unexplained:
    """Upload when some class's flows still pull at the head (for sites that send moments).

    There the norms are by class and relative: 1 where the global head knows nothing of a class,
    0 where it cannot do better. The loudest class decides, so a few flows of a rare attack are
    not drowned by a site's thousand benign ones.

    Attributes:
        floor: relative norms up to this are no news. 0 reports everything.
    """

    floor: float = 0.1
    needs_score: bool = False

    def init(self) -> State:
        return {}

    def sense(self, state: State, seen: Sensed) -> tuple[State, Decision]:
        loud = [name for name, norm in seen.gradient_norms.items() if norm > self.floor]
        return state, Decision("gradient") if loud else SILENT

    def reset(self, state: State, score: float | None) -> State:
        return state


@dataclass(frozen=True)
class Silence:
    """Upload after so many silent visits, so that a quiet site is late but never unheard.

    Not in the paper, which does not say what happens when fewer than 60 % ever trigger.
    """

    visits: int = 3
    needs_score: bool = False

    def init(self) -> State:
        return {}

    def sense(self, state: State, seen: Sensed) -> tuple[State, Decision]:
        return state, Decision("silence") if seen.visits >= self.visits else SILENT

    def reset(self, state: State, score: float | None) -> State:
        return state


@dataclass(frozen=True)
class AnyOf:
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
