"""``gradsense watch``: live detection on a gateway."""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler

from gradsense.cli.console import show_lines
from gradsense.cli.lazy import command
from gradsense.registry import names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradsense.gateway.alerting.alert import Alert
    from gradsense.gateway.settings import Settings


#: How alerts are written to stdout. The formats between are files of their own.
OUTPUTS = ("text", "jsonl", *names("gradsense.gateway.alerting.formats"), "none")
_STYLES = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "cyan", "info": "dim"}


def state_folder() -> Path:
    """The default folder of a watch's journal.

    systemd names it in ``STATE_DIRECTORY``; for a user it is under the home folder (XDG).
    """
    given = os.environ.get("STATE_DIRECTORY")
    if given:
        return Path(given.split(":")[0])
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "gradsense"


def _known_output(value: str) -> str:
    if value not in OUTPUTS:
        raise typer.BadParameter(f"'{value}' is none of {', '.join(OUTPUTS)}")
    return value


@command(
    example="gradsense watch /opt/zeek/logs/current/conn.log --model edge/ --config watch.toml"
)
def watch(
    logs: Annotated[
        list[Path],
        typer.Argument(
            metavar="LOG...",
            readable=False,  # it may become so, and the watch reports what is wrong
            help="Zeek conn.log (TSV or JSON, plain or .gz) or Suricata eve.json; - reads stdin.",
            show_default=False,
        ),
    ],
    model: Annotated[Path, typer.Option(help="The bundle that gradsense export wrote.")],
    once: Annotated[
        bool, typer.Option("--once", help="Read the logs to their ends, then stop.")
    ] = False,
    output: Annotated[
        str,
        typer.Option(
            callback=_known_output,
            metavar=f"[{'|'.join(OUTPUTS)}]",
            help="How alerts are written to stdout.",
        ),
    ] = "text",
    config: Annotated[
        Path | None, typer.Option(help="TOML file of sinks and settings; see docs/sinks.md.")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps places in logs, alerts and queues. Default: with --once "
            "nothing is kept, else ~/.local/state/gradsense.",
            show_default=False,
        ),
    ] = None,
    verdicts: Annotated[
        Path | None, typer.Option(help="Append one JSON line a flow to this file.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a summary as JSON at the end, and no alerts.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the model.")] = 2,
    cache: Annotated[
        int, typer.Option(min=0, help="Verdicts that are cached by prompt; 0 for none.")
    ] = 32_768,
) -> None:
    """Follow logs, judge every flow once, and raise alerts."""
    from gradsense.gateway.wiring import WatchPlan, open_watch

    log_to_stderr()
    with ExitStack() as stack:
        if state is None:
            state = (
                Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gradsense-")))
                if once
                else state_folder()
            )
        plan = WatchPlan(
            logs=logs,
            model=model,
            state=state,
            settings=watch_settings(config),
            once=once,
            verdicts=verdicts,
            threads=threads,
            cache=cache,
        )
        running = open_watch(plan, extra=_stdout("none" if as_json else output))
        stack.callback(running.journal.close)
        stop_on_signals(running.stop, stack)
        if not once:
            watched = ", ".join(str(source.log) for source in running.sources)
            show_lines(
                Console(stderr=True),
                f"watching {watched} with {model}, state in {state}; Ctrl-C stops, and the state "
                "is kept",
            )
        running.run(once=once)
        summary = running.summary()
        if as_json:
            typer.echo(json.dumps(summary, indent=2))
        else:
            show_lines(Console(stderr=True), *_lines(summary))


class Terminal:
    """Alerts for people: what happened and what to do."""

    name = "stdout"

    def __init__(self) -> None:
        self._console = Console(highlight=False)

    def send(self, alerts: Sequence[Alert]) -> None:
        for alert in alerts:
            style = _STYLES[alert.severity]
            head = f"{alert.severity.upper():8} {alert.id[:8]} {alert.state:6}"
            self._console.print(head, style=style, end=" ", markup=False)
            self._console.print(alert.sentence, markup=False, soft_wrap=True)
            if alert.state == "open":
                because = f" Because: {'; '.join(alert.why)}." if alert.why else ""
                line = f"{'':8} {alert.advice}{because}"
                self._console.print(line, style="dim", markup=False, soft_wrap=True)

    def close(self) -> None:
        pass


def _stdout(output: str) -> dict[str, Any]:
    from gradsense.gateway.alerting.sinks.jsonl import JsonlSettings, JsonlSink

    if output == "none":
        return {}
    if output == "text":
        return {"stdout": Terminal()}
    form = "gradsense" if output == "jsonl" else output
    return {"stdout": JsonlSink(JsonlSettings(type="jsonl", name="stdout", path="-", format=form))}


def log_to_stderr(level: int = logging.WARNING) -> None:
    """Log to stderr: in colour on a terminal, one plain line each for systemd's journal."""
    console = Console(stderr=True)
    handler: logging.Handler = (
        RichHandler(console=console, show_path=False, show_time=False)
        if console.is_terminal
        else logging.StreamHandler()
    )
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler])


def stop_on_signals(stop: threading.Event, stack: ExitStack) -> None:
    """Have SIGTERM and SIGINT set ``stop``, until ``stack`` ends."""
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.signal(number, lambda *_: stop.set())
        stack.callback(signal.signal, number, before)


def watch_settings(config: Path | None) -> Settings:
    """The settings of a watch's TOML file; the default ones without a file."""
    from gradsense.gateway.settings import Settings, read

    return Settings() if config is None else read(config)


def _lines(summary: dict[str, Any]) -> list[str]:
    lines = [
        f"{summary['flows']:,} flows judged, {summary['alarms']:,} raised {summary['alerts']:,} "
        f"alerts; {summary['inferred']:,} distinct prompts went through the model"
    ]
    lines += [f"  {number:,} x {label}" for label, number in summary["verdicts"].items()]
    lines += [f"dropped {line}" for line in summary["dropped_lines"]]
    lines += [
        f"sink {name}: {queue['waiting']:,} messages waiting, {queue['dropped']:,} dropped"
        for name, queue in summary["sinks"].items()
        if queue["waiting"] or queue["dropped"]
    ]
    return lines
