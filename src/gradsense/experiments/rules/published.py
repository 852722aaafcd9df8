"""What a published detection rule is, and all of them.

A rule is one module in this folder that defines ``RULE``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module

import polars as pl

from gradsense import discovery
from gradsense.data.networks import Networks
from gradsense.experiments.device_hours import RaisedAlert

_UNSET = ("", "-")


@dataclass(frozen=True)
class PublishedRule:
    """A rule over the flows of one log.

    Args:
        name: unique, for results.
        title: for tables.
        source: where it is published.
        raised: from all flows of a log (FLOW_SCHEMA) and the networks of its devices to alerts.
        bar: no detector of its own, so no part of all rules together.
    """

    name: str
    title: str
    source: str
    raised: Callable[[pl.DataFrame, Networks], list[RaisedAlert]]
    bar: bool = False


@cache
def published() -> dict[str, PublishedRule]:
    """All rules by name."""
    modules = (import_module(f"{__package__}.{name}") for name in discovery.names(__package__))
    found: dict[str, PublishedRule] = {}
    for rule in (module.RULE for module in modules if hasattr(module, "RULE")):
        discovery.add(found, rule.name, rule, __package__)
    return found


def in_order(flows: pl.DataFrame) -> pl.DataFrame:
    """The flows with ``row`` and ``end`` (seconds since the epoch), in the order of their ends.

    Zeek decides on a connection when it is over, and a log's own order need not be that of time.
    """
    end = pl.col("ts") + pl.col("duration").fill_null(0.0)
    return flows.with_row_index("row").with_columns(end=end).sort("end", maintain_order=True)


def history(value: str | None) -> str | None:
    """Zeek's history of a connection without the mark of its direction; None if unset."""
    return None if value is None or value in _UNSET else value.removeprefix("^")
