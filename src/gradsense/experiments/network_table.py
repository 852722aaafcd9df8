"""The tables of networks left out: means over groups by the grade of their labels, and groups.

One list of cells feeds the terminal and the text file, so that they cannot differ.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.markup import escape
from rich.table import Table

from gradsense.experiments.network_results import (
    LEAST_FLOWS,
    Estimate,
    GroupRow,
    mean_figures,
    summaries,
)
from gradsense.experiments.table import NOTHING, human_bytes

_VERIFIED, _ASSUMED, _UNGRADED = "grades A and S", "grades R and U", "ungraded"


@dataclass(frozen=True)
class Sheet:
    """A table as text: a title, a head and lines of as many cells."""

    title: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def sheets(rows: Sequence[GroupRow]) -> list[Sheet]:
    """Means by grade, then figures by group."""
    seeds = len({row.seed for row in rows})
    found = []
    for part in (_VERIFIED, _ASSUMED, _UNGRADED):
        own = [row for row in rows if _part(row) == part]
        if own:
            found.append(_means(own, f"{part}: {_count(own)}, mean over groups, {_seeds(seeds)}"))
    found.append(_by_group(rows, f"AUROC by group left out, {_seeds(seeds)}"))
    first = [row for row in rows if row.method == rows[0].method]
    found.append(_thresholds(first, f"{rows[0].method} at its thresholds, by group left out"))
    return found


def network_footnotes(rows: Sequence[GroupRow]) -> str:
    """What the columns span, one sentence a line."""
    first = [row for row in rows if (row.method, row.seed) == (rows[0].method, rows[0].seed)]
    seen = {
        name: statistics.fmean(getattr(row, f"{name}_seen") for row in first)
        for name in ("texts", "compact", "hosts")
    }
    return "\n".join(
        (
            "Trained on all other groups, judged on this one: benign or malicious. [ ] is a 95 % "
            "interval by bootstrap over groups and their captures; 'ahead' is paired.",
            f"A figure of fewer than {LEAST_FLOWS} flows of a group is left out, so each mean is "
            "over the groups that have it, and recall and false alarms are of other groups too.",
            "As trained: the threshold of which 0.25 % of the training networks' benign validation "
            "flows are above, at least 0.5. Calibrated: the same of the first half of the group's "
            "own benign flows. False alarms are counted on the second half, both times.",
            "Grades: A labels by the data's authors, S by the scenario, R by a rule, U assumed "
            "benign. A group with one R or U counts there.",
            f"Also in training, mean over groups: {seen['texts']:.0%} of the flows by their "
            f"prompt, {seen['compact']:.0%} by their compact prompt, {seen['hosts']:.0%} by their "
            "originator's address; none by capture.",
        )
    )


def drawn(sheet: Sheet) -> Table:
    """A sheet for the terminal."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=sheet.title)
    table.title_justify = "left"
    for place, name in enumerate(sheet.head):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    for line in sheet.lines:
        table.add_row(*map(escape, line))
    return table


def markdown(rows: Sequence[GroupRow]) -> str:
    """All sheets and their footnotes as Markdown."""
    parts = []
    for sheet in sheets(rows):
        lines = [sheet.head, ("---", *["---:"] * (len(sheet.head) - 1)), *sheet.lines]
        parts.append(f"**{sheet.title}**\n\n" + "\n".join(f"| {' | '.join(x)} |" for x in lines))
    return "\n\n".join([*parts, network_footnotes(rows)]) + "\n"


def _part(row: GroupRow) -> str:
    if set(row.grades) & set("RU"):
        return _ASSUMED
    return _VERIFIED if set(row.grades) <= set("AS") else _UNGRADED


def _count(rows: Sequence[GroupRow]) -> str:
    captures = {row.group: len(row.captures) for row in rows}
    return f"{len(captures)} groups of {sum(captures.values())} captures"


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def _means(rows: Sequence[GroupRow], title: str) -> Sheet:
    head = (
        *("method", "AUROC", "ahead", "recall", "false alarms"),
        *("recall, calibrated", "false alarms, calibrated", "uplink", "s a group"),
    )
    lines = []
    for method, summary in summaries(rows).items():
        own, one = [row for row in rows if row.method == method], summary.figures
        sent = [row.uplink_bytes for row in own if row.uplink_bytes is not None]
        lines.append(
            (
                method,
                _written(one.get("auroc"), groups=True),
                _written(summary.ahead.get("auroc"), sign="+"),
                _written(one.get("recall")),
                _written(one.get("false_alarms")),
                _written(one.get("recall_calibrated")),
                _written(one.get("false_alarms_calibrated")),
                human_bytes(statistics.fmean(sent)) if sent else NOTHING,
                f"{statistics.fmean(row.seconds for row in own):.2f}",
            )
        )
    return Sheet(title, head, tuple(lines))


def _by_group(rows: Sequence[GroupRow], title: str) -> Sheet:
    methods = list(dict.fromkeys(row.method for row in rows))
    lines = []
    for group in _order(rows):
        here = [row for row in rows if row.group == group]
        means = [mean_figures([row for row in here if row.method == m])["auroc"] for m in methods]
        if all(map(math.isfinite, means)):
            lines.append((*_named(here[0]), *map(_share, means)))
    return Sheet(title, (*_HEAD, *methods), tuple(lines))


def _thresholds(rows: Sequence[GroupRow], title: str) -> Sheet:
    head = (*_HEAD, "recall", "false alarms", "calibrated: recall", "false alarms", "text seen")
    lines = []
    for group in _order(rows):
        here = [row for row in rows if row.group == group]
        means = mean_figures(here)
        names = ("recall", "false_alarms", "recall_calibrated", "false_alarms_calibrated")
        seen = statistics.fmean(row.texts_seen for row in here)
        lines.append((*_named(here[0]), *(_share(means[name]) for name in names), _share(seen)))
    return Sheet(title, head, tuple(lines))


_HEAD = ("group", "grade", "captures", "malicious", "benign")


def _order(rows: Sequence[GroupRow]) -> list[str]:
    """Groups, those with verified labels first."""
    parts = {row.group: (_part(row), row.group) for row in rows}
    return sorted(parts, key=parts.__getitem__)


def _named(row: GroupRow) -> tuple[str, ...]:
    malicious = sum(one.malicious for one in row.captures)
    benign = sum(one.benign for one in row.captures)
    counts = (f"{len(row.captures)}", f"{malicious:,}", f"{benign:,}")
    return row.group, row.grades, *counts


def _share(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else NOTHING


def _written(value: Estimate | None, *, sign: str = "", groups: bool = False) -> str:
    if value is None:
        return NOTHING
    text = f"{value.mean:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"
    return f"{text} ({value.groups})" if groups else text
