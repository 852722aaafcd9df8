"""``gradsense demo``: the whole story on synthetic traffic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from gradsense.cli.compare import run_comparison, show
from gradsense.cli.console import results_console, show_lines
from gradsense.cli.lazy import command

if TYPE_CHECKING:
    from gradsense.experiments.demo import Guarded, Reading

STRATEGIES = ["fedavg", "fedopt", "gsfs"]


@command(example="gradsense demo --out demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for all that it makes.")] = Path("demo"),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each algorithm.")] = 10,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print results.json; the story goes to stderr.")
    ] = False,
) -> None:
    """Watch synthetic sites learn together without sharing a flow; needs no data."""
    from gradsense.config import settings
    from gradsense.data.synthetic.traffic import write_fleet
    from gradsense.experiments.demo import fresh_folder, guard, read_sample
    from gradsense.experiments.rundir import MODEL, RESULTS

    console = Console(stderr=True) if as_json else results_console()
    fresh_folder(out)
    console.print("[bold]1. A fleet of sites[/], each with its own devices and infections.")
    captures = out / "captures"
    write_fleet(captures, seed=seed)
    console.print(f"   Synthetic traffic, no capture of anything real: {captures}\n")
    console.print("[bold]2. Three ways to learn together[/], with one budget of local compute.")
    run = settings(data=captures, rounds=rounds, seed=seed)
    rows, notes = run_comparison(
        run, STRATEGIES, 1, out / "runs", references=True, jobs=None, resume=False
    )
    show(rows, notes, out / "runs", console)
    model = out / "runs" / f"gsfs-seed{seed}" / MODEL
    console.print("\n[bold]3. The trained model reads a log[/] of a network that it never saw.")
    reading = read_sample(out, model, seed=seed)
    _show_reading(reading, console)
    console.print("\n[bold]4. A gateway guards that network[/] with the model, without torch.")
    guarded = guard(out, model, reading.log)
    _show_guard(guarded, console)
    console.print(
        "\nNow with your own logs:\n"
        "  gradsense data inspect YOUR-CAPTURES/\n"
        "  gradsense compare --data YOUR-CAPTURES/ --algorithms fedavg,fedopt,gsfs --out table3/\n"
        f"  gradsense watch YOUR/conn.log --model {guarded.bundle}",
        highlight=False,
        soft_wrap=True,
    )
    if as_json:
        typer.echo((out / "runs" / RESULTS).read_text(), nl=False)


def _show_reading(reading: Reading, console: Console) -> None:
    counts = ", ".join(f"{name} {n:,}" for name, n in reading.summary["verdicts"].items() if n)
    console.print(f"   {reading.log}: {reading.summary['flows']:,} flows: {counts}", soft_wrap=True)
    table = Table("line", "to", "verdict", "sure", "truth")
    for flow in reading.examples.iter_rows(named=True):
        table.add_row(
            str(flow["line"]),
            f"{flow['resp_h']}:{flow['resp_p']}",
            flow["verdict"],
            f"{flow['score']:.2f}",
            flow["class"],
        )
    console.print(table)
    speed = reading.summary["latency"]["mean_ms"]
    console.print(
        f"   {reading.right:.1%} of the verdicts agree with the generator; "
        f"{speed:.1f} ms a flow. All verdicts: {reading.verdicts}",
        soft_wrap=True,
    )


def _show_guard(guarded: Guarded, console: Console) -> None:
    console.print(
        f"   {guarded.alarms:,} of {guarded.flows:,} flows raised an alarm: "
        f"{len(guarded.alerts)} alerts, the worst first",
        soft_wrap=True,
    )
    worst = guarded.alerts[:5]
    show_lines(console, *(f"   {alert.severity:9}{alert.sentence}" for alert in worst))
