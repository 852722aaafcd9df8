"""``gradsense compare``: the paper's Table III for your own data."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from gradsense.cli.console import results_console, show_lines
from gradsense.cli.lazy import command
from gradsense.cli.progress import bars, news

if TYPE_CHECKING:
    from gradsense.config import RunSettings
    from gradsense.experiments.compare import OnNews, PlannedRun
    from gradsense.experiments.results import Row

_ALGORITHMS = ("fedavg", "fedopt", "gsfs-paper", "gsfs-literal", "gsfs")


@command(
    example="gradsense compare --data iot23/ --algorithms fedavg,fedopt,gsfs --seeds 3 --out "
    "table3/",
    settings=True,
    hidden="algorithm",
)
def compare(
    run: RunSettings,
    out: Annotated[Path, typer.Option(help="Folder for results.json, report.html and the runs.")],
    algorithms: Annotated[
        str,
        typer.Option(
            help="Names with commas between them; default fedavg,fedopt,gsfs-paper,gsfs-literal,"
            "gsfs, and gsfs alone with --split network."
        ),
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from --seed on.")] = 3,
    references: Annotated[
        bool, typer.Option(help="Also the rows that set the scale: docs/benchmarks.md has them.")
    ] = True,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes side by side; default: one a core.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Read finished rows, continue the others.")
    ] = False,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="First choose each baseline's server rate on validation."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json.")] = False,
) -> None:
    """Compare algorithms with one budget of local compute over several seeds; print Table III."""
    names = [name.strip() for name in algorithms.split(",") if name.strip()]
    if run.split == "network":
        _leave_networks_out(
            run, names, seeds, out, references=references, jobs=jobs, resume=resume, as_json=as_json
        )
        return
    rows, notes = run_comparison(
        run,
        names if algorithms else [*_ALGORITHMS],
        seeds,
        out,
        references=references,
        jobs=jobs,
        resume=resume,
        tune=tune,
    )
    if as_json:
        typer.echo((out / "results.json").read_text(), nl=False)
        return
    show(rows, notes, out, results_console())


def _leave_networks_out(
    run: RunSettings,
    names: list[str],
    seeds: int,
    out: Path,
    *,
    references: bool,
    jobs: int | None,
    resume: bool,
    as_json: bool,
) -> None:
    from gradsense.experiments.compare import absences
    from gradsense.experiments.network_table import drawn, network_footnotes, sheets
    from gradsense.experiments.networks_left_out import TABLES, compare_networks, plan_networks

    planned = plan_networks(run, names or ["gsfs"], seeds, out, with_references=references)
    workers = jobs or os.cpu_count() or 1
    with _followed(planned, "all runs") as on_news:
        rows, notes = compare_networks(
            planned, out, workers=workers, resume=resume, on_news=on_news
        )
    if as_json:
        typer.echo((out / "results.json").read_text(), nl=False)
        return
    console = results_console()
    for note in (*notes, *(absences() if references else ())):
        console.print(f"note: {note}", markup=False, highlight=False)
    for sheet in sheets(rows):
        console.print(drawn(sheet))
    console.print(network_footnotes(rows), style="dim", markup=False, highlight=False)
    show_lines(console, f"\nresults {out / 'results.json'}\ntables  {out / TABLES}")


def run_comparison(
    run: RunSettings,
    algorithms: list[str],
    seeds: int,
    out: Path,
    *,
    references: bool,
    jobs: int | None,
    resume: bool,
    tune: bool = False,
) -> tuple[list[Row], tuple[str, ...]]:
    """The comparison, with bars: its rows, and the notes on choices and the first seed's data."""
    from gradsense.experiments.compare import absences, plan
    from gradsense.experiments.compare import compare as compare_all
    from gradsense.experiments.tune import choose, trials

    planned = plan(run, algorithms, seeds, out, references=references)
    workers = jobs or os.cpu_count() or 1
    notes: tuple[str, ...] = absences() if references else ()
    searched = trials(run, algorithms, out) if tune else []
    if searched:
        with _followed(searched, "all trials") as on_news:
            algorithms, chosen = choose(
                searched, algorithms, out, workers=workers, resume=resume, on_news=on_news
            )
        notes += chosen
        # A chosen value's first seed has been run already.
        planned, resume = plan(run, algorithms, seeds, out, references=references), True
    with _followed(planned, "all runs") as on_news:
        return compare_all(
            planned, out, workers=workers, resume=resume, on_news=on_news, notes=notes
        )


@contextlib.contextmanager
def _followed(planned: Sequence[PlannedRun], label: str) -> Iterator[OnNews]:
    """A bar for all of these runs and one for each that is at work."""
    with bars() as progress:
        whole = progress.add_task(label, total=len(planned), news=f"0 of {len(planned)}")
        tasks: dict[str, Any] = {}
        shares = dict.fromkeys((job.name for job in planned), 0.0)
        finished: set[str] = set()

        def on_news(job: PlannedRun, message: dict[str, Any]) -> None:
            if job.name not in tasks:
                tasks[job.name] = progress.add_task(job.name, total=1.0, news="")
            if message["event"] == "done":
                finished.add(job.name)
            shares[job.name] = message.get("share", 1.0)
            count = f"{len(finished)} of {len(planned)}"
            progress.update(whole, completed=sum(shares.values()), news=count)
            if job.name in finished:
                progress.remove_task(tasks[job.name])
                return
            keys = ("aggregation", "accuracy", "f1_macro", "uplink_bytes")
            line = message.get("text") or news(*(message[key] for key in keys))
            progress.update(tasks[job.name], completed=message["share"], news=line)

        yield on_news


def show_table(rows: list[Row], notes: Sequence[str], console: Console) -> None:
    """Table III, with notes on the data above and on its columns below."""
    from gradsense.experiments.table import footnotes, seen_in_training, table

    for note in notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    console.print(table(rows, width=console.width))
    if (seen := seen_in_training(rows)) is not None:
        console.print(seen, markup=False, highlight=False)
    console.print(footnotes(), style="dim", markup=False, highlight=False)


def show(rows: list[Row], notes: Sequence[str], out: Path, console: Console) -> None:
    """Table III, what it means, and where the rest is."""
    from gradsense.experiments.findings import findings

    show_table(rows, notes, console)
    for finding in findings(rows):
        console.print(f"• {finding}", markup=False, highlight=False)
    show_lines(console, f"\nresults {out / 'results.json'}\nreport  {out / 'report.html'}")
