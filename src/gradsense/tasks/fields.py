"""How one property of a record becomes words: a closed list of phrases and an index into it.

Every text that a template can ever emit is put together from these phrases, so the vocabulary
is closed by construction: a strange value in a log picks another phrase, it never brings a word
of its own. Hence no address, uid or time can leak into a prompt.

A field is written twice, side by side: as a polars expression for many records, and as a plain
function for one, since polars needs milliseconds however few records there are and a gateway has
to answer within one. A property test checks that the two agree.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

#: A record as a plain mapping: the names of the task's schema and, where needed, of its history.
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Field:
    """One property of a record in words.

    Args:
        name: of the property, unique within a template.
        phrases: every phrase that it can emit, each one or more words; the last one is for an
            unknown value.
        index: polars expression over a frame of records, never null, that picks the phrase.
        pick: the same for one record.
    """

    name: str
    phrases: tuple[str, ...]
    index: pl.Expr = field(repr=False, compare=False)
    pick: Callable[[Record], int] = field(repr=False, compare=False)

    @property
    def text(self) -> pl.Expr:
        """Expression that yields the phrase of each record (String, never null)."""
        return pl.lit(pl.Series(self.phrases, dtype=pl.String)).gather(self.index)


def category(name: str, column: str, phrases: Mapping[str, str], other: str, missing: str) -> Field:
    """A field over the known values of a text column; any other value reads ``other``."""
    listed = (*phrases.values(), other, missing)
    index = _position(pl.col(column), tuple(phrases)).fill_null(len(phrases) + 1)
    places = {value: place for place, value in enumerate(phrases)}

    def pick(row: Record) -> int:
        value: str | None = row[column]
        return places.get(value, len(places)) if value else len(places) + 1

    return Field(name, listed, index, pick)


def first_listed(
    name: str, column: str, phrases: Mapping[str, str], other: str, missing: str
) -> Field:
    """As ``category``, for comma-separated sets such as Zeek's ``ssl,http``.

    Zeek writes a set in no particular order, so its member that comes first in ``phrases`` stands
    for the whole set.
    """
    members = pl.col(column).str.split(",")
    best = members.list.eval(_position(pl.element(), tuple(phrases))).list.min()
    places = {value: place for place, value in enumerate(phrases)}

    def pick(row: Record) -> int:
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

    def pick(row: Record) -> int:
        one: float | None = row[column]
        return len(lower) + 1 if one is None or math.isnan(one) else bisect_right(lower, one)

    return Field(name, (zero, *map(phrase, edges), missing), index, pick)


def share(name: str, column: str, phrases: Sequence[str], missing: str) -> Field:
    """A field over a share between 0 and 1, rounded to the nearest of evenly spaced phrases."""
    steps = len(phrases) - 1
    value = pl.col(column).fill_nan(None).clip(0.0, 1.0)
    index = (value * steps + 0.5).floor().cast(pl.Int64).fill_null(steps + 1)

    def pick(row: Record) -> int:
        one: float | None = row[column]
        if one is None or math.isnan(one):
            return steps + 1
        return math.floor(min(max(one, 0.0), 1.0) * steps + 0.5)

    return Field(name, (*phrases, missing), index, pick)


def _position(value: pl.Expr, known: Sequence[str]) -> pl.Expr:
    """Where each value stands in ``known``; ``len(known)`` for any other; null for null and ""."""
    places = value.replace_strict(known, list(range(len(known))), default=len(known))
    return pl.when(value.is_not_null() & (value != "")).then(places.cast(pl.Int64))
