"""The settings file of ``gradsense watch``: TOML, every key checked, secrets from environment."""

from __future__ import annotations

import os
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    SecretStr,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from gradsense.data.networks import is_loopback
from gradsense.errors import InputError
from gradsense.gateway.adapt.baseline import BaselineSettings
from gradsense.gateway.alerting.alert import Severity
from gradsense.gateway.alerting.formats import Format

#: A settings file is small; a larger one is something else.
_MAX_BYTES = 1 << 20

_UNKNOWN = "unknown key"

_SYSLOG_PORTS = {"udp": 514, "tcp": 601, "tls": 6514}

Facility = Literal[
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news",
    "uucp", "cron", "authpriv", "ftp", "ntp", "audit", "alert", "clock",
    "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
]  # fmt: skip


def _from_environment(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str) or not value.startswith("env:"):
        return value
    name = value.removeprefix("env:")
    environ: Mapping[str, str] = info.context or {}
    if not environ.get(name):
        raise ValueError(f"the environment variable {name} is not set")
    return environ[name]


def _one_line(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().isprintable():
        raise ValueError("a line break or control character is in it")
    return value


def _web_url(value: SecretStr) -> SecretStr:
    parts = urlsplit(value.get_secret_value())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it is no http:// or https:// address")
    if parts.username is not None:
        raise ValueError("it holds a user name; put it into a header instead")
    return value


def _syslog_address(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme == "unix" and parts.path and not parts.netloc:
        return value
    if parts.scheme not in _SYSLOG_PORTS or not parts.hostname:
        raise ValueError("it is none of udp://host, tcp://host, tls://host, unix:///path")
    _ = parts.port  # raises ValueError beyond 65535
    return value


def _listen_address(value: str) -> str:
    parts = urlsplit(f"//{value}")
    if not parts.hostname or parts.port is None or parts.path:
        raise ValueError("it is no host:port, such as 127.0.0.1:9465")
    return value


#: A value that is never printed; ``env:NAME`` stands for an environment variable.
Secret = Annotated[SecretStr, BeforeValidator(_from_environment), AfterValidator(_one_line)]
#: A part of an MQTT topic and of names made from it.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Topic = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", max_length=128)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class _Sink(_Model):
    """What every sink has: a name in messages, a threshold, a bound of its queue on disk."""

    name: str = Field(default="", pattern=r"^[A-Za-z0-9_-]*$", max_length=64)
    min_severity: Severity = "info"
    queue_mb: float = Field(default=64, gt=0, le=65_536)


class FileSetting(_Sink):
    """Lines of JSON, appended to a file or (``-``) to standard output."""

    type: Literal["jsonl"]
    path: str = Field(min_length=1)
    format: Format = "gradsense"


class SyslogSetting(_Sink):
    """RFC 5424 messages by datagram, TCP or TLS. ``text`` is the alert's sentence."""

    type: Literal["syslog"]
    address: Annotated[str, AfterValidator(_syslog_address)]
    facility: Facility = "local0"
    format: Literal["text", Format] = "text"
    max_bytes: int = Field(default=8192, ge=480, le=65_000)
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def host_port(self) -> tuple[str, int]:
        """Where to, for every scheme but ``unix``."""
        parts = urlsplit(self.address)
        return parts.hostname or "", parts.port or _SYSLOG_PORTS[parts.scheme]


class WebhookSetting(_Sink):
    """One POST an alert. The address may itself be a secret, as with chat services."""

    type: Literal["webhook"]
    url: Annotated[Secret, AfterValidator(_web_url)]
    headers: dict[str, Secret] = {}
    timeout_s: float = Field(default=5, gt=0, le=10)
    ca: Path | None = None
    format: Format = "gradsense"


class MqttSetting(_Sink):
    """An MQTT 5 broker, and Home Assistant behind it. Without ``discovery`` only alerts go."""

    type: Literal["mqtt"]
    host: str = Field(min_length=1)
    port: int = Field(default=0, ge=0, le=65_535)  # 0: 1883, or 8883 with TLS
    username: str | None = None
    password: Secret | None = None
    tls: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    topic: Topic = "gradsense"
    discovery: Topic | Literal[""] = "homeassistant"
    format: Format = "gradsense"

    @model_validator(mode="after")
    def _tls_for_certificates(self) -> MqttSetting:
        if not self.tls and (self.ca or self.cert or self.key):
            raise ValueError("certificates are named, but tls is not true")
        return self


class PrometheusSetting(_Sink):
    """Metrics over HTTP, for Prometheus to fetch."""

    type: Literal["prometheus"]
    address: Annotated[str, AfterValidator(_listen_address)] = "127.0.0.1:9465"


SinkSetting = Annotated[
    FileSetting | SyslogSetting | WebhookSetting | MqttSetting | PrometheusSetting,
    Field(discriminator="type"),
]


class EscalateSettings(_Model):
    """The ``[escalate]`` part of a gateway's settings.

    Args:
        url: of the service, ``https://host:port``; plain http on this machine only.
        token_env, token_file: where the token is; at most one of them.
        ca: PEM file of the authority that signed the service's certificate; the system's if None.
        band: verdicts whose probability is in it are unsure.
        novel: novel flows are unsure, whatever their probability.
        time_ms: the longest that ``ask`` may take.
        bytes_per_minute: what may be sent.
        most: prompts of one request.
        memory, memory_s: answers remembered, and for how long.
    """

    url: str
    token_env: str | None = None
    token_file: Path | None = None
    ca: Path | None = None
    band: tuple[float, float] = (0.0, 0.9)
    novel: bool = True
    time_ms: float = Field(200.0, gt=0, le=60_000)
    bytes_per_minute: int = Field(100_000, ge=0)
    most: int = Field(256, ge=1, le=1024)
    memory: int = Field(65_536, ge=0)
    memory_s: float = Field(3600.0, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> EscalateSettings:
        if self.token_env is not None and self.token_file is not None:
            raise ValueError("give token_env or token_file, not both")
        if not 0 <= self.band[0] <= self.band[1] <= 1:
            raise ValueError("band is two probabilities, the lower one first")
        parts = urlsplit(self.url)
        local = parts.scheme == "http" and is_loopback(parts.hostname or "")
        if not parts.hostname or not (parts.scheme == "https" or local):
            raise ValueError("url must begin with https://, or name this machine")
        return self


def _host_name() -> str:
    return socket.gethostname().split(".")[0]


class Settings(_Model):
    """All of the file.

    Args:
        sensor: the gateway's name in every message.
        window_s: an alert closes after so many seconds without a flow of its kind.
        max_s: and after so many seconds in any case; the next flow opens another.
        networks: those of one's own that have public addresses, such as ``203.0.113.0/24``.
        archive: folder that rotated logs are moved to, as they are or by date.
        baseline: how the habits of devices are learnt.
        escalate: a larger model to ask; nobody is asked without it.
        sink: receivers, each with its own name.
    """

    sensor: Name = Field(default_factory=_host_name, validate_default=True)
    window_s: float = Field(default=300, gt=0, le=86_400)
    max_s: float = Field(default=86_400, gt=0, le=31_536_000)
    networks: tuple[IPvAnyNetwork, ...] = ()
    archive: Path | None = None
    baseline: BaselineSettings = Field(default_factory=BaselineSettings)
    escalate: EscalateSettings | None = None
    sink: tuple[SinkSetting, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _name_sinks(cls, values: Any) -> Any:
        """A sink without a name is called like its type."""
        sinks = values.get("sink") if isinstance(values, dict) else None
        if not isinstance(sinks, list):
            return values
        return {**values, "sink": [_named(sink) for sink in sinks]}

    @model_validator(mode="after")
    def _names_differ(self) -> Settings:
        names = [sink.name for sink in self.sink]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sinks are called '{name}'; give each its own name")
        return self


def _named(sink: Any) -> Any:
    if isinstance(sink, dict) and "type" in sink and not sink.get("name"):
        return {**sink, "name": sink["type"]}
    return sink


def read(path: Path | str, *, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of a file.

    Args:
        environ: where ``env:NAME`` is looked up.

    Raises:
        InputError: the file cannot be read, is no TOML, or a key is unknown, missing or wrong.
    """
    path = Path(path)
    hint = "docs/sinks.md and docs/edge.md have all keys"
    try:
        with path.open("rb") as stream:
            text = stream.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise InputError("the file is larger than 1 MiB", hint=hint, file=path)
        return Settings.model_validate(tomllib.loads(text.decode()), context=environ)
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror or error})", hint="check the path", file=path
        ) from error
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        raise InputError(
            _UNKNOWN if fault["type"] == "extra_forbidden" else _plain(fault["msg"]),
            hint=hint,
            file=path,
            field=_place(fault["loc"]),
        ) from None  # its text would show what was given
    except ValueError as error:  # no TOML, or no UTF-8
        raise InputError(f"is no TOML: {error}", hint="mend that line", file=path) from error


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ")


def _place(loc: tuple[int | str, ...]) -> str | None:
    """``sink 2 (webhook): url`` for ``("sink", 1, "webhook", "url")``."""
    match loc:
        case ():
            return None
        case ("sink", int(index), str(kind), *rest):
            return f"sink {index + 1} ({kind})" + "".join(f": {part}" for part in rest)
        case ("sink", int(index), *_):
            return f"sink {index + 1}"
    return ".".join(str(part) for part in loc)
