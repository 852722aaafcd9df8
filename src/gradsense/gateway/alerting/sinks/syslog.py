"""Syslog: RFC 5424 messages over UDP (RFC 5426), TCP (RFC 6587), TLS (RFC 5425) and /dev/log."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from typing import get_args
from urllib.parse import urlsplit

from gradsense.gateway.alerting.alert import Alert, Severity
from gradsense.gateway.alerting.formats import as_json
from gradsense.gateway.alerting.formats.times import iso
from gradsense.gateway.alerting.sinks import tls
from gradsense.gateway.alerting.sinks.sink import SinkError
from gradsense.gateway.settings import Facility, SyslogSetting

#: RFC 5424 table 1 in order, so that the place is the code.
_FACILITIES: tuple[str, ...] = get_args(Facility)
#: RFC 5424 table 2. "error" stands for high: "alert" and "emergency" would wake everybody.
_LEVELS: dict[Severity, int] = {"info": 6, "low": 5, "medium": 4, "high": 3, "critical": 2}
#: 32473 is the enterprise number for examples (RFC 5612); gradsense has none of its own.
_SD_ID = "gradsense@32473"
_BOM = b"\xef\xbb\xbf"
_TIMEOUT_S = 5.0


def message(
    alert: Alert, *, sensor: str, facility: str, text: str, max_bytes: int = 65_000
) -> bytes:
    """One RFC 5424 message; ``text`` is cut so that all of it has ``max_bytes`` at most.

    Control characters become spaces, so that no value can forge a line at the receiver.
    """
    facts = {
        "id": alert.id,
        "revision": str(alert.revision),
        "device": alert.device,
        "class": alert.label,
        "severity": alert.severity,
        "flows": str(alert.flows),
        "peers": str(alert.peers),
    }
    if alert.technique is not None:
        facts["technique"] = alert.technique
    parameters = " ".join(f'{name}="{_escaped(value)}"' for name, value in facts.items())
    head = (
        f"<{_FACILITIES.index(facility) * 8 + _LEVELS[alert.severity]}>1 {iso(alert.last_ts)} "
        f"{sensor} gradsense - {alert.state} [{_SD_ID} {parameters}] "
    ).encode()
    room = max(0, max_bytes - len(head) - len(_BOM))
    # A character that the cut went through is dropped.
    body = _plain(text).encode()[:room].decode(errors="ignore").encode()
    return head + _BOM + body


def _plain(text: str) -> str:
    return "".join(" " if ord(char) < 32 or 127 <= ord(char) < 160 else char for char in text)


def _escaped(value: str) -> str:
    """PARAM-VALUE, RFC 5424 section 6.3.3."""
    for special in ("\\", '"', "]"):
        value = value.replace(special, f"\\{special}")
    return _plain(value)


class SyslogSink:
    """Sends each alert as one message.

    Syslog knows no receipts: what is lost on the way, or in a receiver that dies with it, is lost.

    Raises:
        InputError: a certificate file cannot be used.
    """

    def __init__(self, setting: SyslogSetting, *, sensor: str) -> None:
        self.name = setting.name
        self._setting = setting
        self._sensor = sensor
        self._scheme = urlsplit(setting.address).scheme
        self._tls = (
            tls.context(ca=setting.ca, cert=setting.cert, key=setting.key)
            if self._scheme == "tls"
            else None
        )
        self._socket: socket.socket | None = None

    def send(self, alerts: Sequence[Alert]) -> None:
        """Hand all of them to the network.

        Raises:
            SinkError: no connection, or it broke.
        """
        messages = [self._message(alert) for alert in alerts]
        try:
            connection = self._connected()
            if self._scheme in ("tcp", "tls"):
                # Octet counting, RFC 6587 section 3.4.1 and RFC 5425 section 4.3.
                connection.sendall(b"".join(b"%d %b" % (len(one), one) for one in messages))
            else:
                for one in messages:
                    connection.send(one)
        except OSError as error:
            self.close()
            raise SinkError(
                f"{self._setting.address}: cannot send: {error.strerror or error}"
            ) from error

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _message(self, alert: Alert) -> bytes:
        form = self._setting.format
        return message(
            alert,
            sensor=self._sensor,
            facility=self._setting.facility,
            text=f"{alert.title}: {alert.sentence}" if form == "text" else as_json(alert, form),
            max_bytes=self._setting.max_bytes,
        )

    def _connected(self) -> socket.socket:
        if self._socket is not None and self._scheme in ("tcp", "tls") and _hung_up(self._socket):
            self.close()
        if self._socket is None:
            self._socket = self._connect()
        return self._socket

    def _connect(self) -> socket.socket:
        if self._scheme == "unix":
            return _datagram(socket.AF_UNIX, urlsplit(self._setting.address).path)
        host, port = self._setting.host_port()
        if self._scheme == "udp":
            family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
            return _datagram(family, target)
        plain = socket.create_connection((host, port), timeout=_TIMEOUT_S)
        if self._tls is None:
            return plain
        try:
            return self._tls.wrap_socket(plain, server_hostname=host)
        except OSError:
            plain.close()
            raise


def _datagram(family: int, target: object) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.settimeout(_TIMEOUT_S)
    try:
        made.connect(target)  # type: ignore[arg-type]
    except OSError:
        made.close()
        raise
    return made


def _hung_up(connection: socket.socket) -> bool:
    """True if the receiver closed. A write would still succeed, and the messages be lost."""
    connection.settimeout(0)
    try:
        return not connection.recv(4096)
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    finally:
        connection.settimeout(_TIMEOUT_S)
