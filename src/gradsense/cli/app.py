"""The tree of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from gradsense import __version__
from gradsense.cli.lazy import group

#: Options by their former names, which still work: --strategy is --algorithm.
_FORMER = {"strategy": "algorithm", "strategies": "algorithms"}

_DATA = {"inspect": "data:inspect_command", "synth": "data:synthesize"}

_FLEET = {
    "init": "fleet:init",
    "enroll": "fleet:enroll",
    "revoke": "fleet:revoke",
    "rollback": "fleet:rollback",
    "rotate": "fleet:rotate",
    "backup": "fleet:back_up",
    "list": "fleet:members",
    "run": "fleet_run:run",
    "status": "fleet_run:status",
    "model": "fleet_run:model",
    "up": "fleet_up:up",
}

app = group(
    {
        "demo": "demo:demo",
        "train": "train:train",
        "compare": "compare:compare",
        "evaluate": "evaluate:evaluate",
        "export": "bundles:export",
        "calibrate": "bundles:calibrate",
        "pretrain": "train:pretrain",
        "serve": "serve:serve",
        "watch": "watch:watch",
        "coordinator": "coordinator:coordinator",
        "edge": "edge:edge",
        "feedback": "feedback:feedback",
        "data": group(_DATA, name="data", help="Inspect logs, or write synthetic ones."),
        "fleet": group(
            _FLEET,
            name="fleet",
            help="Certificates, access and runs: make a fleet, let devices in, shut them out.",
        ),
    },
    name="gradsense",
    help="Federated small language models that guard IoT fleets.",
    epilog="Start with: gradsense demo",
    add_completion=True,
    context_settings={"token_normalize_func": lambda name: _FORMER.get(name, name)},
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version and exit.")
    ] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
