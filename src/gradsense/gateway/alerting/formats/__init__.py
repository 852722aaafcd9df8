"""Alerts as JSON objects. Each format is one file with a function ``document(alert)``."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib import import_module
from typing import Annotated, Any

from pydantic import AfterValidator

from gradsense import registry
from gradsense.gateway.alerting.alert import Alert

#: The format without a file of its own: the alert as it is.
PLAIN = "gradsense"
#: The last second that ``datetime`` can express. A broken log may hold a later one, and an alert
#: about it must still be sent.
_LAST_SECOND = 253_402_300_799.0


def names() -> list[str]:
    """The formats that there are."""
    return [PLAIN, *registry.names(__name__)]


def _known(name: str) -> str:
    if name not in names():
        raise ValueError(f"'{name}' is none of {', '.join(names())}")
    return name


#: The name of a format, in settings.
Format = Annotated[str, AfterValidator(_known)]


def document(alert: Alert, name: str) -> dict[str, Any]:
    """The alert in the format of that name; the plain one adds its times in ISO 8601."""
    if name == PLAIN:
        times = {"first_time": iso(alert.first_ts), "last_time": iso(alert.last_ts)}
        return alert.model_dump(mode="json") | times
    made: dict[str, Any] = import_module(f"{__name__}.{name}").document(alert)
    return made


def as_json(alert: Alert, name: str) -> str:
    """One line of JSON in the format of that name."""
    return json.dumps(document(alert, name), ensure_ascii=False, separators=(",", ":"))


def present(fields: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that are not known: schemas want them absent, not null."""
    return {key: value for key, value in fields.items() if value is not None}


def milliseconds(ts: float) -> int:
    """Whole milliseconds since the epoch of a log's time in seconds."""
    return round(min(max(ts, 0.0), _LAST_SECOND) * 1000)


def iso(ts: float) -> str:
    """For example ``2018-12-21T15:50:14.182Z`` (ISO 8601 and RFC 3339)."""
    seconds, rest = divmod(milliseconds(ts), 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"
