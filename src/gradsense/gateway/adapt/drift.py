"""Measures whether recent traffic still looks like the traffic the model was calibrated on.

The population stability index of shares a against expected shares e is Σ (a - e) ln(a / e).
The usual reading, from credit scoring (Siddiqi, Credit Risk Scorecards, 2006): below 0.1 nothing
has changed, from 0.1 to 0.25 something has, above 0.25 the model should be looked at.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from gradsense.errors import InputError
from gradsense.gateway.adapt.baseline import PhraseLayout
from gradsense.models.card import Reference
from gradsense.prompts.templates import Template

Level = Literal["stable", "moderate", "major"]
MODERATE, MAJOR = 0.1, 0.25

#: Share used for an empty bin; otherwise one flow of a new kind would give an infinite PSI.
FLOOR = 1e-4
CONFIDENCE_BINS = 10
#: Successive half-windows of major drift before a recommendation: one may be a busy night.
_HALVES = 2
_WORST = 5


class DriftReport(BaseModel):
    """How far the window is from the reference.

    Args:
        psi: by template field, corrected for chance, 0 or more.
        confidence: the same of the verdicts' probability in ten bins.
        flows: in the window.
        worst: fields with at least moderate drift, the worst first, at most five.
        level: of the largest of all these figures.
    """

    model_config = ConfigDict(frozen=True)

    psi: dict[str, float]
    confidence: float
    flows: int
    worst: tuple[str, ...]
    level: Level

    @property
    def largest(self) -> float:
        """The largest of all these figures."""
        return max(*self.psi.values(), self.confidence)


class RetrainingRecommendation(BaseModel):
    """The model should be trained on this network's traffic. ``at``: seconds since the epoch."""

    model_config = ConfigDict(frozen=True)

    at: float
    report: DriftReport


class DriftState(BaseModel):
    """The state of ``Drift``, for the journal. Counts are by phrase, then by confidence bin."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[1] = 1
    fingerprint: str = Field(max_length=64)
    reference: tuple[float, ...] | None
    reference_flows: int = Field(ge=0)
    older: tuple[int, ...]
    newer: tuple[int, ...]
    older_flows: int = Field(ge=0)
    newer_flows: int = Field(ge=0)
    streak: int = Field(ge=0)
    #: Named ``wished_at`` in the journals of earlier versions.
    recommended_at: float | None = Field(
        validation_alias=AliasChoices("recommended_at", "wished_at")
    )


class DriftSettings(BaseModel):
    """When drift is measured and reported.

    Args:
        window: drift is measured over the last ``window / 2`` to ``window`` flows. Without a
            reference in the bundle, the first ``window`` flows seen here become the reference.
        least: no report on fewer flows.
        every_s: at most one recommendation in so many seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    window: int = Field(default=20_000, ge=2, le=1 << 30)
    least: int = Field(default=2_000, ge=1)
    every_s: float = Field(default=86_400.0, ge=0)


class Drift:
    """Counts phrases and confidences of recent flows and compares them with the reference.

    The window is two half-windows: the older one is dropped when the newer is full. So memory is
    a few kB whatever the traffic.

    Chance alone gives a PSI of about (k - 1)(1/n + 1/m) for k bins, n flows in the window and m
    in the reference (Yurdakul and Naranjo 2020, from its chi-squared limit). It is subtracted,
    with k the bins that either side uses; otherwise fields of a hundred phrases would always seem
    to drift.

    Attributes:
        dropped: states that ``restore`` could not use.

    Raises:
        InputError: the reference is of another template.
    """

    def __init__(
        self,
        template: Template,
        reference: Reference | None = None,
        settings: DriftSettings | None = None,
    ) -> None:
        self.settings = settings or DriftSettings()
        self.dropped = 0
        self._layout = PhraseLayout.of(template)
        self._width = self._layout.width + CONFIDENCE_BINS
        starts = [*self._layout.offsets.tolist(), self._layout.width, self._width]
        self._spans = [slice(begin, end) for begin, end in pairwise(starts)]
        self._given = reference is not None
        self._expected = None if reference is None else self._shares_of(reference)
        self._expected_flows = 0 if reference is None else reference.flows
        self._older, self._newer = self._zeros(), self._zeros()
        self._older_flows = self._newer_flows = 0
        self._streak = 0
        self._recommended_at: float | None = None

    def anew(self, template: Template, reference: Reference | None) -> Drift:
        """An empty window against another reference; the last recommendation's time is kept."""
        fresh = Drift(template, reference, self.settings)
        fresh._recommended_at = self._recommended_at
        return fresh

    def add(self, phrase_ids: NDArray[np.uint16], confidence: NDArray[np.floating]) -> None:
        """Count flows.

        Args:
            phrase_ids: phrase indices of the template, [n, fields].
            confidence: the verdicts' probability, 0..1, [n].
        """
        while len(phrase_ids):
            room = self._room()
            self._count(phrase_ids[:room], confidence[:room])
            phrase_ids, confidence = phrase_ids[room:], confidence[room:]

    def report(self) -> DriftReport | None:
        """How far the window is from the reference; None before there are enough flows."""
        flows = self._older_flows + self._newer_flows
        if self._expected is None or flows < self.settings.least:
            return None
        found = (self._older + self._newer) / flows
        figures = [self._psi(found[span], self._expected[span], flows) for span in self._spans]
        fields = dict(zip(self._layout.fields, figures[:-1], strict=True))
        ranked = sorted(fields, key=fields.__getitem__, reverse=True)[:_WORST]
        return DriftReport(
            psi=fields,
            confidence=figures[-1],
            flows=flows,
            worst=tuple(name for name in ranked if fields[name] >= MODERATE),
            level=level_of(max(figures)),
        )

    def recommend(self, now: float) -> RetrainingRecommendation | None:
        """A recommendation, if drift was major at the end of two successive half-windows and none
        was returned in the ``every_s`` seconds before ``now``."""
        report = self.report()
        if report is None or self._streak < _HALVES:
            return None
        last = self._recommended_at
        if last is not None and now - last < self.settings.every_s:
            return None
        self._recommended_at = now
        return RetrainingRecommendation(at=now, report=report)

    def state(self) -> DriftState:
        """What ``restore`` takes. The bundle's own reference is not part of it."""
        own = None if self._given or self._expected is None else tuple(self._expected.tolist())
        return DriftState(
            fingerprint=self._layout.fingerprint.hex(),
            reference=own,
            reference_flows=0 if self._given else self._expected_flows,
            older=tuple(self._older.tolist()),
            newer=tuple(self._newer.tolist()),
            older_flows=self._older_flows,
            newer_flows=self._newer_flows,
            streak=self._streak,
            recommended_at=self._recommended_at,
        )

    def restore(self, text: str | bytes) -> None:
        """Restore the JSON of an earlier ``state``; one that does not fit counts as dropped."""
        try:
            state = DriftState.model_validate_json(text)
            if not self._usable(state):
                raise ValueError("it is of another template or window")
        except ValueError:  # pydantic's are too
            self.dropped += 1
            return
        if not self._given and state.reference is not None:
            self._expected = np.array(state.reference)
            self._expected_flows = state.reference_flows
        self._older = np.array(state.older, dtype=np.int64)
        self._newer = np.array(state.newer, dtype=np.int64)
        self._older_flows, self._newer_flows = state.older_flows, state.newer_flows
        self._streak, self._recommended_at = state.streak, state.recommended_at

    def _zeros(self) -> NDArray[np.int64]:
        return np.zeros(self._width, dtype=np.int64)

    def _usable(self, state: DriftState) -> bool:
        """Whether a state is of this template and fits this window."""
        vectors = [state.older, state.newer, *([state.reference] if state.reference else [])]
        whole = all(len(values) == self._width and min(values) >= 0 for values in vectors)
        compared = self._given or state.reference is not None
        return (
            whole
            and state.fingerprint == self._layout.fingerprint.hex()
            and state.newer_flows < self._full(compared=compared)
            and (state.reference is None or state.reference_flows > 0)
        )

    def _full(self, *, compared: bool) -> int:
        """Flows of a half-window; of a whole window while the reference is collected."""
        return self.settings.window // 2 if compared else self.settings.window

    def _room(self) -> int:
        """Flows until the current half-window is full."""
        return self._full(compared=self._expected is not None) - self._newer_flows

    def _count(self, phrase_ids: NDArray[np.uint16], confidence: NDArray[np.floating]) -> None:
        cells = (phrase_ids + self._layout.offsets).ravel()
        bins = np.clip(np.asarray(confidence) * CONFIDENCE_BINS, 0, CONFIDENCE_BINS - 1)
        self._newer += np.bincount(cells, minlength=self._width)
        self._newer += np.bincount(
            bins.astype(np.int64) + self._layout.width, minlength=self._width
        )
        self._newer_flows += len(phrase_ids)
        if self._room():
            return
        if self._expected is None:
            self._expected = self._newer / self._newer_flows
            self._expected_flows = self._newer_flows
        else:
            report = self.report()
            major = report is not None and report.level == "major"
            self._streak = self._streak + 1 if major else 0
            self._older, self._older_flows = self._newer, self._newer_flows
        self._newer, self._newer_flows = self._zeros(), 0

    def _psi(self, found: NDArray[np.float64], expected: NDArray[np.float64], flows: int) -> float:
        bins = int(((found > 0) | (expected > 0)).sum())
        chance = (bins - 1) * (1 / flows + 1 / self._expected_flows)
        return max(0.0, psi(found, expected) - chance)

    def _shares_of(self, reference: Reference) -> NDArray[np.float64]:
        """The reference as one vector in the layout's order."""
        sizes = dict(zip(self._layout.fields, self._layout.sizes.tolist(), strict=True))
        if {name: len(shares) for name, shares in reference.fields.items()} != sizes:
            raise InputError(
                "the bundle's reference is of another template", hint="export the bundle again"
            )
        fields = [np.array(reference.fields[name]) for name in self._layout.fields]
        return np.concatenate([*fields, reference.confidence])


def psi(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Population stability index of shares [k] against expected shares [k], in nats."""
    a, e = np.maximum(found, FLOOR), np.maximum(expected, FLOOR)
    return float(((a - e) * np.log(a / e)).sum())


def level_of(figure: float) -> Level:
    """The usual reading of a PSI."""
    if figure < MODERATE:
        return "stable"
    return "moderate" if figure < MAJOR else "major"
