"""``gradsense train``: one federated run. ``gradsense pretrain``: the base that it starts from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradsense.cli.compare import show_table
from gradsense.cli.console import results_console, show_lines
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
    from gradsense.experiments.compare import check, shown
    from gradsense.experiments.corpus import load_corpus
    from gradsense.experiments.report import write_report
    from gradsense.experiments.run import RunProgress
    from gradsense.experiments.run import train as train_run
    from gradsense.experiments.rundir import MODEL, REPORT, claimable

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
    show_table([row], corpus.notes, console)
    show_lines(
        console,
        f"\nmodel   {out / MODEL}\nreport  {out / REPORT}",
        f"next    gradsense evaluate --model {out / MODEL} --data YOUR.log",
    )


@command(example="gradsense pretrain --model nano --template context")
def pretrain(
    model: Annotated[str, typer.Option(help="An embedded size: nano, micro or mini.")] = "nano",
    template: Annotated[str, typer.Option(help="compact or context.")] = "context",
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: the package's own.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 4,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train a base on unlabelled synthetic traffic by predicting each prompt's next word."""
    from gradsense.experiments.pretrain import make_base
    from gradsense.models.embedded import base_path
    from gradsense.prompts.templates import get_template

    path = out or base_path(model, get_template(template))
    with bars() as progress:
        task = progress.add_task(f"{model} {template}", total=None, news="writing traffic")

        def on_step(step: int, steps: int, loss: float) -> None:
            progress.update(task, completed=step, total=steps, news=f"loss {loss:.3f}")

        loss = make_base(model, template, path, epochs=epochs, seed=seed, on_step=on_step)
    typer.echo(f"{path}: {path.stat().st_size:,} bytes, {loss:.3f} nats a word in the last epoch")
