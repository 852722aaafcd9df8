"""From flows to verdicts and alarms: by the model, the device's baseline, and a larger model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradsense.data.flows import Flows, column, row_of
from gradsense.data.networks import Networks
from gradsense.detection.detector import Detector, Verdict
from gradsense.gateway.adapt.baseline import DeviceBaseline
from gradsense.gateway.adapt.drift import Drift
from gradsense.gateway.alerting.alert import NOVEL, Example
from gradsense.gateway.alerting.grouping import Alarm, LogClock

if TYPE_CHECKING:  # it imports an HTTP library, which few gateways need
    from gradsense.gateway.escalation.escalate import Escalator

#: A flow that seems to end later than so many seconds from now counts as ending then: the log clock
#: only advances, and one broken line must not stop it.
_AHEAD_S = 86_400.0
#: So many flows, of which less than this share has a local end, give a warning about networks.
_ENOUGH, _FEW_LOCAL = 1000, 0.1
_ENDS = ("orig_h", "resp_h", "ts", "resp_p")


@dataclass(frozen=True)
class Judged:
    """Verdicts of a sequence of flows, in their order, and the alarms among them.

    ``counts``: ``verdict:LABEL``, ``alarms``, ``novel``, ``silenced``, ``escalated:OUTCOME``.
    """

    verdicts: list[Verdict]
    alarms: list[Alarm]
    counts: Counter[str] = field(default_factory=Counter)


class Judge:
    """Decides which flows raise an alert.

    A flow raises an alert for its class if the model's suspicion is above the threshold. It raises
    a ``Novel`` one if the suspicion is not, but the flow is unlike its own device so far and
    unlike the training flows: both are needed, since every network is new to a model in some way.

    Args:
        clock: log time.
        networks: the operator's own.
        baseline: of the devices; without it there are no ``Novel`` alerts.
        drift: counts every verdict.
        escalator: asks a larger model about unsure verdicts.
    """

    def __init__(
        self,
        detector: Detector,
        clock: LogClock,
        *,
        networks: Networks | None = None,
        baseline: DeviceBaseline | None = None,
        drift: Drift | None = None,
        escalator: Escalator | None = None,
    ) -> None:
        self.detector, self.clock = detector, clock
        self.networks = networks or Networks()
        self.baseline, self.drift, self.escalator = baseline, drift, escalator
        self._flows = self._local = 0
        #: (device, prompt) pairs that feedback calls benign; they raise no alert.
        self.silenced: frozenset[tuple[str, bytes]] = frozenset()

    def judge(self, log: str, flows: Flows, *, now: float) -> Judged:
        """Verdicts and alarms of the next flows of a log.

        Args:
            log: its name, for alerts.
            flows: at least one.
            now: seconds since the epoch.
        """
        phrase_ids = self.detector.phrase_ids(self.networks.mask(flows))
        verdicts = self.detector.judge(phrase_ids)
        counts: Counter[str] = Counter()
        if self.escalator is not None:
            self._escalate(self.escalator, verdicts, phrase_ids, counts)
        alarming = np.array([verdict.alarm for verdict in verdicts], bool)
        if self.drift is not None:
            self.drift.add(phrase_ids, np.array([verdict.probability for verdict in verdicts]))
        novel = self._novel(flows, phrase_ids, verdicts, ~alarming)
        clocks = self._clocks(flows, now)
        alarms = []
        raising = np.flatnonzero(alarming | novel).tolist()
        # A quiet network's blocks need none of this.
        columns = [column(flows, name) for name in _ENDS] if raising else []
        ends = list(zip(self._devices(flows), *columns, strict=True)) if raising else []
        for row in raising:
            device, orig_h, resp_h, ts, port = ends[row]
            verdict, prompt = verdicts[row], phrase_ids[row].tobytes()
            if (device, prompt) in self.silenced:
                counts["silenced"] += 1
                continue
            alarms.append(
                Alarm(
                    device=device,
                    peer=self.networks.peer(orig_h, resp_h),
                    label=verdict.label if verdict.alarm else NOVEL,
                    clock=clocks[row],
                    ts=ts,
                    port=port,
                    probability=verdict.probability,
                    novelty=verdict.novelty,
                    prompt=prompt,
                    example=partial(_example, log, flows, row),
                )
            )
        for label, number in Counter(verdict.label for verdict in verdicts).items():
            counts[f"verdict:{label}"] += number
        counts["alarms"] += len(alarms)
        counts["novel"] += int(novel.sum())
        return Judged(verdicts, alarms, counts)

    def adopt(self, detector: Detector) -> None:
        """Judge with another model of the same template from the next flow on.

        Drift is measured anew, against the new model's reference. Baselines and feedback stay:
        they depend on prompts, not on a model.

        Raises:
            InputError: the model's reference is of another template; nothing has changed.
        """
        reference, drift = detector.manifest.reference, self.drift
        drift = drift and drift.anew(detector.template, reference)
        # Totals are of the watch, not of one model.
        detector.judged += self.detector.judged
        detector.inferred += self.detector.inferred
        self.detector, self.drift = detector, drift

    def explain(self, prompt: bytes) -> tuple[str, ...]:
        """Reasons for the verdict on a prompt (the bytes of its phrase ids), in words."""
        phrase_ids = np.frombuffer(prompt, np.uint16).reshape(1, -1)
        return tuple(reason.in_words() for reason in self.detector.explain(phrase_ids))

    def silence(self, pairs: frozenset[tuple[str, bytes]]) -> None:
        """Raise no alert for exactly these (device, prompt) pairs; replaces the earlier ones.

        A pair that is new here becomes normal in its device's baseline, so that similar flows
        raise no ``Novel`` alert either.
        """
        if self.baseline is not None:
            for device, prompt in pairs - self.silenced:
                self.baseline.accept(device, np.frombuffer(prompt, np.uint16))
        self.silenced = pairs

    @property
    def hardly_local(self) -> bool:
        """Whether hardly any flow has a local end: the operator's networks are not configured."""
        return self._flows >= _ENOUGH and self._local < _FEW_LOCAL * self._flows

    def _escalate(
        self,
        escalator: Escalator,
        verdicts: list[Verdict],
        phrase_ids: NDArray[np.uint16],
        counts: Counter[str],
    ) -> None:
        """Replace unsure verdicts by the larger model's, asking about the least sure first."""
        unsure = [row for row, verdict in enumerate(verdicts) if escalator.unsure(verdict)]
        if not unsure:
            return
        unsure.sort(key=lambda row: verdicts[row].probability)
        before = Counter(escalator.counts)
        answers = escalator.ask(self.detector.template.texts(phrase_ids[unsure]))
        for row, answer in zip(unsure, answers, strict=True):
            if answer is not None:
                verdicts[row] = answer
        for outcome, number in (escalator.counts - before).items():
            counts[f"escalated:{outcome}"] += number

    def _novel(
        self,
        flows: Flows,
        phrase_ids: NDArray[np.uint16],
        verdicts: list[Verdict],
        quiet: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Which of the ``quiet`` flows are new to their device and to the model, [n]."""
        if self.baseline is None:
            return np.zeros(len(verdicts), bool)
        devices = self._devices(flows)
        local = np.fromiter(map(self.networks.is_local, devices), bool, len(devices))
        ts = np.array(column(flows, "ts"), dtype=np.float64)
        self._flows += len(devices)
        self._local += int(local.sum())
        rows = np.flatnonzero(local)
        _, unusual = self.baseline.observe(
            [devices[row] for row in rows.tolist()], phrase_ids[rows], ts[rows], quiet[rows]
        )
        novel = np.zeros(len(verdicts), bool)
        novel[rows] = unusual
        unlike = np.fromiter((v.novel or v.novelty is None for v in verdicts), bool, len(verdicts))
        return np.asarray(novel & unlike & quiet)

    def _devices(self, flows: Flows) -> list[str]:
        return self.detector.template.task.devices(flows, self.networks)

    def _clocks(self, flows: Flows, now: float) -> list[float]:
        """The log clock at each flow, seconds since the epoch."""
        ts = np.array(column(flows, "ts"), dtype=np.float64)
        duration = np.array(column(flows, "duration"), dtype=np.float64)  # None becomes NaN
        ends = np.minimum(ts + np.nan_to_num(duration), now + _AHEAD_S)
        ends = np.maximum.accumulate(np.maximum(ends, self.clock.value))
        self.clock.advance(float(ends[-1]))
        return list(ends.tolist())


def _example(log: str, flows: Flows, place: int) -> Example:
    flow = row_of(flows, place)
    return Example(log=log, **{name: flow[name] for name in Example.model_fields if name != "log"})
