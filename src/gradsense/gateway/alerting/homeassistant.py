"""Home Assistant's MQTT discovery: one binary sensor for each device, on while an alert is open.

https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery and .../binary_sensor.mqtt/
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
from dataclasses import dataclass, field
from typing import Any

import gradsense
from gradsense.gateway.alerting.alert import Alert
from gradsense.gateway.alerting.formats import iso

#: Entities that one gateway may create: a scan with forged senders must not flood the user's home.
MAX_DEVICES = 1000

_log = logging.getLogger(__name__)


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
        self._sensor = sensor
        self._topic = topic
        self._discovery = discovery
        self._devices: dict[str, _Device] = {}

    def take(self, alert: Alert) -> list[DiscoveryMessage]:
        """The messages that an alert changes: config at a device's first, attributes, state."""
        name = slug(alert.device)
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
                f"{self._topic}/device/{name}/attributes", _json(_short(alert, len(device.open)))
            ),
            "state": DiscoveryMessage(
                f"{self._topic}/device/{name}/state", "ON" if device.open else "OFF"
            ),
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
