"""``gradsense fleet``: who belongs to the fleet, and what its broker must know."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from gradsense.cli.console import results_console
from gradsense.cli.lazy import command
from gradsense.errors import InputError

if TYPE_CHECKING:
    from gradsense.fleet.registry import Enrolment

FleetFolder = Annotated[Path, typer.Option("--fleet", help="The fleet's folder.")]
Device = Annotated[str, typer.Argument(help="Id of the device: letters, digits, . _ -")]
Days = Annotated[int, typer.Option(min=1, help="Days that its certificate is valid.")]
Out = Annotated[
    Path | None,
    typer.Option(help="BUNDLE.zip, or a folder to put device/ and run/ in. Default: ID.zip."),
]
Run = Annotated[
    str | None,
    typer.Option(help="Run that the device takes part in. Default: the fleet's only one."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

_NO_RUN = (
    "The fleet has no run yet: gradsense fleet run NAME makes one; then copy "
    "FLEET/runs/NAME/start to the bundle as run/."
)
_REVOKED = (
    "Send the broker SIGHUP: Mosquitto 2 then refuses it, on an open connection too. "
    "EMQX: load broker/acl.conf again and kick the client."
)
_ROTATED = (
    "Send the broker SIGHUP: Mosquitto 2 then takes new connections by the new certificate only; "
    "a restart closes open ones."
)


@command(example="gradsense fleet init --fleet fleet/ --broker mqtt.example.org")
def init(
    fleet: FleetFolder = Path("fleet"),
    broker: Annotated[
        str | None,
        typer.Option(help="Host of the broker that devices reach. Default: this machine only."),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its TLS port.")] = 8883,
    as_json: AsJson = False,
) -> None:
    """Make a fleet: its authority, the broker's and the coordinator's certificates, access rules.

    Nothing is started. With --broker the rules for the broker that runs there are shown.
    """
    from gradsense.fleet.broker_files import emqx_acl, mosquitto_acl
    from gradsense.fleet.enrolment import create

    about = create(fleet, broker, port, now=time.time())
    rules = {"mosquitto": mosquitto_acl(), "emqx": emqx_acl()} if broker is not None else {}
    if as_json:
        _print({"folder": str(fleet), "acl": rules, **about.model_dump()})
        return
    typer.echo(f"fleet {about.fleet} in {fleet}; back up {fleet / 'ca'} and keep it to yourself")
    if broker is None:
        typer.echo(f"start its broker: mosquitto -c {fleet / 'broker' / 'mosquitto.conf'}")
        return
    typer.echo(f"give {broker} the files in {fleet / 'broker'}, see docs/fleet.md")
    for name, file in (("mosquitto", "acl"), ("emqx", "acl.conf")):
        typer.echo(f"\n{fleet / 'broker' / file}:\n\n{rules[name]}", nl=False)


@command(example="gradsense fleet enroll porch-cam --out porch-cam.zip")
def enroll(
    device: Device,
    fleet: FleetFolder = Path("fleet"),
    out: Out = None,
    run: Run = None,
    days: Days = 365,
    as_json: AsJson = False,
) -> None:
    """Let a device in: keys, the broker's address and the run's start as a bundle for it alone."""
    from gradsense.fleet.device_bundle import run_start
    from gradsense.fleet.enrolment import opened
    from gradsense.fleet.registry import device_id

    place, now = out or Path(f"{device_id(device)}.zip"), time.time()
    with opened(fleet) as found:
        start = run_start(fleet, run)
        entry = found.enroll(device, place, now=now, days=days, run=start)
    note = f"bundle: {place}; it holds the device's keys, no copy is kept"
    _show(entry, now, as_json, note if start else f"{note}. {_NO_RUN}")


@command(example="gradsense fleet revoke porch-cam")
def revoke(
    device: Device,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep what it has contributed to models so far.")
    ] = False,
    fleet: FleetFolder = Path("fleet"),
    as_json: AsJson = False,
) -> None:
    """Shut a device out, and take back what it has contributed.

    What it added to a sum (gsfs) is subtracted, and a new model made, within seconds of a working
    coordinator. Weights that were averaged cannot be taken apart: the models that it touched are
    named, and fleet rollback returns to an earlier one.
    """
    from gradsense.coordinator.lookup import touched_by
    from gradsense.fleet.enrolment import opened

    now = time.time()
    with opened(fleet) as found:
        entry = found.revoke(device, now=now, keep=keep)
    note = _REVOKED
    for run in sorted((fleet / "runs").glob("[!.]*")):
        with suppress(InputError):
            if not keep and (versions := touched_by(run, device)):
                listed = ", ".join(map(str, versions))
                note += f" It took part in model {listed} of run {run.name}."
    _show(entry, now, as_json, note)


@command(example="gradsense fleet rollback porch 12")
def rollback(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    version: Annotated[int, typer.Argument(help="The model to return to.", min=0)],
    fleet: FleetFolder = Path("fleet"),
    as_json: AsJson = False,
) -> None:
    """Make an earlier model of a run its next one; what was learned since is dropped.

    For algorithms that train weights. A run whose model is a sum (gsfs) needs none: fleet revoke
    takes a device out of it.
    """
    from gradsense.coordinator.lookup import kept_versions
    from gradsense.federation.rules.rule import SumRule
    from gradsense.fleet import jobs
    from gradsense.fleet.enrolment import opened

    place = fleet / jobs.RUNS / run
    if isinstance(jobs.read(place / jobs.START).rules.rule, SumRule):
        raise InputError(
            "the run's model is a sum of what its devices contributed",
            hint="gradsense fleet revoke ID takes one of them out",
            field=run,
        )
    *earlier, newest = kept_versions(place)
    if version not in earlier:
        raise InputError(
            f"model {version} is not kept",
            hint=f"give one of {', '.join(map(str, earlier))}" if earlier else "there is one only",
            field=run,
        )
    with opened(fleet) as found:
        found.registry.order_rollback(run, version, time.time())
    note = f"the coordinator makes model {version} the one after {newest}, within seconds"
    if as_json:
        _print({"run": run, "version": version, "newest": newest, "note": note})
    else:
        typer.echo(f"{run}: {note}")


@command(example="gradsense fleet rotate porch-cam --out porch-cam-2.zip")
def rotate(
    device: Annotated[str, typer.Argument(help="Id of the device.")] = "",
    broker: Annotated[bool, typer.Option("--broker", help="The broker's certificate.")] = False,
    coordinator: Annotated[
        bool, typer.Option("--coordinator", help="The coordinator's; its signing key stays.")
    ] = False,
    fleet: FleetFolder = Path("fleet"),
    out: Out = None,
    run: Run = None,
    days: Days = 365,
    as_json: AsJson = False,
) -> None:
    """New keys and a new certificate for a device or a part of the fleet; the old is revoked."""
    from gradsense.fleet.device_bundle import run_start
    from gradsense.fleet.enrolment import opened
    from gradsense.fleet.registry import device_id

    if bool(device) + broker + coordinator != 1:
        raise InputError("one thing is rotated", hint="give an ID, --broker or --coordinator")
    now = time.time()
    place = out or Path(f"{device_id(device)}.zip") if device else fleet
    with opened(fleet) as found:
        if broker:
            entry = found.rotate_broker(now=now)
        elif coordinator:
            entry = found.rotate_coordinator(now=now)
        else:
            entry = found.rotate(device, place, now=now, days=days, run=run_start(fleet, run))
    _show(entry, now, as_json, f"new keys: {place}. {_ROTATED}")


@command(example="gradsense fleet backup /mnt/safe/fleet-2026-11-28")
def back_up(
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    fleet: FleetFolder = Path("fleet"),
    as_json: AsJson = False,
) -> None:
    """Copy the fleet's folder while it works: keys, registry and runs, all of one moment.

    To restore it: stop the coordinator, put the copy in the folder's place, start the coordinator.
    Devices notice, and send again what the copy does not know.
    """
    from gradsense.coordinator.backup import backup

    runs = backup(fleet, out)
    if as_json:
        _print({"folder": str(out), "runs": runs})
    else:
        named = ", ".join(runs) or "none yet"
        typer.echo(f"{out}; runs: {named}. It holds the fleet's secret keys: keep it to yourself")


@command(example="gradsense fleet list --json")
def members(fleet: FleetFolder = Path("fleet"), as_json: AsJson = False) -> None:
    """Every member with its certificate: its state, how long it is valid, its signing key."""
    from gradsense.fleet import enrolment

    now, entries = time.time(), enrolment.members(fleet)
    if as_json:
        _print([_row(entry, now) for entry in entries])
        return
    table = Table()
    for name in ("id", "role", "state", "valid until", "serial", "signing key"):
        table.add_column(name, overflow="fold")
    for row in (_row(entry, now) for entry in entries):
        day, key = row["valid_until"][:10], row["signing_key"][:16]
        table.add_row(row["id"], row["role"], row["state"], day, row["serial"], key)
    results_console().print(table)


def _row(entry: Enrolment, now: float) -> dict[str, str]:
    return {
        "id": entry.name,
        "role": entry.role,
        "state": entry.state(now),
        "serial": f"{entry.serial:040x}",
        "valid_until": datetime.fromtimestamp(entry.expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "signing_key": entry.fingerprint,
    }


def _show(entry: Enrolment, now: float, as_json: bool, note: str) -> None:
    row = _row(entry, now)
    if as_json:
        _print({**row, "note": note})
        return
    typer.echo(f"{row['id']}: {row['state']}, valid until {row['valid_until']}")
    typer.echo(note)


def _print(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
