"""The sinks that there are: one file each, found by its name (see ``alerting.sink``)."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationInfo

from gradsense import discovery
from gradsense.errors import InputError
from gradsense.gateway.alerting.sink import SinkSettings


def types() -> list[str]:
    """The values that ``type`` of a ``[[sink]]`` may have."""
    return discovery.names(__name__)


def parse(table: Any, info: ValidationInfo) -> SinkSettings:
    """The settings of one ``[[sink]]``. Only the library that this sink needs is imported.

    Raises:
        ValueError: no such type, or a key is unknown, missing or wrong.
        InputError: the sink's library is not installed.
    """
    if isinstance(table, SinkSettings):
        return table
    kind = table.get("type") if isinstance(table, dict) else None
    if kind not in types():
        raise ValueError(f"type {kind!r} is none of {', '.join(types())}")
    try:
        module = f"{__name__}.{kind}"
        (settings,) = discovery.defined(module, SinkSettings)  # type: ignore[type-abstract]
    except ModuleNotFoundError as error:
        raise InputError(
            f"sink '{kind}' needs the library {(error.name or '').partition('.')[0]}",
            hint="pip install 'gradsense[edge]'",
        ) from error
    named = {**table, "name": table.get("name") or kind}
    return settings.model_validate(named, context=info.context)
