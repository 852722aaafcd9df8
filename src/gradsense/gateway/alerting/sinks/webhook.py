"""Alerts over HTTP, one POST each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import httpx
from pydantic import AfterValidator, Field, SecretStr

import gradsense
from gradsense.gateway.alerting.alert import Alert
from gradsense.gateway.alerting.formats import PLAIN, Format, as_json
from gradsense.gateway.alerting.sink import (
    Refused,
    Secret,
    SinkContext,
    SinkError,
    SinkSettings,
    tls_context,
)

#: Bytes read of an answer; beyond the status it is only for the log.
_MAX_ANSWER_BYTES = 4096


def _web_url(value: SecretStr) -> SecretStr:
    parts = urlsplit(value.get_secret_value())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it is no http:// or https:// address")
    if parts.username is not None:
        raise ValueError("it holds a user name; put it into a header instead")
    return value


class WebhookSettings(SinkSettings):
    """Where to post. The address may itself be a secret, as with chat services."""

    url: Annotated[Secret, AfterValidator(_web_url)]
    headers: dict[str, Secret] = Field(default_factory=dict)
    timeout_s: float = Field(default=5, gt=0, le=10)
    ca: Path | None = None
    format: Format = PLAIN

    def open(self, context: SinkContext) -> WebhookSink:
        return WebhookSink(self)


class WebhookSink:
    """One POST an alert, the body one JSON object, in order.

    ``Idempotency-Key`` is the same whenever the same message is sent again.
    """

    def __init__(self, setting: WebhookSettings) -> None:
        self.name = setting.name
        self._url = setting.url.get_secret_value()
        parts = urlsplit(self._url)
        # Chat services put a secret into the path, so messages name the host only.
        self._host = f"{parts.scheme}://{parts.hostname}"
        self._format = setting.format
        # The answers so far to a batch that failed midway and will be sent again.
        self._answers: dict[str, str | None] = {}
        self._client = httpx.Client(
            headers={
                "User-Agent": f"gradsense/{gradsense.__version__}",
                "Content-Type": "application/json",
                **{name: value.get_secret_value() for name, value in setting.headers.items()},
            },
            timeout=setting.timeout_s,
            verify=tls_context(ca=setting.ca),
        )

    def send(self, alerts: Sequence[Alert]) -> None:
        """Post all of them; a refused one does not hold back the others.

        Raises:
            SinkError: no answer, 3xx, 429 or 5xx: the receiver may take it later.
            Refused: another 4xx for some of them; all others arrived.
        """
        for alert in alerts:
            if alert.key not in self._answers:
                self._answers[alert.key] = self._post(alert)
        answers = [self._answers[alert.key] for alert in alerts]
        self._answers.clear()
        refused = [answer for answer in answers if answer is not None]
        if refused:
            raise Refused(
                f"{self._host} refused {len(refused)} of {len(alerts)} alerts: {refused[0]}",
                len(refused),
            )

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def _post(self, alert: Alert) -> str | None:
        """None if the receiver took it, else why it never will."""
        try:
            with self._client.stream(
                "POST",
                self._url,
                content=as_json(alert, self._format).encode(),
                headers={"Idempotency-Key": alert.key},
            ) as response:
                answer = f"{response.status_code} {_beginning(response)}".strip()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise SinkError(f"{self._host}: no answer: {reason}") from None
        if response.is_success:
            return None
        if response.is_client_error and response.status_code != httpx.codes.TOO_MANY_REQUESTS:
            return answer
        raise SinkError(f"{self._host} answered {answer}")


def _beginning(response: httpx.Response) -> str:
    """The answer's first bytes on one line. The connection stays open if it is read to its end."""
    body = b""
    for piece in response.iter_raw():
        body += piece[: _MAX_ANSWER_BYTES - len(body)]
        if len(body) >= _MAX_ANSWER_BYTES:
            break
    text = body[:200].decode(errors="replace")
    return "".join(char if char.isprintable() else " " for char in text)
