"""``gradsense pretrain``: make a base that comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradsense.cli.lazy import command
from gradsense.cli.progress import bars


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
