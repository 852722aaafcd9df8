"""Triggers: when does a client upload?

A trigger is a frozen value with three verbs over a small state that the client keeps: ``init``
makes the state, ``sense`` looks at one local round and decides, ``reset`` follows an upload or a
broadcast. The state is a flat JSON-able mapping, so it survives a kill with the client.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal

from gradsense.federation.parts import AtLeastOne, NonNegative, Share, part

#: The state of a trigger: flat, JSON-able.
State = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Sensed:
    """What a client measured in one local round (one uninterrupted piece of local training).

    Attributes:
        gradient_norms: layer to ‖g‖, the batch gradient's L2 norm averaged over the round's steps;
            for a site that only reads, class to its relative norm (``learner.Observed``).
        score: M(θ_k; D_k^val), the validation loss after the round; None if not asked for.
        rounds: local rounds since the last upload, this one included.
        step_norms: layer to ‖g‖ of each step, where they were kept.
    """

    gradient_norms: Mapping[str, float]
    score: float | None
    rounds: int
    step_norms: Sequence[Mapping[str, float]] = ()


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
    (eq 11). Upload if any layer has ‖g‖ > δ. The first look only sets μ: with no history
    nothing can be unusual. The history outlives an upload.

    δ moves with the norm that it judges. Put into one another, eq 9-11 fire when
    (‖g‖ − μ) (1 − β (1−α)) > β σ, with the μ and σ before this look: for β ≥ 1/(1−α) never,
    however large the norm. With α = 0 there is no history, and nothing fires either.

    Attributes:
        alpha: memory of μ and σ, above 0, to 1.
        beta: how many mean deviations above the mean are news; below 1/(1−α).
        per: what is one look: a local ``round``, at the norm averaged over its steps, or every
            ``step``. Either way the upload follows the round, if any look in it fired.

    Raises:
        ValueError: an α and β with which it could never fire.
    """

    alpha: Share = 0.9
    beta: NonNegative = 2.0
    per: Literal["round", "step"] = "round"

    def __post_init__(self) -> None:
        if self.alpha == 0:
            raise ValueError("alpha must be above 0: without a history nothing is unusual")
        # Compared as written: 1 - 0.9 is a little less than 0.1.
        alpha, beta = Fraction(repr(self.alpha)), Fraction(repr(self.beta))
        if beta * (1 - alpha) >= 1:
            raise ValueError(
                f"beta must be below 1/(1-alpha) = {float(1 / (1 - alpha)):g}, "
                "from which on no gradient can exceed eq 11's threshold"
            )

    def sense(self, state: State, seen: Sensed) -> tuple[State, Decision]:
        looks = seen.step_norms if self.per == "step" and seen.step_norms else ()
        new, loud = state, dict[str, None]()
        for norms in looks or (seen.gradient_norms,):
            new, now = self._look(new, norms)
            loud |= dict.fromkeys(now)
        return new, Decision("gradient", tuple(loud)) if loud else SILENT

    def _look(self, state: State, norms: Mapping[str, float]) -> tuple[State, list[str]]:
        new, loud = dict(state), []
        for layer, norm in norms.items():
            first = f"mu:{layer}" not in state
            mean = norm if first else self.alpha * state[f"mu:{layer}"] + (1 - self.alpha) * norm
            spread = self.alpha * state.get(f"sigma:{layer}", 0.0)
            spread += (1 - self.alpha) * abs(norm - mean)
            new[f"mu:{layer}"], new[f"sigma:{layer}"] = mean, spread
            if norm > mean + self.beta * spread:
                loud.append(layer)
        return new, loud


@part
class Unexplained(Trigger):
    """Upload when some class's records still have a large gradient (for sites that only read).

    There the norms are by class and relative: 1 where the global head knows nothing of a class,
    0 where it cannot do better. The class with the largest norm decides, so a few flows of a rare
    attack count beside a site's thousand benign ones.

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
