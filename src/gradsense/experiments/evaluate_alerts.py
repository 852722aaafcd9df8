"""Evaluate a model by the alerts that its watch raises on labelled captures, beside its peers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from gradsense.data.datasets.captures import Capture, discover
from gradsense.data.flows import FLOW_SCHEMA
from gradsense.data.sources.lines import Tally
from gradsense.data.sources.stream import is_synthetic, read_log
from gradsense.detection.bundle import MANIFEST_FILE
from gradsense.errors import InputError
from gradsense.experiments.device_hours import (
    DeviceHours,
    by_group,
    mean_over,
    measure,
    networks_of,
)
from gradsense.experiments.evaluate import OnFile
from gradsense.experiments.rules.published import published
from gradsense.experiments.watched import watched

#: Rows beside those of the rules: the watch, and the alerts of all rules that are no bar.
MODEL, TOGETHER = "model", "together"
_TITLES = {
    MODEL: ("this model", "gradsense watch"),
    TOGETHER: ("Zeek and RITA together", "the rules above"),
}


def evaluate_alerts(
    model: Path,
    data: Path,
    *,
    strict: bool = False,
    threads: int = 1,
    on_file: OnFile | None = None,
) -> dict[str, Any]:
    """The operator's measure of a model and of every published rule; see ``device_hours``.

    One capture is in memory at a time. A capture without a labelled flow counts for nothing.

    Args:
        model: a model folder, which is exported first, or a gateway bundle.
        data: a log of any record source, or a folder of captures.
        strict: a malformed line is an error instead of being counted.
        threads: of the model.
        on_file: called with ``(capture name, index from 0, number of captures)`` before each file.

    Returns:
        JSON values: ``model, data, captures, synthetic, flows, dropped, networks`` (those that
        were inferred, by capture) and ``rows``, the model's first. A row has ``name, title,
        source, mean, groups, captures``: rates as the mean over groups, and the whole measure by
        group and by capture.

    Raises:
        InputError: a broken model, an unreadable log, or no labelled flow.
    """
    captures = discover(data)
    tally = Tally()
    flows_seen = 0
    networks_seen: dict[str, list[str]] = {}
    rules = published()
    bars = [name for name, rule in rules.items() if rule.bar]
    order = [MODEL, *(name for name in rules if name not in bars), TOGETHER, *bars]
    measured: dict[str, dict[str, DeviceHours]] = {name: {} for name in order}
    with bundle_of(model, threads=threads) as bundle:
        for index, capture in enumerate(captures):
            if on_file is not None:
                on_file(capture.name, index, len(captures))
            flows = _flows(capture, tally, strict=strict)
            flows_seen += flows.height
            networks = networks_of(flows)
            if networks.own:
                networks_seen[capture.name] = [str(network) for network in networks.own]
            rows = {line: row for row, line in enumerate(flows["line"])}
            raised = {name: rule.raised(flows, networks) for name, rule in rules.items()}
            raised[TOGETHER] = [
                alert for name in rules if name not in bars for alert in raised[name]
            ]
            raised[MODEL] = watched(capture.path, bundle, networks, rows, threads=threads)
            for name in order:
                measured[name][capture.name] = measure(flows, raised[name], networks)
    if not any(part.device_days for part in measured[MODEL].values()):
        raise InputError(
            "no labelled flow of a device", hint="give labelled captures", file=data, field="label"
        )
    return {
        "model": str(model),
        "data": str(data),
        "captures": len(captures),
        "synthetic": any(is_synthetic(capture.path) for capture in captures),
        "flows": flows_seen,
        "dropped": tally.to_json()["dropped"],
        "networks": networks_seen,
        "rows": [_row(name, parts) for name, parts in measured.items()],
    }


@contextmanager
def bundle_of(model: Path, *, threads: int = 1) -> Iterator[Path]:
    """``model`` itself if it is a gateway bundle, else the bundle of this model folder.

    Raises:
        InputError: it is neither.
    """
    if (model / MANIFEST_FILE).is_file():
        yield model
        return
    from gradsense.detection.export import export  # noqa: PLC0415  # torch takes seconds

    with tempfile.TemporaryDirectory(prefix="gradsense-") as scratch:
        yield export(model, Path(scratch, "bundle"), threads=threads).path


def _flows(capture: Capture, tally: Tally, *, strict: bool) -> pl.DataFrame:
    blocks = list(read_log(capture.path, tally=tally, strict=strict))
    return pl.concat(blocks) if blocks else pl.DataFrame(schema=FLOW_SCHEMA)


def _row(name: str, captures: Mapping[str, DeviceHours]) -> dict[str, Any]:
    groups = by_group(captures)
    rule = published().get(name)
    title, source = _TITLES[name] if rule is None else (rule.title, rule.source)
    return {
        "name": name,
        "title": title,
        "source": source,
        "mean": mean_over(groups),
        "groups": {one: part.to_json() for one, part in groups.items()},
        "captures": {one: part.to_json() for one, part in captures.items()},
    }
