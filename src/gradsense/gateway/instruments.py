"""What a gateway counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from gradsense.errors import InputError

#: Seconds; a batch is one flow or some thousand.
_BATCH_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """All metrics of one process, in a registry of their own; docs/sinks.md lists them.

    Args:
        registry: where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"gradsense_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"gradsense_{name}", text, labels, registry=registry)

        self.registry = registry
        self.flows = counter("flows", "Flows read.")
        self.dropped_lines = counter("dropped_lines", "Log lines not understood.", "reason")
        self.verdicts = counter("verdicts", "Verdicts of the model.", "label")
        self.alarms = counter("alarms", "Flows that rang an alarm.")
        self.alerts = counter("alerts", "Alerts opened.", "label", "severity")
        self.alerts_open = gauge("alerts_open", "Alerts open now.")
        self.cache_hits = counter("cache_hits", "Flows judged from the cache.")
        self.batch_seconds = Histogram(
            "gradsense_batch_seconds",
            "Time from a batch of flows to its verdicts.",
            buckets=_BATCH_BUCKETS,
            registry=registry,
        )
        self.sink_queue = gauge("sink_queue_messages", "Messages that wait for a sink.", "sink")
        self.sink_dropped = counter("sink_dropped", "Messages given up.", "sink")
        self.sink_delivered = counter("sink_delivered", "Messages delivered.", "sink")
        self.drift_psi = gauge("drift_psi", "Population stability index against training.")
        self.training_wishes = counter("training_wishes", "Wishes to train, sent to the cloud.")
        self.model_swaps = counter("model_swaps", "New models taken over while running.")
        self.escalated = counter("escalated", "Alerts given to a larger model.", "outcome")


def serve(registry: CollectorRegistry, address: str) -> Callable[[], None]:
    """Answer HTTP on ``host:port`` from a thread of its own; call the result to stop.

    Raises:
        InputError: the address is taken or not of this machine.
    """
    parts = urlsplit(f"//{address}")
    try:
        server, thread = start_http_server(parts.port or 0, parts.hostname or "", registry=registry)
    except OSError as error:
        raise InputError(
            f"cannot listen on {address} ({error.strerror or error})",
            hint="give another address",
        ) from error

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close
