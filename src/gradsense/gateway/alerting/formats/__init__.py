"""Alerts as JSON objects: our own, OCSF and ECS."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

from gradsense.gateway.alerting.alert import Alert
from gradsense.gateway.alerting.formats.ecs import ecs
from gradsense.gateway.alerting.formats.ocsf import ocsf
from gradsense.gateway.alerting.formats.times import iso

Format = Literal["gradsense", "ocsf", "ecs"]


def gradsense(alert: Alert) -> dict[str, Any]:
    """The alert as it is, and its times once more in ISO 8601."""
    return {
        **alert.model_dump(mode="json"),
        "first_time": iso(alert.first_ts),
        "last_time": iso(alert.last_ts),
    }


FORMATS: dict[Format, Callable[[Alert], dict[str, Any]]] = {
    "gradsense": gradsense,
    "ocsf": ocsf,
    "ecs": ecs,
}


def as_json(alert: Alert, name: Format) -> str:
    """One line of JSON in the format of that name."""
    return json.dumps(FORMATS[name](alert), ensure_ascii=False, separators=(",", ":"))
