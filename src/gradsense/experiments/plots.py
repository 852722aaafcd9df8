"""The report's figures: matplotlib to SVG that takes its colours from the page's CSS.

Figures are drawn in sentinel colours that no chart would use; ``svg`` replaces them with CSS
variables, so one drawing serves the light and the dark theme. The text is real text in the page's
own font, and nothing refers to anything outside.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from gradsense.experiments.results import Point, Row, UploadMark
from gradsense.experiments.table import by_algorithm, human_bytes, human_seconds

#: How many algorithms get a colour of their own (``--s1`` .. ``--s12`` in report.css).
COLOURS = 12
#: Dashes go with the colours, so that lines also differ in print and to the colour-blind.
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2))
#: How many sites the time line shows at most.
MAX_SITES = 40

_INK, _MUTED, _GRID, _LINE = "#010203", "#010204", "#010205", "#0102{:02x}"
_VARIABLES = {_INK: "var(--ink)", _MUTED: "var(--muted)", _GRID: "var(--grid)"}
_VARIABLES |= {_LINE.format(0xA0 + i): f"var(--s{i + 1})" for i in range(COLOURS)}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gradsense",
    "text.parse_math": False,  # a '$' in a site's name is a dollar sign
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "path.simplify": True,
    "path.sketch": None,
}


@dataclass(frozen=True)
class Axis:
    """One axis of a curve plot: its label, the value it takes of a point, how ticks are written.

    ``value`` may return None: such points are left out of the line.
    """

    label: str
    value: Callable[[Point], float | None]
    tick: Callable[[float], str] | None = None


AGGREGATION = Axis("aggregation", lambda point: point.aggregation)
EPOCHS = Axis("local epochs worked", lambda point: point.epochs)
UPLINK = Axis("uplink, all clients together", lambda point: point.uplink_bytes, human_bytes)
VIRTUAL = Axis("virtual time", lambda point: point.virtual_s, human_seconds)
LOSS = Axis("loss", lambda point: point.loss)
ACCURACY = Axis("accuracy", lambda point: point.accuracy)
F1_MACRO = Axis("macro-F1", lambda point: point.f1_macro)


def colour(index: int) -> str:
    """The CSS variable of the index-th algorithm's colour."""
    return f"var(--s{index % COLOURS + 1})"


def dashes(index: int) -> tuple[float, ...]:
    """The index-th algorithm's dash pattern, in line widths; empty for a solid line."""
    return DASHES[index % len(DASHES)]


def federated_algorithms(rows: Sequence[Row]) -> list[str]:
    """Names of the federated algorithms, in order; their positions choose colour and dashes."""
    return [name for name, group in by_algorithm(rows).items() if group[0].kind == "federated"]


def curves(rows: Sequence[Row], x: Axis, y: Axis, *, name: str) -> str:
    """A line for each federated algorithm: mean over seeds, band from the lowest to the highest.

    Seeds are averaged aggregation by aggregation, in x and in y, over the aggregations that all
    seeds reached. ``name`` prefixes the ids and must be unique in the page. Returns SVG.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.2, 3.5), layout="constrained")
        axes = figure.subplots()
        reached: list[float] = []
        for index, algorithm in enumerate(federated_algorithms(rows)):
            group = [row for row in rows if row.algorithm == algorithm]
            points = _across_seeds(group, x, y)
            if points:
                _draw_line(axes, index, points)
                reached.append(points[-1][0])
        if x is UPLINK and reached and min(reached) > 0 and max(reached) > 30 * min(reached):
            axes.set_xscale("log")
        _format(axes, x, y)
        return svg(figure, name=name, label=f"{y.label} against {x.label}, by algorithm")


def _across_seeds(
    group: Sequence[Row], x: Axis, y: Axis
) -> list[tuple[float, float, float, float]]:
    """(x mean, y mean, y lowest, y highest) for each aggregation that any seed reached.

    A run that ended before keeps its last model; it must not end the line of the others.
    """
    runs = [{point.aggregation: point for point in row.curve} for row in group if row.curve]
    found = []
    for number in sorted({number for run in runs for number in run}):
        points = [
            run.get(number) or run[max(run)].model_copy(update={"aggregation": number})
            for run in runs
            if min(run) <= number
        ]
        xs = [value for point in points if (value := x.value(point)) is not None]
        ys = [value for point in points if (value := y.value(point)) is not None]
        if len(xs) == len(ys) == len(runs):
            found.append((statistics.fmean(xs), statistics.fmean(ys), min(ys), max(ys)))
    return found


def _draw_line(axes: Axes, index: int, points: list[tuple[float, float, float, float]]) -> None:
    paint = _LINE.format(0xA0 + index % COLOURS)
    x, mean, low, high = zip(*points, strict=True)
    if low != high:
        axes.fill_between(x, low, high, color=paint, alpha=0.13, linewidth=0)
    (line,) = axes.plot(x, mean, color=paint, linewidth=1.9, solid_capstyle="round")
    if dashes(index):
        line.set_dashes(dashes(index))
    axes.plot(x[-1], mean[-1], marker="o", markersize=4.5, color=paint, linewidth=0)


def _format(axes: Axes, x: Axis, y: Axis) -> None:
    axes.set_xlabel(x.label)
    axes.set_title(y.label, loc="left", fontsize=11, fontweight="bold", color=_INK)
    for axis, scale in ((x, axes.xaxis), (y, axes.yaxis)):
        if axis.tick is not None:
            tick = axis.tick
            scale.set_major_formatter(
                FuncFormatter(lambda value, _, tick=tick: _short(tick, value))
            )
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=x is AGGREGATION))
    axes.tick_params(length=0)


def _short(tick: Callable[[float], str], value: float) -> str:
    number, _, unit = tick(value).partition(" ")
    return f"{float(number.replace(',', '')):g} {unit}" if value > 0 else "0"


def upload_timeline(rows: Sequence[Row], *, name: str) -> str:
    """Who uploaded when: a panel for each algorithm (its first seed), a row for each site.

    At most ``MAX_SITES`` sites. Returns SVG, '' if no row has an upload log.
    """
    logs = _first_logs(rows)
    sites = timeline_sites(rows)[:MAX_SITES]
    if not sites:
        return ""
    place = {site: index for index, site in enumerate(sites)}
    end = max(mark.virtual_s for log in logs.values() for mark in log)
    columns = min(2, len(logs))
    lines = math.ceil(len(logs) / columns)
    with matplotlib.rc_context(_STYLE):
        height = 0.75 + lines * (0.55 + 0.135 * max(len(sites), 6))
        figure = Figure(
            figsize=(11.4, height), layout=ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.1)
        )
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for axes in list(grid.flat)[len(logs) :]:
            axes.set_visible(False)
        for (index, (algorithm, log)), axes in zip(
            enumerate(logs.items()), grid.flat, strict=False
        ):
            shown = [(mark.virtual_s, place[mark.client]) for mark in log if mark.client in place]
            _draw_uploads(axes, shown, _LINE.format(0xA0 + index % COLOURS))
            count = f"{len(log)} upload{'' if len(log) == 1 else 's'}"
            axes.set_title(f"{algorithm} · {count}", loc="left", fontsize=10.5, fontweight="bold")
            axes.set_yticks(range(len(sites)), sites, fontsize=7.5)
            axes.set_ylim(len(sites) - 0.4, -0.6)
            axes.set_xlim(-0.01 * end, 1.01 * end)
            axes.xaxis.set_major_locator(MaxNLocator(6))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _short(human_seconds, v)))
            axes.tick_params(length=0, labelbottom=index + columns >= len(logs))
            axes.grid(visible=False, axis="x")
        return svg(figure, name=name, label="uploads of every site against virtual time")


def timeline_sites(rows: Sequence[Row]) -> list[str]:
    """All sites that the time line could show, by name, with numbers in names by size."""
    sites = {mark.client for log in _first_logs(rows).values() for mark in log}
    return sorted(sites, key=_natural)


def _first_logs(rows: Sequence[Row]) -> dict[str, list[UploadMark]]:
    return {
        algorithm: next(row for row in rows if row.algorithm == algorithm).uploads_log
        for algorithm in federated_algorithms(rows)
    }


def _natural(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", name)  # text and digits alternate
    return [(int(part), "") if index % 2 else (0, part) for index, part in enumerate(parts)]


def _draw_uploads(axes: Axes, marks: list[tuple[float, int]], paint: str) -> None:
    # One broken line instead of a marker each: thousands of uploads stay a few kilobytes.
    xs = list(itertools.chain.from_iterable((x, x, math.nan) for x, _ in marks))
    ys = list(itertools.chain.from_iterable((y - 0.36, y + 0.36, math.nan) for _, y in marks))
    axes.plot(xs, ys, color=paint, linewidth=1.6, solid_capstyle="butt")


def svg(figure: Figure, *, name: str, label: str) -> str:
    """A figure as SVG for inlining: themed, unique ids, nothing external, same bytes each time."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg ") :]  # no prologue inside an HTML page
    # The style element would reach the whole page; report.css says the same for figures only.
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    # Only tags are rewritten. Text may hold anything: a site may be called '#010203'.
    text = re.sub(r"<[^>]*>", lambda tag: _tag(tag[0], name), text)
    head = rf'<svg role="img" aria-label="{label}" \1>'
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', head, text, count=1)


def _tag(tag: str, name: str) -> str:
    tag = re.sub(r'\bid="', f'id="{name}-', tag.replace("xlink:href", "href"))
    tag = tag.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    # The page chooses the font; matplotlib's choice need not exist on the reader's machine.
    tag = re.sub(r"font-family: [^;\"]*;?", "", tag)
    tag = re.sub(r"font: ([^;\"]*?)([\d.]+px) [^;\"]*", r"font-size: \2", tag)
    tag = re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", tag)
    for sentinel, variable in _VARIABLES.items():
        tag = tag.replace(sentinel, variable)
    return tag
