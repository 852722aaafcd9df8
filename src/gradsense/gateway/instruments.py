"""The gateway's Prometheus metrics: what they are, and how a watch updates them."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from gradsense.errors import InputError

if TYPE_CHECKING:
    from gradsense.gateway.alerting.grouping import Grouper
    from gradsense.gateway.judge import Judge
    from gradsense.gateway.store import GatewayStore, StoreBatch

#: Seconds; a batch is one flow up to some thousands.
_BATCH_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """All metrics of one process, in a registry of their own; docs/sinks.md lists them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"gradsense_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"gradsense_{name}", text, labels, registry=registry)

        self.registry = registry
        #: By the name of the journal's counter, or by what is before its colon.
        self.counted = {
            "flows": counter("flows", "Flows read."),
            "dropped": counter("dropped_lines", "Log lines without a flow.", "reason"),
            "verdict": counter("verdicts", "Verdicts of the model.", "label"),
            "alarms": counter("alarms", "Flows that raised an alert, or joined an open one."),
            "retraining_recommendations": counter(
                "retraining_recommendations", "Recommendations to retrain the model."
            ),
            "models_adopted": counter("model_swaps", "New models taken over while running."),
            "escalated": counter("escalated", "Prompts for a larger model, by outcome.", "outcome"),
        }
        self.alerts = counter("alerts", "Alerts opened.", "label", "severity")
        self.alerts_open = gauge("alerts_open", "Alerts open now.")
        self.cache_hits = counter("cache_hits", "Flows judged from the cache.")
        self.batch_seconds = Histogram(
            "gradsense_batch_seconds",
            "Time from a batch of flows to its verdicts.",
            buckets=_BATCH_BUCKETS,
            registry=registry,
        )
        self.sink_queue = gauge("sink_queue_messages", "Messages waiting for a sink.", "sink")
        self.sink_dropped = counter("sink_dropped", "Messages dropped.", "sink")
        self.sink_delivered = counter("sink_delivered", "Messages delivered.", "sink")
        self.baselines = gauge(
            "baselines", "Device baselines, by whether they are learnt.", "state"
        )
        self.drift_psi = gauge("drift_psi", "Population stability index against training.")


class Observer:
    """Updates ``Metrics`` from the parts of one watch."""

    def __init__(
        self, metrics: Metrics, judge: Judge, grouper: Grouper, journal: GatewayStore
    ) -> None:
        self.metrics, self._judge, self._grouper = metrics, judge, grouper
        self._journal = journal
        self._reported: Counts[tuple[str, str]] = Counts()

    def committed(self, batch: StoreBatch, seconds: float) -> None:
        """Count a committed batch, which took ``seconds`` to judge."""
        metrics = self.metrics
        for name, number in batch.counts.items():
            kind, _, label = name.partition(":")
            if kind in metrics.counted:
                counter = metrics.counted[kind]
                (counter.labels(label) if label else counter).inc(number)
        if batch.counts.get("flows"):
            metrics.batch_seconds.observe(seconds)
        metrics.alerts_open.set(len(self._grouper))

    def round(self) -> None:
        """Update what is not counted batch by batch: cache, queues, drift."""
        metrics = self.metrics
        judge, detector = self._judge, self._judge.detector
        hits = detector.judged - detector.inferred
        metrics.cache_hits.inc(self._since("cache", "hits", hits))
        for name, queue in self._journal.backlogs().items():
            metrics.sink_queue.labels(name).set(queue.waiting)
            metrics.sink_dropped.labels(name).inc(self._since("dropped", name, queue.dropped))
            metrics.sink_delivered.labels(name).inc(self._since("delivered", name, queue.delivered))
        if judge.baseline is not None:
            learnt = judge.baseline.settled
            metrics.baselines.labels("learnt").set(learnt)
            metrics.baselines.labels("learning").set(len(judge.baseline) - learnt)
        if judge.drift is not None and (report := judge.drift.report()) is not None:
            metrics.drift_psi.set(report.largest)

    def _since(self, kind: str, name: str, total: int) -> int:
        """What was added to a total since the last call: a counter takes increments only."""
        more = total - self._reported[kind, name]
        self._reported[kind, name] = total
        return max(0, more)


def serve(registry: CollectorRegistry, address: str) -> Callable[[], None]:
    """Serve a registry on ``host:port`` from a thread of its own; call the result to stop.

    Raises:
        InputError: the address is taken or not of this machine.
    """
    parts = urlsplit(f"//{address}")
    try:
        server, thread = start_http_server(parts.port or 0, parts.hostname or "", registry=registry)
    except OSError as error:
        raise InputError(
            f"cannot listen on {address} ({error.strerror or error})", hint="give another address"
        ) from error

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close
