"""``gradsense fleet up``: a whole fleet on this machine, to see it work."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from gradsense.cli.console import show_lines
from gradsense.cli.fleet_run import make_job, run_table
from gradsense.cli.lazy import command
from gradsense.cli.watch import stop_on_signals
from gradsense.errors import GradsenseError

if TYPE_CHECKING:
    from rich.table import Table

    from gradsense.localfleet.local_fleet import LocalFleet

_TURN_S = 0.5
#: Nothing new for so long after all was played: everybody has sent what there was.
_QUIET_S = 8.0


@command(example="gradsense fleet up --devices 5")
def up(
    devices: Annotated[int, typer.Option(min=1, max=50, help="How many.")] = 5,
    logs: Annotated[
        Path | None,
        typer.Option(help="Labelled captures, one a device. Without: synthetic traffic."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="New folder that stays. Without: nothing stays.")
    ] = None,
    algorithm: Annotated[str, typer.Option(help="An algorithm, values changed or not.")] = "gsfs",
    flows: Annotated[int, typer.Option(min=50, help="Flows played of each log, at most.")] = 2000,
    play: Annotated[float, typer.Option(min=0, help="Seconds that the logs take.")] = 20.0,
    seconds: Annotated[
        float | None, typer.Option(help="Stop after so long. Without: when all is sent.")
    ] = None,
    stay: Annotated[bool, typer.Option("--stay", help="Go on until Ctrl-C.")] = False,
    sealed: Annotated[bool, typer.Option("--sealed", help="Encrypt bodies end to end.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Start a broker, a coordinator and devices here, over real TLS, and watch them work.

    Every process is the one of a real deployment. Needs Mosquitto.
    """
    from gradsense.localfleet.local_fleet import LocalFleet

    console = Console()
    with ExitStack() as stack:
        place = out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gradsense-")))
        stop = threading.Event()
        stop_on_signals(stop, stack)
        fleet = stack.enter_context(
            LocalFleet(
                place,
                devices,
                captures=logs,
                flows=flows,
                play_s=play,
                seed=seed,
                job=lambda labels: make_job(
                    run="up",
                    algorithm=algorithm,
                    labels=labels,
                    seed=seed,
                    min_devices=devices,
                    sealed=sealed,
                    interval_s=0.5,  # these devices are one's own, and one wants to see them
                    upload_gap_s=0.5,
                ),
            )
        )
        with Console(stderr=True).status("preparing") as shown:
            fleet.prepare(shown.update)
        fleet.start()
        _show(fleet, stop, console, seconds=seconds, stay=stay)
        _print_end(fleet, console)
        with Console(stderr=True).status("stopping"):
            fleet.stop()
        if out is not None:
            show_lines(
                console,
                f"\nkept    {out}",
                f"next    gradsense fleet model up --fleet {fleet.fleet} --out {out / 'model'}",
            )


def _show(
    fleet: LocalFleet,
    stop: threading.Event,
    console: Console,
    *,
    seconds: float | None,
    stay: bool,
) -> None:
    """Until the end: a live table for a person, a line for each new model for a file.

    Raises:
        GradsenseError: a process of the fleet ended by itself.
    """
    began = changed = time.monotonic()
    last: tuple[Any, ...] = ()
    version = None
    with Live(console=console, auto_refresh=False, transient=not console.is_terminal) as live:
        while not stop.wait(_TURN_S):
            playing = fleet.play()
            if ended := fleet.ended():
                name, code = next(iter(ended.items()))
                raise GradsenseError(
                    f"{name} ended by itself ({code}), its last words: {fleet.last_line(name)}"
                )
            status, now = fleet.status(), time.monotonic()
            state = _state(status)
            if state != last or playing:
                last, changed = state, now
            if status and console.is_terminal:
                live.update(_table(fleet, status), refresh=True)
            elif status and status["version"] != version:
                version = status["version"]
                console.print(f"{now - began:6.1f} s  model {version}", highlight=False)
            quiet = bool(status) and status["current"] >= len(fleet.sites)
            if seconds is not None and now - began >= seconds:
                return
            if not stay and quiet and now - changed > _QUIET_S:
                return


def _state(status: Mapping[str, Any]) -> tuple[Any, ...]:
    return (status.get("version"), status.get("updates"), status.get("current"))


def _table(fleet: LocalFleet, status: Mapping[str, Any]) -> Table:
    more = {}
    for site in fleet.sites:
        counts = fleet.detected(site)
        more[site.name] = {
            "flows judged": f"{counts.get('flows', 0):,}",
            "alerts": str(counts.get("alerts", 0)),
        }
    return run_table(fleet.run, status, more)


def _print_end(fleet: LocalFleet, console: Console) -> None:
    status = fleet.status()
    if not status:
        return
    devices = status["devices"].values()
    same = sum(one["held"] == status["version"] for one in devices)
    judged = [fleet.detected(site) for site in fleet.sites]
    show_lines(
        console,
        f"model {status['version']} ({status['hash'][:12]}) on {same} of {len(fleet.sites)} "
        f"devices, of {status['updates']} updates in {status['bytes_in']:,} bytes; "
        f"{sum(one.get('flows', 0) for one in judged):,} flows judged meanwhile, "
        f"{sum(one.get('alerts', 0) for one in judged):,} alerts",
    )
