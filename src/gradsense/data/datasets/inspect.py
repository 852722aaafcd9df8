"""What is in these logs: a summary in one pass, with nothing but counts in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from gradsense.data.datasets.captures import discover, in_context
from gradsense.data.datasets.contradictions import ContradictionReport, report_counts, text_counts
from gradsense.data.datasets.iot23 import CLASSES, classed
from gradsense.data.datasets.order import TimeOrder, warnings
from gradsense.data.sources.lines import Tally
from gradsense.data.sources.stream import is_synthetic

_TOP = 10
#: Pending text counts are merged when they reach this many rows.
_MERGE_ROWS = 1 << 20
_UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class CaptureSummary:
    """One log: rows, first and last start in epoch seconds, flows per class, order of its rows.

    ``classes`` also has ``unlabelled`` and, for labels that are not known, the label as written.
    """

    name: str
    path: str
    rows: int
    start: float | None
    end: float | None
    classes: dict[str, int]
    synthetic: bool
    order: TimeOrder

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; times as ISO 8601 in UTC."""
        order = {"state": self.order.state, "late_rows": self.order.late}
        return vars(self) | {"start": _iso(self.start), "end": _iso(self.end), "order": order}


@dataclass(frozen=True)
class Duplicates:
    """How often flows read the same: ``distinct`` texts, and ``flows`` beyond the first of each."""

    distinct: int
    flows: int
    share: float
    contradictions: ContradictionReport

    def to_json(self) -> dict[str, Any]:
        return {
            "distinct_texts": self.distinct,
            "duplicate_flows": self.flows,
            "duplicate_share": self.share,
            "contradictions": self.contradictions.to_json(),
        }


@dataclass(frozen=True)
class Inspection:
    """The summary of all captures at a path. ``duplicates`` is None without a text renderer."""

    captures: tuple[CaptureSummary, ...]
    protocols: dict[str, int]
    services: dict[str, int]
    tally: Tally
    duplicates: Duplicates | None

    @property
    def rows(self) -> int:
        return sum(capture.rows for capture in self.captures)

    @property
    def classes(self) -> dict[str, int]:
        """Flows per class over all captures, in canonical order, other labels last."""
        total: Counter[str] = Counter()
        for capture in self.captures:
            total.update(capture.classes)
        return _ordered(total)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know before they believe a figure over time."""
        return warnings({capture.name: capture.order for capture in self.captures})

    @property
    def span(self) -> tuple[float, float] | None:
        """Start of the first and of the last flow, in epoch seconds; None without flows."""
        times = [at for one in self.captures for at in (one.start, one.end) if at is not None]
        return (min(times), max(times)) if times else None

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values; times as ISO 8601 in UTC."""
        classes, span = self.classes, self.span
        return {
            "rows": self.rows,
            "start": _iso(span[0] if span else None),
            "end": _iso(span[1] if span else None),
            "synthetic": any(capture.synthetic for capture in self.captures),
            "classes": classes,
            "unlabelled": classes.get(_UNLABELLED, 0),
            "captures": [capture.to_json() for capture in self.captures],
            "warnings": list(self.warnings),
            "protocols": self.protocols,
            "services": self.services,
            "tally": self.tally.to_json(),
            "duplicates": self.duplicates.to_json() if self.duplicates else None,
        }


def inspect(
    path: Path,
    *,
    strict: bool = False,
    render: Callable[[pl.DataFrame], pl.Series] | None = None,
    on_file: Callable[[str, int, int], None] | None = None,
) -> Inspection:
    """Summarise the log or the captures at ``path``.

    Memory is that of ``order.HELD_ROWS`` flows, and grows with the number of distinct texts (16
    bytes each and class), not with rows.

    Args:
        strict: a malformed line is an error instead of being counted.
        render: flows with context columns to one text each, for the count of duplicates.
        on_file: called with ``(capture name, index from 0, number of captures)`` before each file.

    Raises:
        InputError: no captures, or an unreadable log.
    """
    captures = discover(path)
    tally = Tally()
    protocols: Counter[str] = Counter()
    services: Counter[str] = Counter()
    texts = _TextCounts()
    summaries = []
    for index, capture in enumerate(captures):
        if on_file is not None:
            on_file(capture.name, index, len(captures))
        classes: Counter[str] = Counter()
        rows = 0
        times: list[float] = []
        order = TimeOrder()
        for flows in in_context(capture, tally=tally, strict=strict, order=order):
            labelled = classed(flows).with_columns(shown=_shown())
            rows += flows.height
            ts = flows["ts"].to_numpy()
            times += [float(ts.min()), float(ts.max())]
            classes.update(_counts(labelled["shown"]))
            protocols.update(_counts(flows["proto"]))
            services.update(_counts(flows["service"].drop_nulls()))
            if render is not None:
                texts.add(render(flows), labelled["class"])
        summaries.append(
            CaptureSummary(
                name=capture.name,
                path=str(capture.path),
                rows=rows,
                start=min(times, default=None),
                end=max(times, default=None),
                classes=_ordered(classes),
                synthetic=is_synthetic(capture.path),
                order=order,
            )
        )
    return Inspection(
        captures=tuple(summaries),
        protocols=_top(protocols),
        services=_top(services),
        tally=tally,
        duplicates=texts.duplicates() if render is not None else None,
    )


class _TextCounts:
    """Flows per text and class. Texts are kept as 64-bit hashes, never as text."""

    def __init__(self) -> None:
        schema = {"text": pl.UInt64, "class": pl.String, "flows": pl.Int64}
        self.merged = pl.DataFrame(schema=schema)
        self.pending: list[pl.DataFrame] = []

    def add(self, text: pl.Series, label: pl.Series) -> None:
        self.pending.append(text_counts(pl.DataFrame({"text": text.hash(seed=0), "class": label})))
        if sum(frame.height for frame in self.pending) >= _MERGE_ROWS:
            self._merge()

    def _merge(self) -> None:
        together = pl.concat([self.merged, *self.pending])
        self.merged = together.group_by("text", "class").agg(pl.col("flows").sum())
        self.pending = []

    def duplicates(self) -> Duplicates:
        self._merge()
        flows, distinct = int(self.merged["flows"].sum()), self.merged["text"].n_unique()
        known = self.merged.filter(pl.col("class").is_in(CLASSES))
        return Duplicates(
            distinct=distinct,
            flows=flows - distinct,
            share=(flows - distinct) / flows if flows else 0.0,
            contradictions=report_counts(known),
        )


def _shown() -> pl.Expr:
    """The class for people: unknown labels as written, missing ones in words."""
    written = pl.concat_str(pl.col("label"), pl.col("detail"), separator=" ", ignore_nulls=True)
    return (
        pl.when(pl.col("class").is_null())
        .then(pl.lit(_UNLABELLED))
        .when(pl.col("class").is_in(CLASSES))
        .then("class")
        .otherwise(written)
    )


def _counts(series: pl.Series) -> dict[str, int]:
    return dict(series.value_counts().iter_rows())


def _top(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_TOP])


def _ordered(counts: Counter[str]) -> dict[str, int]:
    known = {name: counts[name] for name in CLASSES if name in counts}
    return known | {name: counts[name] for name in sorted(counts) if name not in known}


def _iso(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
