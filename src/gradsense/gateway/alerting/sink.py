"""A sink: settings that open it, and an object that delivers alerts. The outbox queues and retries.

Each sink is one file in ``alerting/sinks/``. The file's name is the ``type`` of a ``[[sink]]`` in
the settings file, and the file defines one subclass of ``SinkSettings``.
"""

from __future__ import annotations

import os
import ssl
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
)

from gradsense.errors import GradsenseError, InputError
from gradsense.gateway.alerting.alert import Alert, Severity

if TYPE_CHECKING:  # it needs a library that not every gateway has
    from gradsense.gateway.instruments import Metrics


class SinkError(GradsenseError):
    """Delivery failed for now; the outbox tries again later. The text says what failed and why."""


class Refused(SinkError):
    """The receiver will never take some alerts of this batch (HTTP 400, say) and has the others.

    ``text`` is its reason; the outbox counts ``count`` alerts as dropped.
    """

    def __init__(self, text: str, count: int = 1) -> None:
        super().__init__(text)
        self.count = count


class Sink(Protocol):
    """One receiver of alerts. Only one thread uses it. It connects when it has something to send,
    so a receiver that is down costs nothing until it is back."""

    name: str

    def send(self, alerts: Sequence[Alert]) -> None:
        """Deliver all of them, in order; on return the receiver has them.

        Delivery is at least once: after a crash a batch may come again, with the same ids and
        revisions.

        Raises:
            SinkError: none or only a part arrived; the same batch will be sent again.
            Refused: the receiver will never take it.
        """

    def close(self) -> None:
        """Close connections and files. Raises nothing."""


@dataclass(frozen=True)
class SinkContext:
    """The gateway's part in what a sink is made from.

    Args:
        sensor: the gateway's name.
        metrics: of the process; None unless a sink ``needs_metrics``.
        open_alerts: alerts that were open when the process last ended.
    """

    sensor: str
    metrics: Metrics | None = None
    open_alerts: Sequence[Alert] = ()


class SinkSettings(BaseModel, ABC):
    """The settings that every sink has. A subclass adds its own and opens the sink.

    Args:
        type: the name of the sink's file.
        name: in messages and metrics; the type by default.
        min_severity: alerts below it are not sent.
        queue_mb: bound of the queue on disk, in MiB.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
    #: Whether the sink serves the metrics of the process.
    needs_metrics: ClassVar[bool] = False

    type: str
    name: str = Field(default="", pattern=r"^[A-Za-z0-9_-]*$", max_length=64)
    min_severity: Severity = "info"
    queue_mb: float = Field(default=64, gt=0, le=65_536)

    @abstractmethod
    def open(self, context: SinkContext) -> Sink:
        """The sink.

        Raises:
            InputError: a certificate is missing, or an address is taken.
        """


def _from_environment(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str) or not value.startswith("env:"):
        return value
    name = value.removeprefix("env:")
    environ: Mapping[str, str] = os.environ if info.context is None else info.context
    if not environ.get(name):
        raise ValueError(f"the environment variable {name} is not set")
    return environ[name]


def _one_line(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().isprintable():
        raise ValueError("a line break or control character is in it")
    return value


#: A value that is never printed; ``env:NAME`` stands for an environment variable.
Secret = Annotated[SecretStr, BeforeValidator(_from_environment), AfterValidator(_one_line)]


def tls_context(
    *, ca: Path | None, cert: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """A TLS client's context that checks the receiver's certificate and name.

    Args:
        ca: PEM file of authorities, in place of the system's.
        cert, key: PEM files of the client's own certificate.

    Raises:
        InputError: a file is missing or holds no certificate or key.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert is not None:
            context.load_cert_chain(cert, key)
    except OSError as error:  # ssl.SSLError is one
        files = ", ".join(str(file) for file in (ca, cert, key) if file is not None)
        raise InputError(
            f"cannot be used for TLS ({error.strerror or error})",
            hint="give PEM files of authority, certificate and key that this process may read",
            file=files,
        ) from error
    return context
