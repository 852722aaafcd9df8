"""What the demonstration adds to a comparison: a fleet, and a log to read and to guard."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from gradsense.data.datasets.iot23 import classed
from gradsense.data.synthetic.traffic import write_sample
from gradsense.detection.export import export
from gradsense.errors import InputError
from gradsense.experiments.evaluate import evaluate
from gradsense.gateway.alerting.alert import SEVERITIES, Alert
from gradsense.gateway.wiring import WatchPlan, open_watch

#: Marks a folder that the demonstration made and may therefore make again.
_MARK = "gradsense-demo"


def fresh_folder(out: Path) -> None:
    """Make ``out`` an empty folder of the demonstration; an earlier one is replaced.

    Raises:
        InputError: it holds something else, or cannot be written.
    """
    try:
        if (out / _MARK).exists():
            shutil.rmtree(out)
        elif out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(
                "holds something that the demonstration did not make",
                hint="choose another --out",
                file=out,
            )
        out.mkdir(parents=True, exist_ok=True)
        (out / _MARK).write_text("made by `gradsense demo`, which replaces this folder\n")
    except OSError as error:
        raise InputError(
            f"cannot write here: {error.strerror}", hint="choose another --out", file=out
        ) from None


@dataclass(frozen=True)
class Reading:
    """A log as the trained model reads it.

    Attributes:
        log: the unlabelled log.
        verdicts: the file with one verdict a flow.
        summary: what ``evaluate`` returns.
        right: share of flows whose verdict agrees with the generator's truth, 0..1.
        examples: the first flow of each verdict, with ``resp_h, resp_p, verdict, score, class``.
    """

    log: Path
    verdicts: Path
    summary: dict[str, Any]
    right: float
    examples: pl.DataFrame


def read_sample(out: Path, model: Path, *, seed: int) -> Reading:
    """Write an unlabelled log of a network that the model never saw, and classify it."""
    log, verdicts = out / "sample" / "conn.log", out / "sample" / "verdicts.jsonl"
    truth = classed(write_sample(log, seed=seed))
    summary = evaluate(model, log, out=verdicts)
    # Verdicts stand in time order, the truth in the order of the log.
    judged = pl.read_ndjson(verdicts).sort("line").with_columns(truth["class"])
    right = judged.select((pl.col("verdict") == pl.col("class")).mean()).item()
    examples = judged.unique("verdict", keep="first", maintain_order=True)
    return Reading(log, verdicts, summary, right, examples)


class _Collector:
    """A sink that keeps the last word on every alert."""

    name = "demo"

    def __init__(self) -> None:
        self.alerts: dict[str, Alert] = {}

    def send(self, alerts: Sequence[Alert]) -> None:
        self.alerts |= {alert.id: alert for alert in alerts}

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Guarded:
    """A log as a gateway watches it.

    Attributes:
        bundle: the edge bundle that watched.
        flows, alarms: judged, and those of them that raised an alarm.
        alerts: what the alarms were grouped into, the most severe first.
    """

    bundle: Path
    flows: int
    alarms: int
    alerts: tuple[Alert, ...]


def guard(out: Path, model: Path, log: Path) -> Guarded:
    """Export the model for the edge and let it watch the log once."""
    bundle, collector = out / "edge", _Collector()
    export(model, bundle)
    plan = WatchPlan([log], bundle, state=out / "state", once=True)
    watch = open_watch(plan, extra={collector.name: collector})
    watch.run(once=True)
    watch.journal.close()
    worst = sorted(
        collector.alerts.values(), key=lambda one: (-SEVERITIES.index(one.severity), -one.flows)
    )
    return Guarded(bundle, watch.counts["flows"], watch.counts["alarms"], tuple(worst))
