"""``gradsense feedback``: an operator's feedback on an alert."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from gradsense.cli.console import results_console
from gradsense.cli.lazy import command
from gradsense.cli.watch import state_folder
from gradsense.errors import InputError

if TYPE_CHECKING:
    from gradsense.gateway.alerting.alert import Alert


@command(example="gradsense feedback 3f9a0c --benign")
def feedback(
    alert: Annotated[
        str, typer.Argument(help="Id of an alert, or its beginning; none lists the newest alerts.")
    ] = "",
    benign: Annotated[bool, typer.Option("--benign", help="It was a false alert.")] = False,
    malicious: Annotated[bool, typer.Option("--malicious", help="It was an attack.")] = False,
    label: Annotated[
        str | None, typer.Option(help="It was this class, as the model names it.")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            help="Folder that the watch keeps its state in. Default: ~/.local/state/gradsense.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Label an alert: a false one is silenced at once, and all feedback is training data."""
    from gradsense.gateway.store import GatewayStore
    from gradsense.tasks.task import get_task

    folder = state or state_folder()
    if not (folder / "watch.sqlite3").is_file():
        raise InputError("no watch keeps its state there", hint="give its --state", file=folder)
    journal = GatewayStore(folder, exclusive=False)
    if not alert:
        _list(journal.alerts(20), as_json=as_json)
        return
    given = zip((*get_task().binary, label or ""), (benign, malicious, label), strict=True)
    labels = [name for name, chosen in given if chosen]
    if len(labels) != 1:
        raise InputError(
            "an alert is one thing", hint="give one of --benign, --malicious or --label X"
        )
    known = journal.labels()
    if known and labels[0] not in (*known, *get_task().binary):
        raise InputError(
            f"the model knows no class '{labels[0]}'",
            hint=f"give one of {', '.join(known)}",
            field="--label",
        )
    found = journal.alert(alert)
    prompts = journal.record_feedback(found, labels[0], time.time())
    if as_json:
        typer.echo(json.dumps({"alert": found.id, "label": labels[0], "prompts": prompts}))
        return
    after = " They raise no more alerts on this device." if benign else ""
    typer.echo(
        f"{found.id}: {found.label} on {found.device} was {labels[0]}. {prompts} distinct prompts "
        f"are kept as training data.{after}"
    )


def _list(alerts: list[Alert], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([alert.model_dump(mode="json") for alert in alerts], indent=2))
        return
    table = Table()
    for name in ("id", "severity", "class", "device", "flows", "state"):
        table.add_column(name, no_wrap=name == "id")
    for alert in alerts:
        table.add_row(
            alert.id, alert.severity, alert.label, alert.device, f"{alert.flows:,}", alert.state
        )
    results_console().print(table)
    Console(stderr=True).print("label one: gradsense feedback ID --benign", highlight=False)
