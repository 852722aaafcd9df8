"""``gradsense train``: one federated run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradsense.cli.console import results_console
from gradsense.cli.lazy import command
from gradsense.cli.progress import bars, news

if TYPE_CHECKING:
    from gradsense.config import RunSettings


@command(
    example="gradsense train --data iot23/ --algorithm gsfs --seed 0 --out run/", settings=True
)
def train(
    run: RunSettings,
    out: Annotated[Path, typer.Option(help="Folder for the model, results and report.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that stopped.")] = False,
    checkpoint_s: Annotated[float, typer.Option(help="Seconds between checkpoints.", min=0)] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train one model with one algorithm, and write the model, its results and a report."""
    # Torch takes seconds to import; --help must not.
    from gradsense.experiments.bench import set_up
    from gradsense.experiments.compare import shown
    from gradsense.experiments.corpus import load_corpus
    from gradsense.experiments.preflight import check
    from gradsense.experiments.report import write_report
    from gradsense.experiments.run import RunProgress
    from gradsense.experiments.run import train as train_run
    from gradsense.experiments.rundir import MODEL, REPORT, claimable
    from gradsense.experiments.table import footnotes, table

    check(run)
    claimable(out, resume=resume)
    with bars() as progress:
        task = progress.add_task(run.algorithm, total=1.0, news="reading")
        corpus = load_corpus(run, lambda name, i, n: progress.update(task, news=f"reading {name}"))
        bench = set_up(run, corpus)

        def on_progress(now: RunProgress) -> None:
            line = news(now.aggregation, now.accuracy, now.f1_macro, now.uplink_bytes)
            progress.update(task, completed=now.share, news=line)

        row = train_run(
            bench, out, resume=resume, checkpoint_s=checkpoint_s, on_progress=on_progress
        )
    write_report(
        [row],
        out / REPORT,
        title=f"gradsense: {run.algorithm}",
        settings=shown(run, corpus.notes),
    )
    if as_json:
        typer.echo(row.model_dump_json(indent=1))
        return
    console = results_console()
    for note in corpus.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    console.print(table([row], width=console.width))
    console.print(footnotes(), style="dim", markup=False, highlight=False)
    console.print(
        f"\nmodel   {out / MODEL}\nreport  {out / REPORT}\n"
        f"next    gradsense evaluate --model {out / MODEL} --data YOUR.log",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
