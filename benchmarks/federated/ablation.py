"""Which part does it: from FedAvg to gsfs one part at a time, then gsfs without each of them.

    python -m benchmarks.federated.ablation --data IOT23 --out ablation/ [--plot docs/ablation.png]

Every row is a run of `gradsense compare` with its own folder under --out; --resume goes on.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from gradsense.config import RunSettings, settings
from gradsense.experiments import results
from gradsense.experiments.compare import PlannedRun, compare, plan
from gradsense.experiments.findings import to_reach
from gradsense.experiments.results import Point, Row
from gradsense.experiments.table import human_bytes, human_seconds

#: What is added, and the algorithm that has it and all above.
ADDED = (
    ("FedAvg", "fedavg"),
    ("+ head over all tokens", "fedavg:readout=tokens"),
    ("+ frozen base", "fedavg:readout=tokens:frozen=true"),
    (
        "+ moments instead of weights",
        "gsfs:floor=0:share=1:deadline_s=null:codec=none:tolerance=0",
    ),
    ("+ low rank", "gsfs:floor=0:share=1:deadline_s=null:codec=none"),
    ("+ one step for all directions", "gsfs:floor=0:share=1:deadline_s=null"),
    ("+ quorum of 30 %, or 2 s", "gsfs:floor=0"),
    ("+ sensing = gsfs", "gsfs"),
)
#: What is taken away from gsfs alone.
REMOVED = (
    ("gsfs", "gsfs"),
    ("without sensing", "gsfs:floor=0"),
    ("without quorum and deadline", "gsfs:share=1:deadline_s=null"),
    ("with int8 instead of one step", "gsfs:codec=int8"),
    ("without rounding", "gsfs:codec=none"),
    ("without low rank", "gsfs:tolerance=0"),
    ("without the head over all tokens", "gsfs:readout=last"),
    ("FedAvg of the same head, int8", "fedavg:readout=tokens:frozen=true:codec=int8"),
)
#: FedAvg with the trained parameters of gsfs.
_SAME_HEAD = "fedavg:readout=tokens:frozen=true"
_NO_BASE = "without the pretrained base"
Rows = dict[str, list[Row]]


def run(base: RunSettings, algorithms: Sequence[str], out: Path, seeds: int, resume: bool) -> Rows:
    """The rows of each algorithm over the seeds."""
    jobs = plan(base, algorithms, seeds, out, references=False)
    done: set[str] = set()

    def on_news(job: PlannedRun, news: dict[str, object]) -> None:
        if news["event"] == "done":
            done.add(job.name)
            print(f"{len(done)} of {len(jobs)}: {job.name}", file=sys.stderr)

    compare(jobs, out, workers=os.cpu_count() or 1, resume=resume, on_news=on_news)
    rows: Rows = {}
    for row in results.load(out / "results.json"):
        rows.setdefault(row.algorithm, []).append(row)
    return rows


def mean(rows: Sequence[Row], get: Callable[[Row], float | None]) -> tuple[float, float]:
    """Mean and sample standard deviation over seeds."""
    values = [value for row in rows if (value := get(row)) is not None]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def accuracy(row: Row) -> float | None:
    return None if row.central is None else row.central.accuracy


def macro_f1(row: Row) -> float | None:
    return None if row.central is None else row.central.f1_macro


def reached(rows: Sequence[Row], base: Sequence[Row], cost: Callable[[Point], float]) -> str:
    """Mean cost at which FedAvg's final macro-F1 is first reached, and FedAvg's own against it."""
    pairs = [to_reach(row, other, cost) for row, other in zip(rows, base, strict=True)]
    spent = [pair for pair in pairs if pair is not None]
    if len(spent) < len(pairs):
        return f"in {len(spent)} of {len(pairs)} seeds"
    ours, theirs = (statistics.fmean(side) for side in zip(*spent, strict=True))
    human = human_bytes if cost is uplink else human_seconds
    return f"{human(ours)} (1/{theirs / ours:.0f})"


def uplink(point: Point) -> float:
    return float(point.uplink_bytes)


def virtual(point: Point) -> float:
    return point.virtual_s


def table(steps: Sequence[tuple[str, str]], rows: Rows) -> str:
    """A Markdown table, a step a line."""
    lines = [
        "| | accuracy | macro-F1 | uplink | virtual time | uplink to FedAvg's final macro-F1 "
        "| time to it |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for title, spec in steps:
        own = rows[spec]
        quality = ["{:.3f} ± {:.3f}".format(*mean(own, get)) for get in (accuracy, macro_f1)]
        cost = [
            human_bytes(mean(own, lambda row: row.uplink_bytes)[0]),
            human_seconds(mean(own, lambda row: row.virtual_s)[0]),
            *(reached(own, rows["fedavg"], of) for of in (uplink, virtual)),
        ]
        lines.append(f"| {title} | {' | '.join(quality + cost)} |")
    return "\n".join(lines)


def plot(groups: Sequence[tuple[str, Sequence[tuple[str, str]]]], rows: Rows, path: Path) -> None:
    """Quality and bytes of every step, every seed a dot."""
    heights = [len(steps) for _, steps in groups]
    figure, panels = plt.subplots(
        len(groups),
        3,
        figsize=(12, 0.3 * sum(heights) + 1.4),
        sharex="col",
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )
    measures: tuple[tuple[str, Callable[[Row], float | None]], ...] = (
        ("accuracy", accuracy),
        ("macro-F1", macro_f1),
        ("uplink, MB (log)", lambda row: None if not row.uplink_bytes else row.uplink_bytes / 1e6),
    )
    for number, ((heading, steps), line) in enumerate(zip(groups, panels, strict=True)):
        for panel, (name, get) in zip(line, measures, strict=True):
            for place, (_, spec) in enumerate(steps):
                values = [value for row in rows[spec] if (value := get(row)) is not None]
                colour = "#c2410c" if spec == "gsfs" else "#334155"
                panel.plot(values, [place] * len(values), "o", ms=4, alpha=0.45, color=colour)
                panel.plot(statistics.fmean(values), place, "|", ms=16, mew=2.5, color=colour)
            panel.set_ylim(len(steps) - 0.5, -0.5)
            panel.set_yticks(range(len(steps)), [title for title, _ in steps])
            panel.tick_params(labelleft=panel is line[0], length=0)
            panel.grid(axis="x", alpha=0.3)
            panel.spines[["top", "right", "left"]].set_visible(False)
            if "log" in name:
                panel.set_xscale("log")
            if number == len(groups) - 1:
                panel.set_xlabel(name)
        line[0].set_title(heading, loc="left", fontsize=10, fontweight="bold")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of IoT-23 captures")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    base = settings(data=given.data)
    specs = list(dict.fromkeys(spec for _, spec in (*ADDED, *REMOVED)))
    rows = run(base, specs, given.out / "with-base", given.seeds, given.resume)
    random = settings(data=given.data, pretrained=False)
    rows[_NO_BASE] = run(random, ["gsfs"], given.out / "no-base", given.seeds, given.resume)["gsfs"]
    removed = (*REMOVED, (_NO_BASE, _NO_BASE))
    print("One part at a time:\n", table(ADDED, rows), "\ngsfs without each:\n", sep="\n")
    print(table(removed, rows))
    for name, cost in (("uplink", uplink), ("virtual time", virtual)):
        spent = reached(rows["gsfs"], rows[_SAME_HEAD], cost)
        print(f"\n{name} of gsfs to the final macro-F1 of FedAvg on the same head: {spent}")
    if given.plot:
        groups = (("from FedAvg, one part at a time", ADDED), ("gsfs without", removed))
        plot(groups, rows, given.plot)


if __name__ == "__main__":
    main()
