"""``gradsense calibrate``: the thresholds of a bundle for one network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from gradsense.cli.console import results_console, show_notes
from gradsense.cli.lazy import command

if TYPE_CHECKING:
    from gradsense.detection.bundle import BundleThreshold, Manifest


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
    from gradsense.gateway.settings import Settings
    from gradsense.gateway.settings import read as read_settings

    networks = Networks((Settings() if config is None else read_settings(config)).networks)
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
        _show(out or model, manifest, detector.manifest, results_console())


def _show(path: Path, manifest: Manifest, before: Manifest, console: Console) -> None:
    site = manifest.provenance["site"]
    table = Table("", "before", "now")
    table.add_row("bundle", before.id, manifest.id)
    table.add_row("benign flows", f"{before.alarm.flows:,}", f"{site['flows']:,}")
    table.add_row("from", before.alarm.source, manifest.alarm.source)
    table.add_row("alert at", _odds(before.alarm), _odds(manifest.alarm))
    if manifest.novelty is not None and before.novelty is not None:
        table.add_row("novel above", _plain(before.novelty), _plain(manifest.novelty))
    console.print(table, highlight=False)
    console.print(
        f"next    gradsense watch conn.log --model {path}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _odds(found: BundleThreshold) -> str:
    # p(benign) is easier to read than a suspicion of 0.99998.
    return f"p(benign) below {1 - found.value:.2g} ({found.share:.2%} of these flows)"


def _plain(found: BundleThreshold) -> str:
    return f"{found.value:.3f} ({found.share:.2%} of these flows)"
