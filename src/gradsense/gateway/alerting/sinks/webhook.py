"""Alerts as HTTP POST."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

import httpx

import gradsense
from gradsense.gateway.alerting.alert import Alert
from gradsense.gateway.alerting.formats import as_json
from gradsense.gateway.alerting.sinks import tls
from gradsense.gateway.alerting.sinks.sink import Refused, SinkError
from gradsense.gateway.settings import WebhookSetting

#: Of an answer, only so much is read; what it says beyond the status is for the log.
_MAX_ANSWER_BYTES = 4096


class WebhookSink:
    """One POST an alert, the body one JSON object, in order.

    ``Idempotency-Key`` is the same whenever the same message comes again.

    Raises:
        InputError: the file of authorities cannot be used.
    """

    def __init__(self, setting: WebhookSetting) -> None:
        self.name = setting.name
        self._url = setting.url.get_secret_value()
        parts = urlsplit(self._url)
        # Chat services put a secret into the path: messages name the host only.
        self._host = f"{parts.scheme}://{parts.hostname}"
        self._format = setting.format
        # Of a batch that failed midway and will come again: what the receiver said so far.
        self._answers: dict[str, str | None] = {}
        self._client = httpx.Client(
            headers={
                "User-Agent": f"gradsense/{gradsense.__version__}",
                "Content-Type": "application/json",
                **{name: value.get_secret_value() for name, value in setting.headers.items()},
            },
            timeout=setting.timeout_s,
            verify=tls.context(ca=setting.ca),
        )

    def send(self, alerts: Sequence[Alert]) -> None:
        """Post all of them; one that is refused does not keep the others back.

        Raises:
            SinkError: no answer, 3xx, 429 or 5xx: the receiver may take it later.
            Refused: another 4xx for some of them; all others arrived.
        """
        for alert in alerts:
            key = _key(alert)
            if key not in self._answers:
                self._answers[key] = self._post(alert, key)
        answers = [self._answers[_key(alert)] for alert in alerts]
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

    def _post(self, alert: Alert, key: str) -> str | None:
        """None if taken, else why the receiver never will."""
        try:
            with self._client.stream(
                "POST",
                self._url,
                content=as_json(alert, self._format).encode(),
                headers={"Idempotency-Key": key},
            ) as response:
                said = f"{response.status_code} {_beginning(response)}".strip()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise SinkError(f"{self._host}: no answer: {reason}") from None
        if response.is_success:
            return None
        if response.is_client_error and response.status_code != httpx.codes.TOO_MANY_REQUESTS:
            return said
        raise SinkError(f"{self._host} answered {said}")


def _key(alert: Alert) -> str:
    return f"{alert.id}-{alert.revision}"


def _beginning(response: httpx.Response) -> str:
    """The answer's first bytes on one line. An answer read to its end lets the connection live."""
    body = b""
    for piece in response.iter_raw():
        body += piece[: _MAX_ANSWER_BYTES - len(body)]
        if len(body) >= _MAX_ANSWER_BYTES:
            break
    text = body[:200].decode(errors="replace")
    return "".join(char if char.isprintable() else " " for char in text)
