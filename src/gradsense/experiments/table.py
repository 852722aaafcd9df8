"""Table III: one line for each algorithm, mean ± spread over seeds.

One list of columns feeds the terminal and the report, so that they cannot differ.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gradsense.data.datasets.leakage import Leakage, sentence
from gradsense.experiments.results import Row

NOTHING = "–"
#: The accuracy that "time to" waits for: the paper's models end about there (its Table III).
GOOD = 0.9
Part = Literal["quality", "time", "cost"]
PARTS: tuple[Part, ...] = ("quality", "time", "cost")


@dataclass(frozen=True)
class Stat:
    """Mean over seeds; ``spread`` is the sample standard deviation, None with one seed."""

    mean: float
    spread: float | None


@dataclass(frozen=True)
class Column:
    """One column: where its value comes from and how mean and spread are written.

    ``units`` are (size, name) from small to large; the largest that the mean reaches is used for
    mean and spread alike. An empty name writes a bare number.
    """

    part: Part
    group: str
    title: str
    get: Callable[[Row], float | None]
    digits: int | None = None  # decimals; None: three significant digits
    units: tuple[tuple[float, str], ...] = ((1.0, ""),)
    every: bool = False  # nothing unless every seed has a value


@dataclass(frozen=True)
class Line:
    """One algorithm over its seeds; ``stats`` runs along ``COLUMNS``."""

    algorithm: str
    kind: Literal["federated", "reference"]
    seeds: int
    stats: tuple[Stat | None, ...]


BYTES = ((1.0, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB"))
SECONDS = ((1.0, "s"), (60.0, "min"), (3600.0, "h"), (86400.0, "d"))
JOULES = ((1.0, "J"), (1e3, "kJ"), (1e6, "MJ"))


def _score(part: str, name: str, scale: float = 1.0) -> Callable[[Row], float | None]:
    def get(row: Row) -> float | None:
        value: float | None = getattr(getattr(row, part), name, None)
        return None if value is None else scale * value

    return get


def time_to_good(row: Row) -> float | None:
    """Virtual seconds until a global model first has an accuracy of ``GOOD``; None: never."""
    return next((point.virtual_s for point in row.curve if point.accuracy >= GOOD), None)


def _time_to_good(row: Row) -> float | None:
    return time_to_good(row) if row.kind == "federated" else None  # others have no clock


COLUMNS: tuple[Column, ...] = (
    Column("quality", "central model", "accuracy", _score("central", "accuracy"), 3),
    Column("quality", "central model", "F1", _score("central", "f1_weighted"), 3),
    Column("quality", "central model", "macro-F1", _score("central", "f1_macro"), 3),
    Column("quality", "clients' average", "accuracy", _score("clients", "accuracy"), 3),
    Column("quality", "clients' average", "F1", _score("clients", "f1_weighted"), 3),
    Column("quality", "clients, own site", "accuracy", _score("clients_own", "accuracy"), 3),
    Column("quality", "alarms, %", "false", _score("alarms", "false_alarms", 100), 2),
    Column("quality", "alarms, %", "found", _score("alarms", "detected", 100), 1),
    Column("time", "one inference", "ms", lambda row: row.inference_ms),
    Column("time", "model to model, s", "central", lambda row: row.central_latency_s),
    Column("time", "model to model, s", "client", lambda row: row.client_latency_s),
    Column("time", "time to", f"{GOOD:g} accuracy", _time_to_good, units=SECONDS, every=True),
    Column("time", "whole run", "virtual time", lambda row: row.virtual_s, units=SECONDS),
    Column("cost", "traffic", "uplink", lambda row: row.uplink_bytes, units=BYTES),
    Column("cost", "traffic", "downlink", lambda row: row.downlink_bytes, units=BYTES),
    Column("cost", "traffic", "uploads", lambda row: row.uploads, 0),
    Column("cost", "whole run", "epochs", lambda row: row.epochs),
    Column("cost", "whole run", "energy", lambda row: row.energy_j, units=JOULES),
)


def stat(values: Iterable[float | None]) -> Stat | None:
    """Mean and sample standard deviation of the values that are there; None if none is."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Stat(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


def by_algorithm(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by algorithm in order of first appearance, federated ones before references."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.kind):  # stable; 'federated' < 'reference'
        groups.setdefault(row.algorithm, []).append(row)
    return groups


def lines(rows: Iterable[Row]) -> list[Line]:
    """Table III's numbers, unformatted."""
    return [
        Line(
            algorithm=algorithm,
            kind=group[0].kind,
            seeds=len({row.seed for row in group}),
            stats=tuple(_over_seeds(column, group) for column in COLUMNS),
        )
        for algorithm, group in by_algorithm(rows).items()
    ]


def _over_seeds(column: Column, group: list[Row]) -> Stat | None:
    values = [column.get(row) for row in group]
    return None if column.every and None in values else stat(values)


def written(value: Stat | None, column: Column) -> tuple[str, str]:
    """Mean and spread as text, e.g. ('12.3 MB', '± 0.4'); '' where there is no spread."""
    if value is None:
        return NOTHING, ""
    size, unit = next(
        (one for one in reversed(column.units) if abs(value.mean) >= one[0]), column.units[0]
    )
    mean = value.mean / size
    digits = column.digits
    if digits is None:
        digits = 0 if abs(mean) >= 100 or unit == "B" else 1 if abs(mean) >= 10 else 2
    text = f"{mean:,.{digits}f} {unit}".rstrip()
    if value.spread is None:
        return text, ""
    # A spread that only rounds to zero must not read as zero.
    spread = value.spread / size
    if 0 < spread < 0.5 * 10**-digits:
        return text, f"± <{10**-digits:.{digits}f}" if digits else "± <1"
    return text, f"± {spread:,.{digits}f}"


def human_bytes(value: float) -> str:
    """Bytes in decimal units with three significant digits: 12300000 is '12.3 MB'."""
    return written(Stat(value, None), Column("cost", "", "", lambda row: None, units=BYTES))[0]


def human_seconds(value: float) -> str:
    """Seconds in the largest unit that fits: 5400 is '1.50 h'."""
    return written(Stat(value, None), Column("cost", "", "", lambda row: None, units=SECONDS))[0]


def title(rows: Iterable[Row]) -> str:
    """The heading of Table III; says so loudly where traffic is synthetic."""
    known = list(rows)
    seeds = len({row.seed for row in known})
    text = f"Table III, mean ± sample standard deviation over {seeds} seeds"
    if seeds == 1:
        text = "Table III, one seed (no spread)"
    federated = [row for row in known if row.kind == "federated"]
    allowed = {(row.epochs_allowed, row.rounds) for row in federated}
    if len(allowed) == 1 and None not in (budget := allowed.pop()):
        text += f"; at most {budget[0]:g} local epochs a client and {budget[1]} aggregations"
    if any(row.synthetic for row in known):
        text = f"SYNTHETIC TRAFFIC: says nothing about real networks. {text}"
    return text


def seen_in_training(rows: Iterable[Row]) -> str | None:
    """What of the test flows training has seen, mean over seeds; None where no row says it."""
    found = {row.seed: row.leakage for row in rows if row.leakage is not None}
    if not found:
        return None
    means = {
        field.name: statistics.fmean(getattr(one, field.name) for one in found.values())
        for field in fields(Leakage)
    }
    return sentence(Leakage(**means))


def footnotes() -> str:
    """What the columns span, one sentence a line."""
    return "\n".join(
        (
            "F1 is the support-weighted mean over classes, as in the paper; macro-F1 counts every "
            "class alike.",
            "Central model: the last global model on the whole test set. Clients' average: every "
            "client's model after its last local work on the whole test set; own site: on its own "
            "site's test flows.",
            "Alarms: share of benign and of attack test flows that raise one, at a threshold "
            "chosen on validation flows so that 0.25 % of their benign ones would.",
            "One inference: what the paper defines as response latency, the mean time of one "
            "inference, here one flow on the fleet's devices; requests a minute are 60,000 / ms. "
            "It depends on the model alone: algorithms with the same kind of model are equal.",
            "Model to model, central: mean virtual seconds from one global model to the next; "
            "client: from the start of one local round to the start of the next, waiting "
            "included. The paper does not say what its Table III's seconds span.",
            f"Time to {GOOD:g} accuracy: virtual time until a global model first had it on the "
            f"test set; {NOTHING} where any seed never did.",
            "Epochs: local work done, in passes over all training flows of the fleet. Every "
            "algorithm may spend the same at most.",
            "Virtual time, inference and energy come from the simulated device profiles, not "
            "from this machine.",
        )
    )


def table(rows: list[Row], *, width: int) -> Table:
    """Table III for the terminal: quality above, cost below, at most ``width`` columns wide."""
    summary = lines(rows)
    outer = Table.grid(padding=(0, 0))
    outer.width = width
    outer.title = title(rows)
    outer.title_justify = "left"
    outer.title_style = "bold reverse yellow" if any(row.synthetic for row in rows) else "bold"
    outer.add_column()
    for part in PARTS:
        outer.add_row(_widest_that_fits(summary, part, width))
    return outer


def _widest_that_fits(summary: list[Line], part: Part, width: int) -> Table:
    """Spread beside the mean if there is room, else below it, else without room between columns."""
    console = Console(width=10 * width)
    drawn = Table()
    for between, gap in ((" ", 1), ("\n", 1), ("\n", 0)):
        drawn = _drawn(summary, part, between, gap)
        if console.measure(drawn).maximum <= width:
            break
    return drawn


def _drawn(summary: list[Line], part: Part, between: str, gap: int) -> Table:
    chosen = [(index, column) for index, column in enumerate(COLUMNS) if column.part == part]
    inner = Table(box=box.SIMPLE_HEAD, padding=(0, gap, 0, 0), pad_edge=False)
    inner.add_column("algorithm", style="bold", overflow="fold")
    for _, column in chosen:
        heading = "\n".join([*textwrap.wrap(column.group, 9), *column.title.split()])
        inner.add_column(heading, justify="right", overflow="fold")
    last = None
    for line in summary:
        if last is not None and line.kind != last:
            inner.add_section()
        last = line.kind
        cells = [between.join(written(line.stats[i], column)).rstrip() for i, column in chosen]
        inner.add_row(escape(line.algorithm), *cells)
    return inner
