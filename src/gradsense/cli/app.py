"""The tree of commands."""

from __future__ import annotations

import typer

from gradsense import __version__
from gradsense.cli import data, fleet, fleet_run
from gradsense.cli.calibrate import calibrate
from gradsense.cli.compare import compare
from gradsense.cli.coordinator import coordinator
from gradsense.cli.demo import demo
from gradsense.cli.edge import edge
from gradsense.cli.evaluate import evaluate
from gradsense.cli.export import export
from gradsense.cli.feedback import feedback
from gradsense.cli.fleet_up import up
from gradsense.cli.pretrain import pretrain
from gradsense.cli.serve import serve
from gradsense.cli.synth import synthesize
from gradsense.cli.train import train
from gradsense.cli.watch import watch

app = typer.Typer(
    name="gradsense",
    help="Federated small language models that guard IoT fleets.",
    epilog="Start with: gradsense demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


data.app.command("synth", epilog="Example: gradsense data synth captures/ --sites 8 --seed 1")(
    synthesize
)
app.add_typer(data.app, name="data")
fleet.app.command("run", epilog="Example: gradsense fleet run porch --labels Benign,DDoS,PortScan")(
    fleet_run.run
)
fleet.app.command("status", epilog="Example: gradsense fleet status --json")(fleet_run.status)
fleet.app.command("model", epilog="Example: gradsense fleet model porch --out model/")(
    fleet_run.model
)
fleet.app.command("up", epilog="Example: gradsense fleet up --devices 5")(up)
app.add_typer(fleet.app, name="fleet")
app.command(epilog="Example: gradsense demo --out demo")(demo)
app.command(epilog="Example: gradsense train --data iot23/ --strategy gsfs --seed 0 --out run/")(
    train
)
app.command(
    epilog="Example: gradsense compare --data iot23/ --strategies fedavg,fedopt,gsfs "
    "--seeds 3 --out table3/"
)(compare)
app.command(
    epilog="Example: gradsense evaluate --model run/model --data conn.log --out verdicts.jsonl"
)(evaluate)
app.command(epilog="Example: gradsense export --model run/model --out edge/ --verify")(export)
app.command(epilog="Example: gradsense calibrate conn.log --model edge/ --out edge-here/")(
    calibrate
)
app.command(epilog="Example: gradsense pretrain --model nano --template context")(pretrain)
app.command(
    epilog="Example: gradsense serve --model EDGE --host 0.0.0.0 --cert chain.pem --key key.pem "
    "--token-file token"
)(serve)
app.command(
    epilog="Example: gradsense watch /opt/zeek/logs/current/conn.log --model edge/ "
    "--config watch.toml"
)(watch)
app.command(epilog="Example: gradsense coordinator --fleet fleet/ --metrics 127.0.0.1:9109")(
    coordinator
)
app.command(
    epilog="Example: gradsense edge --bundle porch-cam/ --logs /opt/zeek/logs/current/conn.log"
)(edge)
app.command(epilog="Example: gradsense feedback 3f9a0c --benign")(feedback)
