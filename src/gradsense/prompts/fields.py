"""How one property of a flow becomes words: a closed list of phrases and an index into it.

Every text that a template can ever emit is put together from these phrases, so the vocabulary
is closed by construction: a strange value in a log picks another phrase, it never brings a word
of its own. Hence no address, uid or time can leak into a prompt either.

A field is written down twice, side by side: as a polars expression for many flows, and as a plain
function for one, since polars needs milliseconds however few flows there are and a gateway has to
answer within one. A property test holds the two together.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import polars as pl

#: A flow as a plain mapping: FLOW_SCHEMA and, where needed, CONTEXT_SCHEMA names to values.
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Field:
    """One property of a flow in words.

    Args:
        name: what the field tells, unique within a template.
        phrases: every phrase that it can emit, each one or more words.
        index: polars expression over a flow frame, never null, that picks the phrase.
        pick: the same for one flow.
    """

    name: str
    phrases: tuple[str, ...]
    index: pl.Expr = field(repr=False, compare=False)
    pick: Callable[[Row], int] = field(repr=False, compare=False)

    @property
    def text(self) -> pl.Expr:
        """Expression that yields the phrase of each flow (String, never null)."""
        return pl.lit(pl.Series(self.phrases, dtype=pl.String)).gather(self.index)


def category(name: str, column: str, phrases: Mapping[str, str], other: str, missing: str) -> Field:
    """A field over the known values of a text column; any other value reads ``other``."""
    listed = (*phrases.values(), other, missing)
    index = _position(pl.col(column), tuple(phrases)).fill_null(len(phrases) + 1)
    places = {value: place for place, value in enumerate(phrases)}

    def pick(row: Row) -> int:
        value: str | None = row[column]
        return places.get(value, len(places)) if value else len(places) + 1

    return Field(name, listed, index, pick)


def first_listed(
    name: str, column: str, phrases: Mapping[str, str], other: str, missing: str
) -> Field:
    """As ``category``, for comma-separated sets such as Zeek's ``ssl,http``.

    Zeek writes a set in no particular order, so the member that stands first in ``phrases``
    speaks for the whole set.
    """
    members = pl.col(column).str.split(",")
    best = members.list.eval(_position(pl.element(), tuple(phrases))).list.min()
    places = {value: place for place, value in enumerate(phrases)}

    def pick(row: Row) -> int:
        found = (places.get(one, len(places)) for one in (row[column] or "").split(",") if one)
        return min(found, default=len(places) + 1)

    index = best.fill_null(len(phrases) + 1)
    return Field(name, (*phrases.values(), other, missing), index, pick)


def number(
    name: str,
    column: str,
    edges: Sequence[float],
    phrase: Callable[[float], str],
    *,
    zero: str,
    missing: str,
) -> Field:
    """A field over a number: the phrase of the highest edge that it reaches.

    Args:
        edges: rising positive lower bounds of the buckets.
        phrase: an edge in words.
        zero: for values up to zero. A positive value below the first edge counts as the edge.
        missing: for null and NaN.
    """
    value = pl.col(column).cast(pl.Float64).fill_nan(None)
    # An empty bucket for (0, first edge) would need a word of its own; reaching down avoids it.
    bounds = pl.Series([5e-324, *edges[1:]], dtype=pl.Float64)
    bucket = pl.lit(bounds).search_sorted(value.fill_null(0.0), side="right")
    index = pl.when(value.is_null()).then(len(edges) + 1).otherwise(bucket)
    lower = bounds.to_list()

    def pick(row: Row) -> int:
        one: float | None = row[column]
        return len(lower) + 1 if one is None or math.isnan(one) else bisect_right(lower, one)

    return Field(name, (zero, *map(phrase, edges), missing), index, pick)


def share(name: str, column: str, phrases: Sequence[str], missing: str) -> Field:
    """A field over a share between 0 and 1, rounded to the nearest of evenly spaced phrases."""
    steps = len(phrases) - 1
    value = pl.col(column).fill_nan(None).clip(0.0, 1.0)
    index = (value * steps + 0.5).floor().cast(pl.Int64).fill_null(steps + 1)

    def pick(row: Row) -> int:
        one: float | None = row[column]
        if one is None or math.isnan(one):
            return steps + 1
        return math.floor(min(max(one, 0.0), 1.0) * steps + 0.5)

    return Field(name, (*phrases, missing), index, pick)


#: Ports that a word of their own pays for: common services of IoT devices and of their attackers
#: (telnet, HTTP and its alternatives, MQTT, UPnP, ADB, TR-069, IRC, Realtek and Huawei routers),
#: and ICMP types, which Zeek writes in the place of ports.
KNOWN_PORTS = (
    *(0, 1, 3, 8, 13, 20, 21, 22, 23, 25, 53, 67, 68, 69, 80, 81, 88, 110, 111, 123),
    *(134, 135, 136, 137, 138, 139, 143, 161, 443, 445, 502, 514, 546, 547, 554, 587, 631, 993),
    *(1080, 1433, 1723, 1883, 1900, 2222, 2323, 3128, 3306, 3389, 3478, 3702, 4444),
    *(5000, 5060, 5351, 5353, 5355, 5431, 5432, 5555, 5683, 5684, 5900, 6379, 6667, 6668, 6697),
    *(7547, 8000, 8008, 8009, 8080, 8081, 8088, 8181, 8291, 8443, 8554, 8883, 8888, 9000, 9999),
    *(10001, 27015, 37215, 37777, 48101, 49152, 52869),
)
#: Port ranges (IANA, with the registered one cut where Linux begins to hand out source ports).
PORT_RANGES = {0: "system", 1024: "registered", 32_768: "ephemeral", 49_152: "dynamic"}


def port(
    name: str, column: str, known: Iterable[int], phrase: Callable[[str], str], missing: str
) -> Field:
    """A field over a port: its number where it is known, else the name of its range."""
    numbers = sorted(known)
    phrases = tuple(phrase(str(number)) for number in numbers)
    ranges = tuple(phrase(text) for text in PORT_RANGES.values())
    value = pl.col(column)
    bounds = pl.Series(list(PORT_RANGES)[1:], dtype=pl.Int64)
    in_range = len(numbers) + pl.lit(bounds).search_sorted(value.fill_null(0), side="right")
    exact = value.replace_strict(numbers, list(range(len(numbers))), default=None)
    index = (
        pl.when(value.is_null())
        .then(len(numbers) + len(ranges))
        .otherwise(pl.coalesce(exact.cast(pl.Int64), in_range.cast(pl.Int64)))
    )
    places, lower = {number: place for place, number in enumerate(numbers)}, bounds.to_list()

    def pick(row: Row) -> int:
        one: int | None = row[column]
        if one is None:
            return len(numbers) + len(ranges)
        exact = places.get(one)
        return len(numbers) + bisect_right(lower, one) if exact is None else exact

    return Field(name, (*phrases, *ranges, missing), index, pick)


#: Kinds of address: which end may have them. Whatever else stands there reads ``other``.
ORIG_KINDS = ("priv", "pub", "link", "zero", "other")
RESP_KINDS = ("priv", "pub", "link", "zero", "loop", "mcast", "bcast", "other")

_V4 = r"^\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}$"
_V6 = r"^[0-9a-fA-F:.]*:[0-9a-fA-F:.]*$"
#: The first pattern that fits gives the kind. Shared space (RFC 6598) counts as private, as a
#: device behind a carrier's NAT has it. A private address that ends in .255 is taken for the
#: broadcast address of its network, since a log does not tell the netmask.
_V4_KINDS = {
    "bcast": r"^(255\.255\.255\.255|(10|192\.168|172\.(1[6-9]|2\d|3[01]))\..*\.255)$",
    "priv": r"^(10|192\.168|172\.(1[6-9]|2\d|3[01])|100\.(6[4-9]|[7-9]\d|1[01]\d|12[0-7]))\.",
    "mcast": r"^(22[4-9]|23\d)\.",
    "link": r"^169\.254\.",
    "loop": r"^127\.",
    "zero": r"^0\.0\.0\.0$",
}
_V6_KINDS = {
    "link": r"^(?i:fe[89ab])",
    "mcast": r"^(?i:ff)",
    "priv": r"^(?i:f[cd])",
    "loop": r"^::1$",
    "zero": r"^::$",
}


def _address_kind(column: str, kinds: Sequence[str]) -> pl.Expr:
    """Index into ``kinds`` of the kind of address that stands in a text column; never null."""
    address = pl.col(column).fill_null("")

    def place(kind: str) -> pl.Expr:
        return pl.lit(kinds.index(kind if kind in kinds else "other"), dtype=pl.Int64)

    def first_fit(patterns: Mapping[str, str]) -> pl.Expr:
        fits = (
            pl.when(address.str.contains(text)).then(place(kind)) for kind, text in patterns.items()
        )
        return pl.coalesce(*fits, place("pub"))

    return (
        pl.when(address.str.contains(_V4))
        .then(first_fit(_V4_KINDS))
        .when(address.str.contains(_V6))
        .then(first_fit(_V6_KINDS))
        .otherwise(place("other"))
    )


def _fits(pattern: str, text: str) -> bool:
    """Whether a pattern written for polars fits: its ``$`` allows no newline after it."""
    return re.search(pattern.replace("$", r"\Z"), text) is not None


@lru_cache(maxsize=65_536)
def _kind_of(address: str | None, kinds: tuple[str, ...]) -> int:
    """As ``_address_kind``, for one address. The same few come again and again."""
    text = address or ""
    if _fits(_V4, text):
        patterns = _V4_KINDS
    elif _fits(_V6, text):
        patterns = _V6_KINDS
    else:
        return kinds.index("other")
    kind = next((kind for kind, pattern in patterns.items() if _fits(pattern, text)), "pub")
    return kinds.index(kind if kind in kinds else "other")


@lru_cache(maxsize=65_536)
def _is_v6(address: str | None) -> bool:
    return _fits(_V6, address or "")


def address_pair(name: str, phrase: Callable[[str, str, str], str]) -> Field:
    """A field over both ends: ``phrase(family, orig kind, resp kind)``.

    The family is "6" where the responder has an IPv6 address, else "".
    """
    phrases = tuple(
        phrase(family, orig, resp)
        for family in ("", "6")
        for orig in ORIG_KINDS
        for resp in RESP_KINDS
    )
    family = pl.col("resp_h").str.contains(_V6).fill_null(False).cast(pl.Int64)
    orig = _address_kind("orig_h", ORIG_KINDS)
    resp = _address_kind("resp_h", RESP_KINDS)
    index = (family * len(ORIG_KINDS) + orig) * len(RESP_KINDS) + resp

    def pick(row: Row) -> int:
        family = _is_v6(row["resp_h"])
        orig, resp = _kind_of(row["orig_h"], ORIG_KINDS), _kind_of(row["resp_h"], RESP_KINDS)
        return (family * len(ORIG_KINDS) + orig) * len(RESP_KINDS) + resp

    return Field(name, phrases, index, pick)


#: Histories that a phrase of their own pays for: the most frequent ones of IoT traffic.
HISTORIES = (
    *("S", "D", "Dd", "C", "F", "R", "A", "Sr", "SrR", "ShR", "ShAr", "ShA", "Sh", "SR", "SAR"),
    *("ShAF", "ShAFf", "ShAFa", "ShAfFa", "ShAFaf", "ShAfR", "ShAdfR", "ShAdfFa", "ShwA"),
    *("ShADad", "ShADadF", "ShADadf", "ShADadFf", "ShADadfF", "ShADadfr", "ShADadr", "ShADadR"),
    *("ShADadfFr", "ShADadtfF", "ShADadCFf", "ShADadFfR", "ShADadFRf", "ShADadtFf", "ShADadTtFf"),
    *("ShADdaFf", "ShADdafF", "ShADdaftF", "ShADdfFr", "ShADdrfFr", "ShADdfr", "ShADdfrFr"),
    *("ShADfdtrFr", "ShADFadf", "ShADFaf", "ShADFafR", "ShADaFf", "ShADafF", "ShADar", "ShADr"),
    *("ShAdDa", "ShAdDaf", "ShAdDaFf", "ShAdDaft", "ShAdDafF", "ShAdDatFf", "ShAdDaFfR"),
    *("ShAdDaFfRR", "ShAdDaFRf", "ShAdDaFRfR", "ShAdDaR", "ShAdDaTFf", "ShAdfDr", "ShwAadDfF"),
    *("DdA", "DRr", "Dr", "DFf", "DadA", "^d", "^f", "^r", "^h", "^hA", "^dA", "^dADA", "HaDdAFf"),
)
#: What the phrase of any other history tells: which of these occur in it.
HISTORY_MARKS = ("D", "d", "[Ff]", "[Rr]", r"\^")
_MARK_LETTERS = ("D", "d", "F", "R", "^")


def history(name: str, phrase: Callable[[str], str], missing: str) -> Field:
    """A field over Zeek's history: itself where it is frequent, else what occurred in it."""
    marks = [
        "+" + "".join(m for bit, m in enumerate(_MARK_LETTERS) if code >> bit & 1)
        for code in range(2 ** len(_MARK_LETTERS))
    ]
    value = pl.col("history").replace("", None)
    exact = value.replace_strict(HISTORIES, list(range(len(HISTORIES))), default=None)
    code = pl.sum_horizontal(
        value.str.contains(mark).cast(pl.Int64) * 2**bit for bit, mark in enumerate(HISTORY_MARKS)
    )
    index = (
        pl.when(value.is_null())
        .then(len(HISTORIES) + len(marks))
        .otherwise(pl.coalesce(exact.cast(pl.Int64), len(HISTORIES) + code))
    )
    places = {text: place for place, text in enumerate(HISTORIES)}

    def pick(row: Row) -> int:
        text = row["history"]
        if not text:
            return len(HISTORIES) + len(marks)
        exact = places.get(text)
        if exact is not None:
            return exact
        found = (re.search(mark, text) is not None for mark in HISTORY_MARKS)
        return len(HISTORIES) + sum(one << bit for bit, one in enumerate(found))

    return Field(name, (*map(phrase, (*HISTORIES, *marks)), missing), index, pick)


def _position(value: pl.Expr, known: Sequence[str]) -> pl.Expr:
    """Where each value stands in ``known``; ``len(known)`` for any other; null for null and ""."""
    places = value.replace_strict(known, list(range(len(known))), default=len(known))
    return pl.when(value.is_not_null() & (value != "")).then(places.cast(pl.Int64))
