"""``gradsense export``: a trained model as a bundle for gateways."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from gradsense.cli.console import results_console, show_notes
from gradsense.cli.lazy import command

if TYPE_CHECKING:
    from gradsense.detection.bundle import BundleThreshold, Manifest
    from gradsense.detection.export import Exported


@command(example="gradsense export --model run/model --out edge/ --verify")
def export(
    model: Annotated[Path, typer.Option(help="The model folder that training wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for the bundle.")],
    int8: Annotated[
        bool, typer.Option("--int8", help="8-bit weights: smaller and faster; always verified.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare the graph with torch before it is written."),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="Logs to verify on and, where labelled, to calibrate on."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write an int8 graph however much macro-F1 it loses.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads for verifying.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Make an edge bundle: a graph that runs without torch, tokenizer, thresholds, checksums."""
    # torch takes seconds to import; --help should not.
    from gradsense.detection.export import export as run

    with _spinner("loading torch") as on_step:
        exported = run(
            model,
            out,
            int8=int8,
            verify=verify,
            data=data,
            force=force,
            threads=threads,
            on_step=on_step,
        )
    show_notes(exported.warnings)
    if as_json:
        typer.echo(exported.manifest.model_dump_json(indent=2))
    else:
        _show(exported, results_console())


@contextmanager
def _spinner(first: str) -> Iterator[Callable[[str], None]]:
    """Shows the current step on stderr, if that is a terminal."""
    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(first, total=None)
        yield lambda step: bar.update(task, description=step)


def _show(exported: Exported, console: Console) -> None:
    manifest = exported.manifest
    table = Table(show_header=False)
    table.add_row("bundle", f"{exported.path} ({manifest.id})")
    size = sum(file.bytes for file in manifest.files.values())
    table.add_row("size", f"{size / 1e6:.2f} MB, {manifest.precision}")
    table.add_row("classes", ", ".join(manifest.labels))
    table.add_row("temperature", f"{manifest.temperature:.3f}")
    table.add_row("alarm", _threshold("suspicion", manifest.alarm))
    if manifest.novelty is not None:
        table.add_row("novelty", _threshold("score", manifest.novelty))
    for row in _verified(manifest):
        table.add_row(*row)
    console.print(table, highlight=False)
    console.print(
        f"next    gradsense watch conn.log --model {exported.path}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _threshold(name: str, found: BundleThreshold) -> str:
    passed = f"{found.share:.2%} of {found.flows:,} flows" if found.flows else "no flows"
    return f"{name} above {found.value:.3f}; {passed} were, {found.source}"


def _verified(manifest: Manifest) -> list[tuple[str, str]]:
    found = manifest.verified
    if found is None:
        return [("verified", "no; --verify compares it with torch")]
    novelty = "" if found["novelty"] is None else f", novelty by {found['novelty']:.2g}"
    return [
        ("verified", f"{found['flows']:,} flows, {found['source']}"),
        ("same verdict", f"{found['agreement']:.3%}"),
        ("apart at most", f"logits by {found['logits']:.2g}{novelty}"),
        (
            "macro-F1",
            f"{found['f1_macro']:.4f}, torch {found['f1_macro_torch']:.4f}; "
            f"truth: {found['truth']}",
        ),
    ]
