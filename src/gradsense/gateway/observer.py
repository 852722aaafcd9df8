"""Tells Prometheus what the watch counted and how it stands."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from gradsense.gateway.alerting.grouping import Grouper
from gradsense.gateway.judge import Judge
from gradsense.gateway.store import GatewayStore, StoreBatch

if TYPE_CHECKING:  # the library behind it is loaded only where somebody listens
    from gradsense.gateway.instruments import Metrics


class Observer:
    """Keeps ``Metrics`` in step with one watch.

    Args:
        metrics: what is told.
        judge, grouper, journal: those of the watch.
    """

    def __init__(
        self, metrics: Metrics, judge: Judge, grouper: Grouper, journal: GatewayStore
    ) -> None:
        self._metrics, self._judge, self._grouper = metrics, judge, grouper
        self._journal = journal
        self._told: Counter[tuple[str, str]] = Counter()

    def committed(self, batch: StoreBatch, seconds: float) -> None:
        """A batch was taken in; judging it took ``seconds``."""
        metrics = self._metrics
        by_label = {
            "dropped": metrics.dropped_lines,
            "verdict": metrics.verdicts,
            "escalated": metrics.escalated,
        }
        plain = {
            "flows": metrics.flows,
            "alarms": metrics.alarms,
            "training_wishes": metrics.training_wishes,
            "models_adopted": metrics.model_swaps,
        }
        for name, number in batch.counts.items():
            kind, _, label = name.partition(":")
            if kind in by_label:
                by_label[kind].labels(label).inc(number)
            elif kind in plain:
                plain[kind].inc(number)
        if batch.counts.get("flows"):
            metrics.batch_seconds.observe(seconds)
        metrics.alerts_open.set(len(self._grouper))

    def round(self) -> None:
        """How things stand now."""
        metrics = self._metrics
        detector = self._judge.detector
        hits = detector.judged - detector.inferred
        metrics.cache_hits.inc(self._since("cache", "hits", hits))
        for name, queue in self._journal.backlogs().items():
            metrics.sink_queue.labels(name).set(queue.waiting)
            metrics.sink_dropped.labels(name).inc(self._since("dropped", name, queue.dropped))
            metrics.sink_delivered.labels(name).inc(self._since("delivered", name, queue.delivered))
        report = None if self._judge.drift is None else self._judge.drift.report()
        if report is not None:
            metrics.drift_psi.set(report.largest)

    def _since(self, kind: str, name: str, total: int) -> int:
        """What was added to a total since the last call; Prometheus counts up by itself."""
        more = total - self._told[kind, name]
        self._told[kind, name] = total
        return max(0, more)
