"""``gradsense data``: what is in logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from gradsense.cli.console import results_console
from gradsense.cli.lazy import command

if TYPE_CHECKING:
    from gradsense.data.datasets.inspect import Inspection


@command(example="gradsense data inspect captures/ --json > summary.json")
def inspect_command(
    path: Annotated[Path, typer.Argument(help="A conn.log or eve.json, or a folder of captures.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first malformed line.")
    ] = False,
    template: Annotated[
        str, typer.Option(help="The prompt template whose texts are compared.")
    ] = "compact",
) -> None:
    """Show what logs hold: rows, time span, captures, classes, drops and duplicates."""
    from gradsense.cli.progress import file_bar
    from gradsense.data.datasets.inspect import inspect
    from gradsense.prompts.templates import get_template

    render = get_template(template).render
    with file_bar("reading") as on_file:
        found = inspect(path, strict=strict, render=render, on_file=on_file)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        _show(found, results_console())


def _show(found: Inspection, console: Console) -> None:
    summary = found.to_json()
    _pairs(
        console,
        "Flows",
        {
            "read": f"{found.rows:,}",
            "dropped": f"{found.tally.total_dropped:,}",
            "first": summary["start"] or "-",
            "last": summary["end"] or "-",
            "source": "synthetic" if summary["synthetic"] else "as given",
        },
    )
    captures = Table("capture", title="Captures", title_justify="left")
    captures.add_column("flows", justify="right")
    captures.add_column("classes")
    for capture in found.captures:
        classes = ", ".join(f"{name} {count:,}" for name, count in capture.classes.items())
        captures.add_row(capture.name, f"{capture.rows:,}", classes)
    console.print(captures)
    for title, counts in (
        ("Classes", found.classes),
        ("Protocols", found.protocols),
        ("Services", found.services),
    ):
        _pairs(console, title, {name: f"{count:,}" for name, count in counts.items()})
    if found.duplicates is not None:
        same = found.duplicates
        _pairs(
            console,
            "Same text",
            {
                "distinct texts": f"{same.distinct:,}",
                "flows beyond the first": f"{same.flows:,} ({same.share:.1%})",
                "texts with several classes": f"{same.contradictions.texts:,}",
                "flows in them": f"{same.contradictions.flows:,}",
            }
            | {
                f"  {first} / {second}": f"{flows:,}"
                for first, second, flows in same.contradictions.pairs
            },
        )
    for line in found.tally.lines():
        console.print(f"dropped {line}", markup=False, highlight=False)


def _pairs(console: Console, title: str, rows: dict[str, str]) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
