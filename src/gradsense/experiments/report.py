"""``report.html``: one file that opens offline, light and dark, with everything a run found."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gradsense.experiments import plots
from gradsense.experiments import table as table3
from gradsense.experiments.findings import findings
from gradsense.experiments.results import Row, write_text

_TEMPLATES = Path(__file__).parent / "templates"
#: How many sites the heat map shows at most.
MAX_SITES = 60


@dataclass(frozen=True)
class Key:
    """An algorithm in the legend: its colour (a CSS value) and its dash pattern (an SVG value)."""

    algorithm: str
    colour: str
    dashes: str


@dataclass(frozen=True)
class Cell:
    """A heat map cell: its text and how much of the heat colour it gets, 0..1."""

    text: str
    heat: float | None


@dataclass(frozen=True)
class HeatMap:
    """Rows of (name, number of test flows, cell for each algorithm); ``low`` has no colour."""

    algorithms: list[str]
    rows: list[tuple[str, str, list[Cell]]]
    low: float
    left_out: int


def write_report(rows: list[Row], path: Path, *, title: str, settings: dict[str, str]) -> None:
    """Write the report of a comparison. Same rows, same bytes.

    Args:
        rows: at least one; several seeds of an algorithm are put together.
        title: the heading.
        settings: what to list under "Settings", in order.

    Raises:
        InputError: ``path`` cannot be written.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        title=title,
        css=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        synthetic=any(row.synthetic for row in rows),
        seeds=sorted({row.seed for row in rows}),
        findings=findings(rows),
        table=_table(rows),
        table_title=table3.title(rows),
        seen=table3.seen_in_training(rows),
        footnotes=table3.footnotes().splitlines(),
        keys=_keys(rows),
        figures=_figures(rows),
        timeline=Markup(plots.upload_timeline(rows, name="uploads")),
        timeline_sites=len(plots.timeline_sites(rows)),
        timeline_shown=plots.MAX_SITES,
        classes=class_heat(rows),
        sites=site_heat(rows),
        counts=_counts(rows),
        settings=settings,
    )
    write_text(path, page)


def _keys(rows: Sequence[Row]) -> list[Key]:
    return [
        Key(name, plots.colour(index), " ".join(f"{dash * 1.9:g}" for dash in plots.dashes(index)))
        for index, name in enumerate(plots.federated_algorithms(rows))
    ]


def _figures(rows: Sequence[Row]) -> dict[str, Markup]:
    drawn = {
        "loss-epoch": (plots.EPOCHS, plots.LOSS),
        "f1-epoch": (plots.EPOCHS, plots.F1_MACRO),
        "loss": (plots.AGGREGATION, plots.LOSS),
        "f1-aggregation": (plots.AGGREGATION, plots.F1_MACRO),
        "accuracy-uplink": (plots.UPLINK, plots.ACCURACY),
        "f1-uplink": (plots.UPLINK, plots.F1_MACRO),
        "accuracy-time": (plots.VIRTUAL, plots.ACCURACY),
        "f1-time": (plots.VIRTUAL, plots.F1_MACRO),
    }
    return {name: Markup(plots.curves(rows, x, y, name=name)) for name, (x, y) in drawn.items()}


def _table(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Table III in its two parts: grouped headings, and per algorithm (mean, spread, is best)."""
    parts: list[dict[str, object]] = []
    summary = table3.lines(rows)
    for part in table3.PARTS:
        chosen = [(i, column) for i, column in enumerate(table3.COLUMNS) if column.part == part]
        groups = Counter(column.group for _, column in chosen)
        body = [
            (line, [table3.written(line.stats[i], column) for i, column in chosen])
            for line in summary
        ]
        titles = [column.title for _, column in chosen]
        parts.append({"groups": groups, "titles": titles, "body": body})
    return parts


def class_heat(rows: Sequence[Row]) -> HeatMap:
    """F1 of every class (rows) by algorithm (columns), mean over seeds, most frequent first."""
    return _heat(
        rows,
        lambda row: {name: (score.f1, score.support) for name, score in row.per_class.items()},
        limit=None,
    )


def site_heat(rows: Sequence[Row]) -> HeatMap:
    """Accuracy of every site (rows) by algorithm (columns), mean over seeds, most flows first."""
    return _heat(
        rows,
        lambda row: {name: (score.accuracy, score.flows) for name, score in row.per_site.items()},
        limit=MAX_SITES,
    )


def _heat(
    rows: Sequence[Row], values: Callable[[Row], dict[str, tuple[float, int]]], limit: int | None
) -> HeatMap:
    groups = {
        algorithm: found
        for algorithm, group in table3.by_algorithm(rows).items()
        if any(found := [values(row) for row in group])
    }
    flows: dict[str, float] = {}
    for name in dict.fromkeys(name for found in groups.values() for one in found for name in one):
        counts = [one[name][1] for found in groups.values() for one in found if name in one]
        flows[name] = statistics.fmean(counts)
    names = sorted(flows, key=lambda name: (-flows[name], name))
    shown = names if limit is None else names[:limit]
    means = {
        (name, algorithm): table3.stat(one[name][0] if name in one else None for one in found)
        for algorithm, found in groups.items()
        for name in shown
    }
    low = min((cell.mean for cell in means.values() if cell is not None), default=0.0)
    low = min(math.floor(low * 10) / 10, 0.9)
    table = []
    for name in shown:
        cells = []
        for algorithm in groups:
            cell = means[name, algorithm]
            if cell is None:
                cells.append(Cell(table3.NOTHING, None))
            else:
                cells.append(Cell(f"{cell.mean:.2f}", round((cell.mean - low) / (1 - low), 3)))
        table.append((name, f"{flows[name]:,.0f}", cells))
    return HeatMap(list(groups), table, low, len(names) - len(shown))


def _counts(rows: Sequence[Row]) -> list[tuple[str, str, str, str]]:
    """(algorithm, uploads by reason, refusals by reason, dropouts), summed over seeds."""
    return [
        (
            algorithm,
            _added(row.triggers for row in group),
            _added(row.refused for row in group),
            str(sum(row.dropped_out for row in group)),
        )
        for algorithm, group in table3.by_algorithm(rows).items()
        if group[0].kind == "federated"
    ]


def _added(counts: Iterable[dict[str, int]]) -> str:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(total.items())) or "none"
