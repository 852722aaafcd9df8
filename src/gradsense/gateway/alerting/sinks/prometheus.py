"""Counts alerts where Prometheus fetches them."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from gradsense.gateway.alerting.alert import Alert
from gradsense.gateway.instruments import Metrics, serve
from gradsense.gateway.settings import PrometheusSetting


class PrometheusSink:
    """Serves ``/metrics`` from its making on, so that a gateway without alerts is seen too.

    Args:
        metrics: those of the process; a registry of its own if None.

    Raises:
        InputError: the address is taken.
    """

    def __init__(self, setting: PrometheusSetting, metrics: Metrics | None) -> None:
        self.name = setting.name
        self._metrics = metrics or Metrics(CollectorRegistry())
        self._stop = serve(self._metrics.registry, setting.address)

    def send(self, alerts: Sequence[Alert]) -> None:
        """Count those that are new."""
        for alert in alerts:
            if alert.state == "open":
                self._metrics.alerts.labels(alert.label, alert.severity).inc()

    def close(self) -> None:
        """Stop serving."""
        self._stop()
