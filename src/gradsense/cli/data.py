"""``gradsense data``: what is in logs, and synthetic ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from gradsense.cli.console import results_console, show_lines
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
    captures.add_column("order")
    captures.add_column("classes")
    for capture in found.captures:
        classes = ", ".join(f"{name} {count:,}" for name, count in capture.classes.items())
        captures.add_row(capture.name, f"{capture.rows:,}", capture.order.state, classes)
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
    show_lines(console, *(f"dropped {line}" for line in found.tally.lines()))
    show_lines(console, *(f"warning: {line}" for line in found.warnings))


def _pairs(console: Console, title: str, rows: dict[str, str]) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)


@command(example="gradsense data synth captures/ --sites 8 --seed 1")
def synthesize(
    out: Annotated[Path, typer.Argument(help="Folder to write the sites into.")],
    sites: Annotated[int, typer.Option(help="How many sites.")] = 6,
    flows: Annotated[int, typer.Option(help="Flows of an average site.")] = 2000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Write labelled Zeek logs of an IoT fleet that never existed, one folder a site."""
    from gradsense.data.synthetic.traffic import write_fleet

    counts = {
        path.parents[1].name: _classes(path)
        for path in write_fleet(out, sites=sites, flows=flows, seed=seed)
    }
    if as_json:
        typer.echo(json.dumps({"synthetic": True, "flows": counts}, indent=1))
        return
    console = results_console()
    console.print(_class_table(counts))
    console.print("This traffic is synthetic: generated, not captured from any network.")
    console.print(f"Next: gradsense data inspect {out}", soft_wrap=True, highlight=False)


def _classes(path: Path) -> dict[str, int]:
    """Flows of each class in one log."""
    import polars as pl

    from gradsense.data.datasets.iot23 import classed
    from gradsense.data.sources.lines import Tally
    from gradsense.data.sources.stream import read_log

    flows = classed(pl.concat(read_log(path, tally=Tally())))
    return dict(flows["class"].value_counts().iter_rows())


def _class_table(counts: dict[str, dict[str, int]]) -> Table:
    names = sorted({name for site in counts.values() for name in site})
    table = Table(title="Synthetic fleet: flows of each class")
    table.add_column("site", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for site, classes in counts.items():
        table.add_row(site, *(str(classes.get(name, 0) or "") for name in names))
    return table
