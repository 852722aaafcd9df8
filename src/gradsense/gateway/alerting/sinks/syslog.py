"""Syslog: RFC 5424 messages over UDP (RFC 5426), TCP (RFC 6587), TLS (RFC 5425) and /dev/log."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from gradsense.gateway.alerting.alert import Alert, Severity
from gradsense.gateway.alerting.formats import Format, as_json, iso
from gradsense.gateway.alerting.sink import SinkContext, SinkError, SinkSettings, tls_context

#: RFC 5424 table 1 in order, so that the place is the code.
Facility = Literal[
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news",
    "uucp", "cron", "authpriv", "ftp", "ntp", "audit", "alert", "clock",
    "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
]  # fmt: skip
_FACILITIES: tuple[str, ...] = get_args(Facility)
#: RFC 5424 table 2. High is "error": "alert" and "emergency" would page people.
_LEVELS: dict[Severity, int] = {"info": 6, "low": 5, "medium": 4, "high": 3, "critical": 2}
#: 32473 is the enterprise number for examples (RFC 5612); gradsense has none of its own.
_SD_ID = "gradsense@32473"
_BOM = b"\xef\xbb\xbf"
_TIMEOUT_S = 5.0
_PORTS = {"udp": 514, "tcp": 601, "tls": 6514}


def _address(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme == "unix" and parts.path and not parts.netloc:
        return value
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("it is none of udp://host, tcp://host, tls://host, unix:///path")
    _ = parts.port  # raises ValueError beyond 65535
    return value


class SyslogSettings(SinkSettings):
    """Where to send, and how; the format ``text`` is the alert's title and sentence."""

    address: Annotated[str, AfterValidator(_address)]
    facility: Facility = "local0"
    format: Literal["text"] | Format = "text"
    max_bytes: int = Field(default=8192, ge=480, le=65_000)
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def host_port(self) -> tuple[str, int]:
        """The receiver's, for every scheme but ``unix``."""
        parts = urlsplit(self.address)
        return parts.hostname or "", parts.port or _PORTS[parts.scheme]

    def open(self, context: SinkContext) -> SyslogSink:
        return SyslogSink(self, sensor=context.sensor)


def message(
    alert: Alert, *, sensor: str, facility: str, text: str, max_bytes: int = 65_000
) -> bytes:
    """One RFC 5424 message; ``text`` is cut so that the message has at most ``max_bytes``.

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
    # A character that was cut in two is dropped.
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

    Syslog has no acknowledgement: a message lost on the way, or by a receiver that fails, is lost.
    """

    def __init__(self, setting: SyslogSettings, *, sensor: str) -> None:
        self.name = setting.name
        self._setting = setting
        self._sensor = sensor
        self._scheme = urlsplit(setting.address).scheme
        self._tls = (
            tls_context(ca=setting.ca, cert=setting.cert, key=setting.key)
            if self._scheme == "tls"
            else None
        )
        self._socket: socket.socket | None = None

    def send(self, alerts: Sequence[Alert]) -> None:
        """Send all of them."""
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
    """True if the receiver closed. A write would still succeed, and its messages would be lost."""
    connection.settimeout(0)
    try:
        return not connection.recv(4096)
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    finally:
        connection.settimeout(_TIMEOUT_S)
