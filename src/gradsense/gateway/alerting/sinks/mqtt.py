"""Alerts over MQTT 5, at least once, with Home Assistant's entities.

Its discovery: https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery and
.../binary_sensor.mqtt/; one binary sensor for each device, on while an alert is open.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode
from pydantic import Field, model_validator

import gradsense
from gradsense.gateway.alerting.alert import Alert
from gradsense.gateway.alerting.formats import PLAIN, Format, as_json, iso
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
#: Entities that one gateway may create: a scan with forged senders must not flood the user's home.
MAX_DEVICES = 1000

_log = logging.getLogger(__name__)

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
        return MqttSink(self, context)


class MqttSink:
    """Publishes alerts and, as retained messages, the states that Home Assistant shows.

    A thread of the library connects from the start on and keeps the connection alive, so that the
    availability topic is right while there is no alert. After every connection all retained
    messages are published again: the broker may have lost them.
    """

    def __init__(self, setting: MqttSettings, context: SinkContext) -> None:
        sensor = context.sensor
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
        for alert in context.open_alerts:
            self._take(alert)
        self._client = self._start(f"gradsense-{sensor}-{setting.name}")

    def send(self, alerts: Sequence[Alert]) -> None:
        """Publish all of them and wait for the broker's acknowledgements (PUBACK)."""
        if not self._connected.wait(_CONNECT_S):
            raise SinkError(f"{self._address}: {self._problem}")
        with self._lock:
            retained = [self._retain(one) for alert in alerts for one in self._take(alert)]
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


@dataclass(frozen=True)
class DiscoveryMessage:
    """One MQTT message, retained by the broker."""

    topic: str
    payload: str


@dataclass
class _Device:
    """A device's open alerts, and the messages last published about it."""

    open: set[str] = field(default_factory=set)
    published: dict[str, DiscoveryMessage] = field(default_factory=dict)


def slug(device: str) -> str:
    """An address as part of a topic: letters, digits, hyphens; no two addresses share one.

    ``192.168.1.5`` is ``192-168-1-5``, an IPv6 address its eight groups in full, anything else
    (a zone, a host name) a hash.
    """
    try:
        address = ipaddress.ip_address(device)
    except ValueError:
        address = None
    if isinstance(address, ipaddress.IPv4Address):
        return str(address).replace(".", "-")
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is None:
        return address.packed.hex("-", 2)
    return "x" + hashlib.blake2b(device.encode(), digest_size=12).hexdigest()


class HomeAssistant:
    """Keeps which devices have open alerts, and the retained messages that show it.

    Args:
        sensor: the gateway's name.
        topic: prefix of the state topics, such as ``gradsense/gateway-1``.
        discovery: Home Assistant's discovery prefix.

    ``left_out`` counts alerts about devices beyond ``MAX_DEVICES``.
    """

    def __init__(self, *, sensor: str, topic: str, discovery: str) -> None:
        self.left_out = 0
        self._sensor, self._topic, self._discovery = sensor, topic, discovery
        self._devices: dict[str, _Device] = {}

    def take(self, alert: Alert) -> list[DiscoveryMessage]:
        """The messages that an alert changes: config at a device's first, attributes, state."""
        name = slug(alert.device)
        own = f"{self._topic}/device/{name}"
        device = self._devices.get(name)
        if device is None:
            if len(self._devices) >= MAX_DEVICES:
                if not self.left_out:
                    _log.warning("Home Assistant gets no entity of a device beyond %d", MAX_DEVICES)
                self.left_out += 1
                return []
            device = self._devices[name] = _Device()
        if alert.state == "closed":
            device.open.discard(alert.id)
        else:
            device.open.add(alert.id)
        wanted = {
            "config": self._config(alert.device, name),
            "attributes": DiscoveryMessage(
                f"{own}/attributes", _json(_short(alert, len(device.open)))
            ),
            "state": DiscoveryMessage(f"{own}/state", "ON" if device.open else "OFF"),
        }
        before, device.published = device.published, wanted
        return [message for key, message in wanted.items() if before.get(key) != message]

    def everything(self) -> list[DiscoveryMessage]:
        """All messages that the broker should retain, for one that may have lost them."""
        return [one for device in self._devices.values() for one in device.published.values()]

    def _config(self, device: str, name: str) -> DiscoveryMessage:
        unique = f"gradsense_{self._sensor}_{name}"
        own = f"{self._topic}/device/{name}"
        payload = {
            "name": device,
            "unique_id": unique,
            "device_class": "problem",
            "state_topic": f"{own}/state",
            "json_attributes_topic": f"{own}/attributes",
            "availability_topic": f"{self._topic}/status",
            "qos": 1,
            "device": {
                "identifiers": [f"gradsense_{self._sensor}"],
                "name": f"gradsense {self._sensor}",
                "manufacturer": "gradsense",
                "model": "Gateway",
                "sw_version": gradsense.__version__,
            },
            "origin": {"name": "gradsense", "sw_version": gradsense.__version__},
        }
        return DiscoveryMessage(f"{self._discovery}/binary_sensor/{unique}/config", _json(payload))


def _short(alert: Alert, open_alerts: int) -> dict[str, Any]:
    """The latest alert, as attributes of the entity."""
    return {
        "open_alerts": open_alerts,
        "class": alert.label,
        "severity": alert.severity,
        "title": alert.title,
        "what_happened": alert.sentence,
        "what_to_do": alert.advice,
        "since": iso(alert.first_ts),
        "last": iso(alert.last_ts),
        "alert": alert.id,
    }


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
