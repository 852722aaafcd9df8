"""Where alerts go: one file a transport, all behind ``Sink``."""

# ruff: noqa: PLC0415  (see ``build``)

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING

from gradsense.errors import InputError
from gradsense.gateway.alerting.alert import Alert
from gradsense.gateway.alerting.sinks.sink import Sink
from gradsense.gateway.settings import (
    FileSetting,
    MqttSetting,
    PrometheusSetting,
    SinkSetting,
    SyslogSetting,
    WebhookSetting,
)

if TYPE_CHECKING:
    from gradsense.gateway.instruments import Metrics

#: The library that a sink needs beyond those of gradsense, where it needs one.
_LIBRARIES = {"webhook": "httpx", "mqtt": "paho.mqtt.client", "prometheus": "prometheus_client"}


def build(
    setting: SinkSetting,
    *,
    sensor: str,
    metrics: Metrics | None = None,
    open_alerts: Iterable[Alert] = (),
) -> Sink:
    """The sink of a setting.

    Only the library of that transport is loaded, so that a gateway installs what it uses.

    Args:
        sensor: the gateway's name.
        metrics: for ``prometheus``; a fresh one if None.
        open_alerts: alerts that were open when the process last ended, for ``mqtt``.

    Raises:
        InputError: its library or a certificate is missing, or its address is taken.
    """
    _check_library(setting.type)
    match setting:
        case FileSetting():
            from gradsense.gateway.alerting.sinks.file import FileSink

            return FileSink(setting)
        case SyslogSetting():
            from gradsense.gateway.alerting.sinks.syslog import SyslogSink

            return SyslogSink(setting, sensor=sensor)
        case WebhookSetting():
            from gradsense.gateway.alerting.sinks.webhook import WebhookSink

            return WebhookSink(setting)
        case MqttSetting():
            from gradsense.gateway.alerting.sinks.mqtt import MqttSink

            return MqttSink(setting, sensor=sensor, open_alerts=open_alerts)
        case PrometheusSetting():
            from gradsense.gateway.alerting.sinks.prometheus import PrometheusSink

            return PrometheusSink(setting, metrics)


def _check_library(kind: str) -> None:
    if kind not in _LIBRARIES:
        return
    try:
        import_module(_LIBRARIES[kind])
    except ModuleNotFoundError as error:
        raise InputError(
            f"sink '{kind}' needs the library {_LIBRARIES[kind].split('.')[0]}",
            hint="pip install 'gradsense[edge]'",
        ) from error
