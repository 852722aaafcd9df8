"""The settings file of ``gradsense watch``: TOML, every key checked, secrets from elsewhere.

A sink's keys are in its own file, in ``alerting/sinks/``.
"""

from __future__ import annotations

import os
import socket
import stat
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from gradsense.data.networks import is_loopback
from gradsense.errors import InputError, input_errors
from gradsense.gateway.adapt.baseline import BaselineSettings
from gradsense.gateway.alerting import sinks
from gradsense.gateway.alerting.sink import SinkSettings

#: A settings file is small; a larger one is something else.
_MAX_BYTES = 1 << 20

_MAX_TOKEN_BYTES = 4096
#: Shorter tokens could be guessed.
_LEAST_TOKEN = 16
_MAKE_TOKEN = "make one: (umask 077; openssl rand -hex 32 > token)"

_File = TypeVar("_File", bound=BaseModel)
_Loc = tuple[int | str, ...]

#: A part of an MQTT topic, and of names made from it.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class EscalateSettings(_Model):
    """The ``[escalate]`` part of a gateway's settings.

    Args:
        url: of the service, ``https://host:port``; plain http only on this machine.
        token_env, token_file: where the token is; at most one of them.
        ca: PEM file of the authority that signed the service's certificate; the system's if None.
        band: verdicts whose probability is in this range are unsure.
        novel: whether novel flows are unsure, whatever their probability.
        time_ms: the longest that ``ask`` may take.
        bytes_per_minute: bytes that may be sent.
        most: prompts of one request, at most.
        memory, memory_s: answers that are cached, and for how many seconds.
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


class Settings(_Model):
    """The whole file.

    Args:
        sensor: the gateway's name in every message.
        window_s: an alert closes after so many seconds without a flow of its kind.
        max_s: an alert closes after so many seconds in any case; the next flow opens another.
        networks: the operator's own with public addresses, such as ``203.0.113.0/24``.
        archive: folder that rotated logs are moved to, unchanged or by date.
        baseline: how the baselines of devices are learnt.
        escalate: the larger model to ask; without it none is asked.
        sink: receivers, each with its own name.

    >>> Settings(sensor="hall", networks=["203.0.113.0/24"]).window_s
    300
    """

    sensor: Name = Field(
        default_factory=lambda: socket.gethostname().split(".")[0], validate_default=True
    )
    window_s: float = Field(default=300, gt=0, le=86_400)
    max_s: float = Field(default=86_400, gt=0, le=31_536_000)
    networks: tuple[IPvAnyNetwork, ...] = ()
    archive: Path | None = None
    baseline: BaselineSettings = Field(default_factory=BaselineSettings)
    escalate: EscalateSettings | None = None
    sink: tuple[Annotated[SerializeAsAny[SinkSettings], BeforeValidator(sinks.parse)], ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> Settings:
        names = [sink.name for sink in self.sink]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sinks are called '{name}'; give each its own name")
        return self


def read(path: Path | str, *, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of a file.

    Args:
        environ: where ``env:NAME`` is looked up.

    Raises:
        InputError: the file cannot be read, is no TOML, or a key is unknown, missing or wrong.
    """
    hint = "docs/sinks.md and docs/edge.md have all keys"
    return read_toml(path, Settings, _place, hint=hint, context=environ)


def read_toml(
    path: Path | str,
    model: type[_File],
    place: Callable[[_Loc, dict[str, Any]], str | None],
    *,
    hint: str,
    missing: str = "Field required",
    context: Any = None,
) -> _File:
    """A small TOML file as a model.

    Args:
        place: from where pydantic has a fault, and the file's values, to words for people.
        hint: where the keys are documented.
        missing: what to say of a key that is not there.
        context: for the model's validators.

    Raises:
        InputError: the file cannot be read, is no TOML, or a key is unknown, missing or wrong.
    """
    path, values = Path(path), dict[str, Any]()
    with input_errors("cannot be read", hint="check the path", file=path), path.open("rb") as file:
        text = file.read(_MAX_BYTES + 1)
    try:
        if len(text) > _MAX_BYTES:
            raise InputError("the file is larger than 1 MiB", hint=hint, file=path)
        values = tomllib.loads(text.decode())
        return model.model_validate(values, context=context)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        plain = {"extra_forbidden": "unknown key", "missing": missing}
        what = plain.get(fault["type"], fault["msg"].removeprefix("Value error, "))
        # Without its cause, whose text would show what was given.
        raise InputError(what, hint=hint, file=path, field=place(fault["loc"], values)) from None
    except (ValueError, RecursionError) as error:  # no TOML, or no UTF-8
        raise InputError(f"is no TOML: {error}", hint="correct that line", file=path) from error


def _place(loc: _Loc, values: dict[str, Any]) -> str | None:
    """``sink 2 (webhook): url`` for ``("sink", 1, "url")``."""
    match loc:
        case ():
            return None
        case ("sink", int(index), *rest):
            given = values["sink"][index]
            kind = given.get("type") if isinstance(given, dict) else None
            shown = f"sink {index + 1} ({kind})" if kind in sinks.types() else f"sink {index + 1}"
            return ": ".join([shown, *map(str, rest)])
    return ".".join(str(part) for part in loc)


def read_secret(file: Path) -> str:
    """The token in ``file``, without white space around it.

    Raises:
        InputError: the file cannot be read, other users may read it, or it holds no token: 16 or
            more printable ASCII characters without spaces.
    """
    with input_errors("cannot be read", hint=_MAKE_TOKEN, file=file), file.open("rb") as stream:
        mode, body = file.stat().st_mode, stream.read(_MAX_TOKEN_BYTES + 1)
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise InputError(
            "other users may read or write the token", hint=f"chmod 600 {file}", file=file
        )
    return checked_secret(body.decode("ascii", errors="replace").strip(), file)


def checked_secret(token: str, source: Path | str) -> str:
    """``token``, if it fits a header and is long enough. ``source`` is named in the error.

    Raises:
        InputError: it is not.
    """
    printable = all("!" <= sign <= "~" for sign in token)
    if not printable or not _LEAST_TOKEN <= len(token) <= _MAX_TOKEN_BYTES:
        raise InputError(
            f"no token of {_LEAST_TOKEN} or more printable characters",
            hint=_MAKE_TOKEN,
            file=source,
        )
    return token
