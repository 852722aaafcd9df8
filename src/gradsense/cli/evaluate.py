"""``gradsense evaluate``: a trained model on logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from gradsense.cli.console import results_console, show_lines
from gradsense.cli.lazy import command
from gradsense.cli.progress import file_bar
from gradsense.errors import InputError


@command(example="gradsense evaluate --model run/model --data conn.log --out verdicts.jsonl")
def evaluate(
    model: Annotated[Path, typer.Option(help="The model folder that training wrote.")],
    data: Annotated[Path, typer.Option(help="A conn.log or eve.json, or a folder of captures.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write one JSON line a flow: verdict and its probability.")
    ] = None,
    cap: Annotated[
        int,
        typer.Option(
            help="At most so many flows per capture and class, the first in time; 0: all."
        ),
    ] = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first malformed line.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 1,
    alerts: Annotated[
        bool,
        typer.Option(
            "--alerts",
            help="Measure the alerts that a watch raises, in device-hours, beside published rules; "
            "--model may be a bundle.",
        ),
    ] = False,
) -> None:
    """Show how a model does on logs: precision, recall, F1, accuracy, confusion, latency."""
    # The language model libraries take seconds to import; --help should not.
    if alerts:
        if out is not None or cap:
            raise InputError("--alerts takes neither --out nor --cap", hint="leave them out")
        from gradsense.experiments.evaluate_alerts import evaluate_alerts

        with file_bar("watching") as on_file:
            result = evaluate_alerts(model, data, strict=strict, threads=threads, on_file=on_file)
        if as_json:
            typer.echo(json.dumps(result, indent=2))
        else:
            show_alerts(result, results_console())
        return
    from gradsense.experiments.evaluate import evaluate as run

    with file_bar("loading the model") as on_file:
        result = run(model, data, out=out, cap=cap, strict=strict, threads=threads, on_file=on_file)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        show(result, results_console())
        if out is not None:
            show_lines(Console(stderr=True), f"verdicts: {out}")


#: Rates of the operator's measure, and their headings.
_RATES = {
    "found": "found",
    "right": "right reason",
    "false_a_day": "false alerts/day",
    "false_share": "false hours",
    "minutes": "minutes",
}


def show_alerts(result: dict[str, Any], console: Console) -> None:
    """Print the result of ``experiments.evaluate_alerts``: by group, then the means."""
    source = "synthetic traffic" if result["synthetic"] else "logs as given"
    lines = [f"{result['flows']:,} flows of {result['captures']} captures ({source})"]
    lines += [
        f"{name}: own networks {', '.join(own)}, as most flows have no private address"
        for name, own in result["networks"].items()
    ]
    show_lines(console, *lines, *dropped(result))
    rows = result["rows"]
    for key in ("found", "false_a_day"):
        size = "malicious_hours" if key == "found" else "device_days"
        table = Table("group", title=f"{_RATES[key]}, by group", title_justify="left")
        table.add_column(size.replace("_", " "), justify="right")
        for row in rows:
            table.add_column(row["title"], justify="right")
        for name, group in rows[0]["groups"].items():
            if group[size]:
                rates = (_shown(key, row["groups"][name][key]) for row in rows)
                table.add_row(name, f"{group[size]:,}", *rates)
        console.print(table)
    whole = Table("detector", title="Mean over groups", title_justify="left")
    for title in _RATES.values():
        whole.add_column(title, justify="right")
    for row in rows:
        whole.add_row(row["title"], *(_shown(key, row["mean"][key]) for key in _RATES))
    console.print(whole)
    show_lines(
        console,
        "found: share of the hours in which a device did or suffered something malicious that an "
        "alert on it covers; right reason: by an alert on malicious flows; day: of one device; "
        "false hours: share of its benign hours that false alerts cover; minutes: median from a "
        "device's first malicious flow to the alert",
    )


def _shown(key: str, rate: float | None) -> str:
    if rate is None:
        return "-"
    return f"{rate:,.1f}" if key == "minutes" else f"{rate:,.3f}"


def dropped(result: dict[str, Any]) -> list[str]:
    """What could not be read, one line a reason."""
    return [
        f"dropped {drop['count']:,} x {reason}, first at {drop['file']}:{drop['line']}"
        for reason, drop in result["dropped"].items()
    ]


def show(result: dict[str, Any], console: Console) -> None:
    """Print the result of ``experiments.evaluate`` as tables for people."""
    source = "synthetic traffic" if result["synthetic"] else "logs as given"
    show_lines(
        console,
        f"{result['flows']:,} flows of {result['captures']} captures ({source}), "
        f"{result['labelled']:,} of them labelled",
    )
    if result["scores"] is not None:
        _show_scores(result["scores"], console)
    verdicts = Table("verdict", title="Verdicts", title_justify="left")
    verdicts.add_column("flows", justify="right")
    for name, flows in result["verdicts"].items():
        verdicts.add_row(name, f"{flows:,}")
    console.print(verdicts)
    lines = [
        f"{flows:,} flows of class '{name}', which the model does not know: counted as wrong"
        for name, flows in result["unknown_classes"].items()
    ]
    lines += dropped(result)
    if result["capped"]:
        lines.append(f"left out by --cap: {result['capped']:,} flows")
    lines += [f"warning: {line}" for line in result["warnings"]]
    show_lines(console, *lines)
    latency = result["latency"]
    speed = Table(title="Speed", title_justify="left", show_header=False)
    speed.add_row("latency of a flow, mean", f"{latency['mean_ms']:.2f} ms")
    speed.add_row("latency of a flow, 95 % within", f"{latency['p95_ms']:.2f} ms")
    speed.add_row("requests a minute", f"{latency['requests_per_min']:,.0f}")
    speed.add_row("in batches, file to verdict", f"{result['flows_per_s']:,.0f} flows/s")
    console.print(speed)
    show_lines(console, f"latency spans {latency['spans']}")


def _show_scores(scores: dict[str, Any], console: Console) -> None:
    whole = Table(title="Scores (averages weighted by class size)", title_justify="left")
    names = ("accuracy", "precision", "recall", "F1", "macro-F1", "detection", "false alarms")
    for name in names:
        whole.add_column(name, justify="right")
    keys = ("accuracy", "precision", "recall", "f1_weighted", "f1_macro", "detection_rate")
    whole.add_row(*(_rate(scores[key]) for key in (*keys, "false_alarm_rate")))
    console.print(whole)
    present = [
        name
        for place, name in enumerate(scores["classes"])
        if scores["per_class"][name]["support"] or any(row[place] for row in scores["confusion"])
    ]
    each = Table("class", title="Classes and confusion", title_justify="left")
    for name in ("precision", "recall", "F1", "flows"):
        each.add_column(name, justify="right")
    for number, _ in enumerate(present, start=1):
        each.add_column(f"→{number}", justify="right", style="dim")
    places = [scores["classes"].index(name) for name in present]
    for number, (name, place) in enumerate(zip(present, places, strict=True), start=1):
        one = scores["per_class"][name]
        cells = [f"{scores['confusion'][place][other]:,}" for other in places]
        rates = (_rate(one[key]) for key in ("precision", "recall", "f1"))
        each.add_row(f"{number} {name}", *rates, f"{one['support']:,}", *cells)
    console.print(each)


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
