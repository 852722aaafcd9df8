"""The coordinator's status for Prometheus, read at each scrape: nothing is counted twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any

from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

#: Kind, name behind ``gradsense_coordinator_``, where a status has it, help text. ``{run}`` stands
#: for every key there is, and becomes a label. Of a collection its length is the value.
_METRICS = (
    (Gauge, "connected", "connected", "1 with a broker."),
    (Counter, "stalls", "counts/stalls", "Times that a journal could not be written."),
    (Gauge, "unreadable_runs", "unreadable", "Runs that cannot be opened."),
    (Gauge, "shut_out_devices", "shut_out", "Devices that flood and are shut out for now."),
    (
        *(Counter, "turned_away", "turned_away/{device}/{reason}"),
        "Messages turned away before they were verified, by name.",
    ),
    (
        *(Gauge, "contradiction", "contradictions/{run}/{device}"),
        "How far a device contradicts what the others agree on, 0 to 1.",
    ),
    (Gauge, "version", "runs/{run}/version", "Version of the global model."),
    (Gauge, "pooled_updates", "runs/{run}/pooled", "Updates that wait in the pool."),
    (Gauge, "devices_online", "runs/{run}/online", "Devices connected now."),
    (
        *(Gauge, "devices_current", "runs/{run}/current"),
        "Devices online that hold the newest model.",
    ),
    (Gauge, "journal_bytes", "runs/{run}/journal_bytes", "Size of the run's journal."),
    (
        *(Gauge, "waiting_bytes", "runs/{run}/waiting_bytes"),
        "Chunks that wait for the rest of their message.",
    ),
    (Counter, "updates", "runs/{run}/updates", "Updates pooled."),
    (Counter, "duplicates", "runs/{run}/duplicates", "Updates that came again."),
    (Counter, "aggregations", "runs/{run}/aggregations", "Global models made."),
    (Counter, "update_bytes", "runs/{run}/bytes_in", "Bytes of updates, as they travelled."),
    (Counter, "refused", "runs/{run}/refused/{reason}", "Messages refused, by name."),
)


class StatusCollector(Collector):
    """Turns a status into metrics.

    Args:
        status: gives ``CoordinatorService.latest``; must be safe to call from another thread.
    """

    def __init__(self, status: Callable[[], Mapping[str, Any]]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = dict(self._status())
        status["counts"] = {"stalls": 0, **status["counts"]}  # it is not there before the first
        for kind, name, place, text in _METRICS:
            path = place.split("/")
            labels = [step.strip("{}") for step in path if step.startswith("{")]
            metric = kind(f"gradsense_coordinator_{name}", text, labels=labels)
            for values, number in _found(status, path):
                metric.add_metric(values, number)
            yield metric


def _found(at: Any, path: Sequence[str]) -> Iterator[tuple[list[str], float]]:
    """The values under a path, each with those of its labels."""
    if not path:
        yield [], float(len(at) if isinstance(at, Sized) else at)
        return
    step, *rest = path
    if not step.startswith("{"):
        yield from _found(at[step], rest)
        return
    for key, inner in at.items():
        for values, number in _found(inner, rest):
            yield [key, *values], number
