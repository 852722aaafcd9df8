"""``gradsense data synth``: writes a fleet of synthetic logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from gradsense.cli.console import results_console
from gradsense.cli.lazy import command


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
    console.print(_table(counts))
    console.print("This traffic is synthetic: generated, not captured from any network.")
    console.print(f"Next: gradsense data inspect {out}", soft_wrap=True, highlight=False)


def _classes(path: Path) -> dict[str, int]:
    """Flows of each class in one log."""
    import polars as pl

    from gradsense.data.datasets.iot23 import classed
    from gradsense.data.sources.stream import read_log
    from gradsense.data.tally import Tally

    flows = classed(pl.concat(read_log(path, tally=Tally())))
    return dict(flows["class"].value_counts().iter_rows())


def _table(counts: dict[str, dict[str, int]]) -> Table:
    names = sorted({name for site in counts.values() for name in site})
    table = Table(title="Synthetic fleet: flows of each class")
    table.add_column("site", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for site, classes in counts.items():
        table.add_row(site, *(str(classes.get(name, 0) or "") for name in names))
    return table
