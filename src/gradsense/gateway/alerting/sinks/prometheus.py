"""Serves the metrics of the process, and counts alerts in them, for Prometheus to scrape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from pydantic import AfterValidator

from gradsense.gateway.alerting.alert import Alert
from gradsense.gateway.alerting.sink import SinkContext, SinkSettings
from gradsense.gateway.instruments import Metrics, serve


def _listen_address(value: str) -> str:
    parts = urlsplit(f"//{value}")
    if not parts.hostname or parts.port is None or parts.path:
        raise ValueError("it is no host:port, such as 127.0.0.1:9465")
    return value


class PrometheusSettings(SinkSettings):
    """``host:port`` to answer HTTP on."""

    needs_metrics: ClassVar[bool] = True

    address: Annotated[str, AfterValidator(_listen_address)] = "127.0.0.1:9465"

    def open(self, context: SinkContext) -> PrometheusSink:
        return PrometheusSink(self, context.metrics)


class PrometheusSink:
    """Serves ``/metrics`` from the start on, so that a gateway without alerts is seen too."""

    def __init__(self, setting: PrometheusSettings, metrics: Metrics | None) -> None:
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
