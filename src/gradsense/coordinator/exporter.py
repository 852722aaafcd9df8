"""The coordinator's status for Prometheus, read at each scrape: nothing is counted twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

#: Metric name to the field of a run's status, and its help text.
_GAUGES = {
    "version": ("version", "Version of the global model."),
    "pooled_updates": ("pooled", "Updates that wait in the pool."),
    "devices_online": ("online", "Devices connected now."),
    "devices_current": ("current", "Devices online that hold the newest model."),
    "journal_bytes": ("journal_bytes", "Size of the run's journal."),
    "waiting_bytes": ("waiting_bytes", "Chunks that wait for the rest of their message."),
}
_COUNTERS = {
    "updates": ("updates", "Updates pooled."),
    "duplicates": ("duplicates", "Updates that came again."),
    "aggregations": ("aggregations", "Global models made."),
    "update_bytes": ("bytes_in", "Bytes of updates, as they travelled."),
}


class StatusCollector(Collector):
    """Turns a status into metrics.

    Args:
        status: gives ``CoordinatorService.latest``; must be safe to call from another thread.
    """

    def __init__(self, status: Callable[[], Mapping[str, Any]]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        connected = GaugeMetricFamily("gradsense_coordinator_connected", "1 with a broker.")
        connected.add_metric([], float(status["connected"]))
        yield connected
        stalls = CounterMetricFamily(
            "gradsense_coordinator_stalls", "Times that a journal could not be written."
        )
        stalls.add_metric([], status["counts"].get("stalls", 0))
        yield stalls
        unreadable = GaugeMetricFamily(
            "gradsense_coordinator_unreadable_runs", "Runs that cannot be opened."
        )
        unreadable.add_metric([], len(status["unreadable"]))
        yield unreadable
        shut_out = GaugeMetricFamily(
            "gradsense_coordinator_shut_out_devices", "Devices that flood and are shut out for now."
        )
        shut_out.add_metric([], len(status["shut_out"]))
        yield shut_out
        away = CounterMetricFamily(
            "gradsense_coordinator_turned_away",
            "Messages turned away before they were verified, by name.",
            labels=["device", "reason"],
        )
        for device, names in status["turned_away"].items():
            for reason, number in names.items():
                away.add_metric([device, reason], number)
        yield away
        against = GaugeMetricFamily(
            "gradsense_coordinator_contradiction",
            "How far a device contradicts what the others agree on, 0 to 1.",
            labels=["run", "device"],
        )
        for run, scores in status["contradictions"].items():
            for device, score in scores.items():
                against.add_metric([run, device], score)
        yield against
        runs = status["runs"]
        for family, fields in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
            for name, (field, text) in fields.items():
                metric = family(f"gradsense_coordinator_{name}", text, labels=["run"])
                for run, status_of in runs.items():
                    metric.add_metric([run], status_of[field])
                yield metric
        refused = CounterMetricFamily(
            "gradsense_coordinator_refused", "Messages refused, by name.", labels=["run", "reason"]
        )
        for run, status_of in runs.items():
            for reason, number in status_of["refused"].items():
                refused.add_metric([run, reason], number)
        yield refused
