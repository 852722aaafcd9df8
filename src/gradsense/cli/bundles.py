"""``gradsense export`` and ``calibrate``: a trained model as a bundle for gateways."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from gradsense.cli.console import results_console, show_lines, show_notes
from gradsense.cli.lazy import command
from gradsense.cli.watch import watch_settings

if TYPE_CHECKING:
    from gradsense.detection.bundle import BundleThreshold, Manifest
    from gradsense.detection.export import Exported


@command(example="gradsense export --model run/model --out edge/ --verify")
def export(
    model: Annotated[Path, typer.Option(help="The model folder that training wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for the bundle.")],
    int8: Annotated[
        bool, typer.Option("--int8", help="8-bit weights: smaller and faster; always verified.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare the graph with torch before it is written."),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="Logs to verify on and, where labelled, to calibrate on."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write an int8 graph however much macro-F1 it loses.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads for verifying.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Make an edge bundle: a graph that runs without torch, tokenizer, thresholds, checksums."""
    # torch takes seconds to import; --help should not.
    from gradsense.detection.export import export as run

    with Console(stderr=True).status("loading torch") as shown:
        exported = run(
            model,
            out,
            int8=int8,
            verify=verify,
            data=data,
            force=force,
            threads=threads,
            on_step=shown.update,
        )
    show_notes(exported.warnings)
    if as_json:
        typer.echo(exported.manifest.model_dump_json(indent=2))
    else:
        _show_export(exported, results_console())


@command(example="gradsense calibrate conn.log --model edge/ --out edge-here/")
def calibrate(
    benign: Annotated[
        list[Path],
        typer.Argument(
            metavar="LOG...", help="Logs of this network with benign traffic.", show_default=False
        ),
    ],
    model: Annotated[Path, typer.Option(help="The bundle that gradsense export wrote.")],
    share: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of benign flows that may raise an alert.")
    ] = 0.0025,
    novelty: Annotated[
        bool, typer.Option("--novelty", help="Choose the novelty threshold too.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for a copy. Default: the bundle itself is changed."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="The watch's TOML file, for the networks it names.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the model.")] = 2,
) -> None:
    """Choose the alarm threshold from benign traffic of the network to be watched."""
    from gradsense.data.networks import Networks
    from gradsense.detection import bundle
    from gradsense.detection.calibrate import calibrate as run
    from gradsense.detection.calibrate import read
    from gradsense.detection.detector import Detector

    networks = Networks(watch_settings(config).networks)
    detector = Detector.load(model, threads=threads, cache=0)
    done = run(detector, read(benign, detector.template, networks=networks), share, novelty=novelty)
    manifest = done.manifest
    if out is None:
        bundle.rewrite_manifest(model, manifest)
    else:
        manifest = bundle.write(out, manifest, {name: model / name for name in manifest.files})
    show_notes(done.warnings)
    if as_json:
        typer.echo(manifest.model_dump_json(indent=2))
    else:
        _show_calibration(out or model, manifest, detector.manifest, results_console())


def _show_export(exported: Exported, console: Console) -> None:
    manifest = exported.manifest
    table = Table(show_header=False)
    table.add_row("bundle", f"{exported.path} ({manifest.id})")
    size = sum(file.bytes for file in manifest.files.values())
    table.add_row("size", f"{size / 1e6:.2f} MB, {manifest.precision}")
    table.add_row("classes", ", ".join(manifest.labels))
    table.add_row("temperature", f"{manifest.temperature:.3f}")
    table.add_row("alarm", _threshold("suspicion", manifest.alarm))
    if manifest.novelty is not None:
        table.add_row("novelty", _threshold("score", manifest.novelty))
    for row in _verified(manifest):
        table.add_row(*row)
    console.print(table, highlight=False)
    show_lines(console, f"next    gradsense watch conn.log --model {exported.path}")


def _threshold(name: str, found: BundleThreshold) -> str:
    passed = f"{found.share:.2%} of {found.flows:,} flows" if found.flows else "no flows"
    return f"{name} above {found.value:.3f}; {passed} were, {found.source}"


def _verified(manifest: Manifest) -> list[tuple[str, str]]:
    found = manifest.verified
    if found is None:
        return [("verified", "no; --verify compares it with torch")]
    novelty = "" if found["novelty"] is None else f", novelty by {found['novelty']:.2g}"
    return [
        ("verified", f"{found['flows']:,} flows, {found['source']}"),
        ("same verdict", f"{found['agreement']:.3%}"),
        ("apart at most", f"logits by {found['logits']:.2g}{novelty}"),
        (
            "macro-F1",
            f"{found['f1_macro']:.4f}, torch {found['f1_macro_torch']:.4f}; "
            f"truth: {found['truth']}",
        ),
    ]


def _show_calibration(path: Path, manifest: Manifest, before: Manifest, console: Console) -> None:
    site = manifest.provenance["site"]
    table = Table("", "before", "now")
    table.add_row("bundle", before.id, manifest.id)
    table.add_row("benign flows", f"{before.alarm.flows:,}", f"{site['flows']:,}")
    table.add_row("from", before.alarm.source, manifest.alarm.source)
    table.add_row("alert at", _odds(before.alarm), _odds(manifest.alarm))
    if manifest.novelty is not None and before.novelty is not None:
        table.add_row("novel above", _plain(before.novelty), _plain(manifest.novelty))
    console.print(table, highlight=False)
    show_lines(console, f"next    gradsense watch conn.log --model {path}")


def _odds(found: BundleThreshold) -> str:
    # p(benign) is easier to read than a suspicion of 0.99998.
    return f"p(benign) below {max(1 - found.value, 1e-16):.2g} ({found.share:.2%} of these flows)"


def _plain(found: BundleThreshold) -> str:
    return f"{found.value:.3f} ({found.share:.2%} of these flows)"
