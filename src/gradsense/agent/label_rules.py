"""A rules file: what an operator knows of the own network, as labels of flows (docs/rules.md)."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import and_, or_
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import polars as pl
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, IPvAnyNetwork

from gradsense.data.networks import Network
from gradsense.gateway.settings import read_toml

_MAX_RULES = 1000
#: What stands for a value that the log leaves unset, as in Zeek.
_UNSET = "-"
_REMEMBERED = 65_536
_LAST_PORT = 65_535

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_SPAN = re.compile(r"(\d+(?:\.\d+)?)?-(\d+(?:\.\d+)?)?")


class Span(NamedTuple):
    """Numbers from ``low`` to ``high``, both included."""

    low: float
    high: float


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _word(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError('it is no text, such as "tcp", or a list of such')
    return value.strip().lower()


def _network(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError('it is no address or network, such as "192.168.1.0/24", or a list of such')
    return value


def _span(value: Any) -> Span:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return Span(value, value)
    match = _SPAN.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or not any(match.groups()):
        raise ValueError(
            'it is no number from 0, no range such as "1024-65535", "500-" or "-500", '
            "and no list of such"
        )
    low, high = match.groups()
    span = Span(float(low or 0), float(high or math.inf))
    if span.low > span.high:
        raise ValueError(f"the range {value} ends before it begins")
    return span


def _port(span: Span) -> Span:
    if span.low > _LAST_PORT or _LAST_PORT < span.high < math.inf:
        raise ValueError(f"ports end at {_LAST_PORT}")
    return span


_Numbers = Annotated[Span, BeforeValidator(_span)]
_One = TypeVar("_One")
Some = Annotated[tuple[_One, ...] | None, BeforeValidator(_listed), Field(min_length=1)]
Words = Some[Annotated[str, BeforeValidator(_word)]]
Nets = Some[Annotated[IPvAnyNetwork, BeforeValidator(_network)]]
Spans = Some[_Numbers]
Ports = Some[Annotated[_Numbers, AfterValidator(_port)]]


class LabelRule(BaseModel):
    """A label, and what a flow must be like to get it; a condition that is not given always holds.

    The names are those of ``FLOW_SCHEMA``. A flow without a value meets no condition on it, but
    ``"-"``, which stands for just that where a condition is a word.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str = Field(min_length=1, max_length=64)
    orig_h: Nets = None
    resp_h: Nets = None
    orig_p: Ports = None
    resp_p: Ports = None
    proto: Words = None
    service: Words = None
    conn_state: Words = None
    duration: Spans = None
    missed_bytes: Spans = None
    orig_bytes: Spans = None
    resp_bytes: Spans = None
    orig_pkts: Spans = None
    resp_pkts: Spans = None
    orig_ip_bytes: Spans = None
    resp_ip_bytes: Spans = None


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: tuple[LabelRule, ...] = Field(min_length=1, max_length=_MAX_RULES)


@dataclass(frozen=True)
class LabelRules:
    """Rules in order: the first that matches labels the flow."""

    rules: tuple[LabelRule, ...]

    def labels(self, flows: pl.DataFrame) -> pl.Series:
        """The label of each flow, null where no rule matches.

        Args:
            flows: with the FLOW_SCHEMA columns.
        """
        addresses = {
            end: flows[end].unique().drop_nulls().to_list()
            for end in ("orig_h", "resp_h")
            if any(getattr(rule, end) is not None for rule in self.rules)
        }
        matches = [
            pl.when(_matches(rule, addresses)).then(pl.lit(rule.label)) for rule in self.rules
        ]
        return flows.select(pl.coalesce(matches).alias("label")).to_series()


def read(path: Path | str) -> LabelRules:
    """The rules of a file.

    Raises:
        InputError: the file cannot be read, is no TOML, or a rule has an unknown or wrong key.
    """
    hint = "docs/rules.md has all keys"
    return LabelRules(read_toml(path, _File, _place, hint=hint, missing="is missing").rule)


def _place(loc: tuple[int | str, ...], values: dict[str, Any]) -> str:
    """``rule 2: resp_p`` for ``("rule", 1, "resp_p", ...)``."""
    match loc:
        case ("rule", int(index), str(key), *_):
            return f"rule {index + 1}: {key}"
        case ("rule", int(index)):
            return f"rule {index + 1}"
    return str(loc[0])


def _matches(rule: LabelRule, addresses: dict[str, list[str]]) -> pl.Expr:
    """Whether a flow meets all conditions; never null."""
    met = [
        _meets(name, condition, addresses)
        for name, condition in rule
        if name != "label" and condition is not None
    ]
    return reduce(and_, met, pl.lit(value=True)).fill_null(value=False)


def _meets(name: str, condition: tuple[Any, ...], addresses: dict[str, list[str]]) -> pl.Expr:
    column = pl.col(name)
    if name in addresses:
        # Polars knows no networks. A log has few addresses, even where a scan has many.
        inside = [one for one in addresses[name] if _within(one, condition)]
        return column.is_in(inside)
    if isinstance(condition[0], Span):
        return reduce(or_, (column.is_between(*span) for span in condition))
    words = column.str.to_lowercase().fill_null(_UNSET)
    if name == "service":  # several at once read "ssl,http"
        return reduce(or_, (words.str.split(",").list.contains(word) for word in condition))
    return words.is_in(condition)


def _within(address: str, networks: Sequence[Network]) -> bool:
    one = _parsed(address)
    return one is not None and any(one in network for network in networks)


@lru_cache(_REMEMBERED)
def _parsed(address: str) -> _Address | None:
    try:
        return ipaddress.ip_address(address)
    except ValueError:
        return None
