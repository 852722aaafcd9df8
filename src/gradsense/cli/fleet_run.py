"""``gradsense fleet run``, ``status`` and ``model``: jobs of a fleet."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from gradsense.cli.console import results_console
from gradsense.cli.fleet import AsJson, FleetFolder
from gradsense.cli.lazy import command
from gradsense.errors import InputError

if TYPE_CHECKING:
    from gradsense.fleet.jobs import Job


@command(example="gradsense fleet run porch --labels Benign,DDoS,PortScan")
def run(
    name: Annotated[str, typer.Argument(help="Name of the run: letters, digits, . _ -")],
    fleet: FleetFolder = Path("fleet"),
    algorithm: Annotated[str, typer.Option(help="An algorithm, values changed or not.")] = "gsfs",
    model: Annotated[
        Path | None, typer.Option(help="Model folder to start from. Without: a new one.")
    ] = None,
    labels: Annotated[
        str, typer.Option(help="Classes of a new model, separated by commas, Benign first.")
    ] = "",
    size: Annotated[
        str, typer.Option(help="A new model: nano, micro, mini, or a folder.")
    ] = "nano",
    template: Annotated[str, typer.Option(help="Prompt template of a new model.")] = "context",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    epochs: Annotated[float, typer.Option(help="Local epochs of a local round.")] = 1.0,
    batch_size: Annotated[int, typer.Option(help="Flows a step, where weights train.")] = 32,
    lr: Annotated[float, typer.Option(help="Learning rate, where weights train.")] = 1e-3,
    participation: Annotated[float, typer.Option(help="Share invited to each round.")] = 1.0,
    max_norm: Annotated[float, typer.Option(help="Largest L2 norm of an update.")] = 1e3,
    max_samples: Annotated[
        int, typer.Option(help="Records that a device counts for, at most; gsfs has its cap.")
    ] = 500,
    interval: Annotated[float, typer.Option(help="Least seconds between two models.")] = 5.0,
    upload_gap: Annotated[
        float, typer.Option(help="Seconds between a device's uploads, on average.")
    ] = 5.0,
    min_devices: Annotated[int, typer.Option(help="Begin when so many devices are there.")] = 1,
    rounds: Annotated[int | None, typer.Option(help="End after so many aggregations.")] = None,
    sealed: Annotated[bool, typer.Option("--sealed", help="Encrypt bodies end to end.")] = False,
    keep_updates: Annotated[
        bool, typer.Option("--keep-updates", help="Keep every update, to replay the run.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Open a run: what is trained, from which start, by which algorithm.

    A coordinator that works takes it up within seconds. fleet enroll --run NAME gives it to
    devices.
    """
    from gradsense.coordinator.opening import open_run
    from gradsense.fleet.enrolment import opened, read
    from gradsense.models.folder import read_card

    read(fleet)
    classes = tuple(part.strip() for part in labels.split(",") if part.strip())
    if model is not None and not classes:
        classes = read_card(model).labels
    if len(classes) < 2:
        raise InputError(
            "a new model needs its classes",
            hint="give --labels Benign,DDoS,... or --model FOLDER",
            field="--labels",
        )
    job = make_job(
        run=name,
        algorithm=algorithm,
        labels=classes,
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        participation=participation,
        max_norm=max_norm,
        max_samples=max_samples,
        interval_s=interval,
        upload_gap_s=upload_gap,
        min_devices=min_devices,
        rounds=rounds,
        sealed=sealed,
        keep_updates=keep_updates,
    )
    with Console(stderr=True).status("opening the run") as shown:
        place = open_run(
            fleet, job, model=model, size=size, template=template, on_step=shown.update
        )
    with opened(fleet) as changed:
        changed.publish_access(now=time.time())
    if as_json:
        typer.echo(json.dumps({"folder": str(place), **job.model_dump()}, indent=2))
        return
    typer.echo(f"run {name} in {place}")
    typer.echo(
        f"next    gradsense coordinator --fleet {fleet}\n"
        f"        gradsense fleet enroll ID --fleet {fleet} --run {name}\n"
        "A Mosquitto on this machine knows the run's topics by now; send one elsewhere SIGHUP."
    )


def make_job(**values: Any) -> Job:
    """A job from unchecked values.

    Raises:
        InputError: names the first value that does not fit.
    """
    from pydantic import ValidationError

    from gradsense.fleet.jobs import Job

    try:
        return Job.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{first['input']!r} does not fit: {first['msg']}",
            hint="see --help for what it takes",
            field="--" + "-".join(str(part) for part in first["loc"]).replace("_", "-"),
        ) from None


@command(example="gradsense fleet status --json")
def status(fleet: FleetFolder = Path("fleet"), as_json: AsJson = False) -> None:
    """How the coordinator and its runs stand."""
    from gradsense.coordinator.flags import FLAGGED
    from gradsense.coordinator.service import read_status
    from gradsense.fleet.enrolment import read

    read(fleet)
    status = read_status(fleet)
    if status is None:
        raise InputError(
            "no coordinator has worked here yet",
            hint=f"gradsense coordinator --fleet {fleet}",
            file=fleet,
        )
    if as_json:
        typer.echo(json.dumps(status, indent=2))
        return
    console = results_console()
    broker = "connected to its broker" if status["connected"] else "without a broker"
    state = "stopped" if status["stopped"] else f"up for {status['up_s']:.0f} s"
    console.print(f"coordinator {state}, {broker}; as of {status['at']}", markup=False)
    for name, run in status["runs"].items():
        console.print(run_table(name, run))
    for device, seconds in status["shut_out"].items():
        console.print(f"{device} floods the fleet: shut out for {seconds:.0f} s", markup=False)
    for name, scores in status["contradictions"].items():
        for device, score in scores.items():
            if score >= FLAGGED:
                console.print(
                    f"run {name}: the labels of {device} contradict what the others agree on "
                    f"({score:.2f} of 1); it may be wrong, or they: compare its labels with theirs",
                    markup=False,
                )
    for name, reason in status["unreadable"].items():
        console.print(f"run {name} cannot be opened: {reason}", markup=False)


def run_table(
    name: str, run: Mapping[str, Any], more: Mapping[str, Mapping[str, str]] | None = None
) -> Table:
    """One run and its devices; ``more`` adds columns: device to column to cell."""
    pool = f"{run['pool']['updates']} of {run['pool']['needed']} updates pooled"
    state = "finished" if run["finished"] else pool if run["started"] else "waits for devices"
    title = f"{name}: {run['algorithm']}, model {run['version']} ({run['hash'][:12]}), {state}"
    refused = ", ".join(f"{number} {reason}" for reason, number in run["refused"].items())
    table = Table(title=title, caption=f"refused: {refused}" if refused else None)
    for column in ("device", "link", "holds model", "updates", "bytes", "refused"):
        table.add_column(column, justify="left" if column in {"device", "link"} else "right")
    more = more or {}
    columns = list(dict.fromkeys(column for cells in more.values() for column in cells))
    for column in columns:
        table.add_column(column, justify="right")
    for device, status in sorted(run["devices"].items()):
        table.add_row(
            device,
            "online" if status["online"] else "offline",
            "-" if status["held"] is None else str(status["held"]),
            str(status["updates"]),
            f"{status['bytes']:,}",
            str(sum(status["refused"].values())),
            *(more.get(device, {}).get(column, "") for column in columns),
        )
    return table


@command(example="gradsense fleet model porch --out model/")
def model(
    name: Annotated[str, typer.Argument(help="Name of the run.")],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    fleet: FleetFolder = Path("fleet"),
) -> None:
    """Write the run's newest global model as a model folder, for evaluate and export."""
    from gradsense.coordinator.opening import write_newest
    from gradsense.fleet.enrolment import read

    read(fleet)
    with Console(stderr=True).status("writing the model"):
        version = write_newest(fleet, name, out)
    typer.echo(f"model {version} of {name} in {out}")
    typer.echo(f"next    gradsense evaluate --model {out} --data YOUR.log")
