"""Alerts over MQTT 5, at least once, with Home Assistant's entities."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode
from pydantic import Field, model_validator

from gradsense.gateway.alerting.alert import Alert
from gradsense.gateway.alerting.formats import PLAIN, Format, as_json
from gradsense.gateway.alerting.homeassistant import DiscoveryMessage, HomeAssistant
from gradsense.gateway.alerting.sink import (
    Secret,
    SinkContext,
    SinkError,
    SinkSettings,
    tls_context,
)

#: Seconds to wait for a connection, for the acknowledgements of a batch, and for that of the
#: status "offline" at the end.
_CONNECT_S = 5.0
_ACK_S = 5.0
_OFFLINE_S = 1.0

Topic = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", max_length=128)]


class MqttSettings(SinkSettings):
    """An MQTT 5 broker, and Home Assistant behind it; without ``discovery`` only alerts are sent.

    ``port`` 0 is 1883, or 8883 with TLS.
    """

    host: str = Field(min_length=1)
    port: int = Field(default=0, ge=0, le=65_535)
    username: str | None = None
    password: Secret | None = None
    tls: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    topic: Topic = "gradsense"
    discovery: Topic | Literal[""] = "homeassistant"
    format: Format = PLAIN

    @model_validator(mode="after")
    def _tls_for_certificates(self) -> MqttSettings:
        if not self.tls and (self.ca or self.cert or self.key):
            raise ValueError("certificates are named, but tls is not true")
        return self

    def open(self, context: SinkContext) -> MqttSink:
        return MqttSink(self, sensor=context.sensor, open_alerts=context.open_alerts)


class MqttSink:
    """Publishes alerts and, as retained messages, the states that Home Assistant shows.

    A thread of the library connects from the start on and keeps the connection alive, so that the
    availability topic is right while there is no alert. After every connection all retained
    messages are published again: the broker may have lost them.

    Args:
        sensor: the gateway's name.
        open_alerts: those that were open when the process last ended.

    Raises:
        InputError: a certificate file cannot be used.
    """

    def __init__(
        self, setting: MqttSettings, *, sensor: str, open_alerts: Iterable[Alert] = ()
    ) -> None:
        self.name = setting.name
        self._setting = setting
        self._topic = f"{setting.topic}/{sensor}"
        self._address = f"{setting.host}:{setting.port or (8883 if setting.tls else 1883)}"
        self._home = (
            HomeAssistant(sensor=sensor, topic=self._topic, discovery=setting.discovery)
            if setting.discovery
            else None
        )
        # Used by both threads.
        self._lock = threading.Lock()
        self._connected = threading.Event()
        self._problem = "not connected yet"
        self._denied: set[int] = set()
        self._in_flight: dict[str, paho.MQTTMessageInfo] = {}
        for alert in open_alerts:
            self._take(alert)
        self._client = self._start(f"gradsense-{sensor}-{setting.name}")

    def send(self, alerts: Sequence[Alert]) -> None:
        """Publish all of them and wait for the broker's acknowledgements (PUBACK).

        Raises:
            SinkError: no connection, no acknowledgement in time, or the broker does not allow it.
        """
        if not self._connected.wait(_CONNECT_S):
            raise SinkError(f"{self._address}: {self._problem}")
        with self._lock:
            retained = [self._retain(message) for alert in alerts for message in self._take(alert)]
            published = {alert.key: self._publish(alert) for alert in alerts}
        self._in_flight.update(published)
        deadline = time.monotonic() + _ACK_S
        for key, info in published.items():
            self._await(info, deadline, key)
        for info in retained:
            self._await(info, deadline)

    def close(self) -> None:
        """Publish the status "offline", if there is a connection, and stop the thread."""
        client = self._client
        with suppress(RuntimeError, ValueError):  # then the broker publishes the last will
            if self._connected.is_set():
                offline = client.publish(f"{self._topic}/status", "offline", qos=1, retain=True)
                offline.wait_for_publish(_OFFLINE_S)
        client.disconnect()
        client.loop_stop()

    def _start(self, client_id: str) -> paho.Client:
        setting = self._setting
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5
        )
        if setting.username is not None:
            secret = setting.password.get_secret_value() if setting.password else None
            client.username_pw_set(setting.username, secret)
        if setting.tls:
            client.tls_set_context(tls_context(ca=setting.ca, cert=setting.cert, key=setting.key))
        client.will_set(f"{self._topic}/status", "offline", qos=1, retain=True)
        client.connect_timeout = _CONNECT_S
        client.reconnect_delay_set(1, 30)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        host, _, port = self._address.rpartition(":")
        client.connect_async(host, int(port), keepalive=30)
        client.loop_start()
        return client

    def _take(self, alert: Alert) -> list[DiscoveryMessage]:
        return self._home.take(alert) if self._home else []

    def _retain(self, message: DiscoveryMessage) -> paho.MQTTMessageInfo:
        return self._client.publish(message.topic, message.payload, qos=1, retain=True)

    def _publish(self, alert: Alert) -> paho.MQTTMessageInfo:
        """Publish an alert, unless the library is still repeating the same message."""
        waiting = self._in_flight.get(alert.key)
        if waiting is not None:
            return waiting
        body = as_json(alert, self._setting.format)
        return self._client.publish(f"{self._topic}/alert", body, qos=1)

    def _await(self, info: paho.MQTTMessageInfo, deadline: float, key: str = "") -> None:
        try:
            info.wait_for_publish(max(0.001, deadline - time.monotonic()))
            if not info.is_published():
                raise SinkError(f"{self._address}: no acknowledgement from the broker")
        except (RuntimeError, ValueError) as error:
            self._in_flight.pop(key, None)
            raise SinkError(f"{self._address}: {error}") from error
        self._in_flight.pop(key, None)
        if info.mid in self._denied:
            self._denied.discard(info.mid)
            raise SinkError(f"{self._address}: the broker does not allow this client to publish")

    # Called by the library's thread.

    def _on_connect(
        self, client: paho.Client, _data: Any, _flags: Any, code: ReasonCode, _properties: Any
    ) -> None:
        if code.is_failure:
            self._problem = f"the broker refused the connection: {code}"
            return
        client.publish(f"{self._topic}/status", "online", qos=1, retain=True)
        with self._lock:
            for message in self._home.everything() if self._home else ():
                client.publish(message.topic, message.payload, qos=1, retain=True)
        self._connected.set()

    def _on_connect_fail(self, _client: paho.Client, _data: Any) -> None:
        self._problem = f"no connection: {sys.exception()}"

    def _on_disconnect(
        self, _client: paho.Client, _data: Any, _flags: Any, code: ReasonCode, _properties: Any
    ) -> None:
        if self._connected.is_set():
            self._problem = f"the connection was lost: {code}"
        self._connected.clear()

    def _on_publish(
        self, _client: paho.Client, _data: Any, mid: int, code: ReasonCode, _properties: Any
    ) -> None:
        if code.is_failure:  # without the lock: the library holds one of its own here
            self._denied.add(mid)
