"""Thresholds for one network, from its own traffic, which its operator takes to be benign.

A model brings the thresholds of the networks that it was trained on. On another network benign
flows look different, and may raise so many false alerts that nobody reads them. Here a threshold
is an order statistic of the network's own benign flows, as in split conformal anomaly detection
(Laxhammar and Falkman 2011): if tomorrow's flows are like these, hardly more than the chosen share
of them is above it. No label is needed and nothing is trained, so a gateway can do it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradsense.data.flows import ContextWindow
from gradsense.data.networks import Networks
from gradsense.data.sources.logfile import read_blocks
from gradsense.data.sources.stream import LogStream
from gradsense.data.tally import Tally
from gradsense.detection.bundle import BundleThreshold, Manifest
from gradsense.detection.detector import Detector, PhraseIds
from gradsense.errors import InputError
from gradsense.learning.alarms import FALSE_ALARM_SHARE, LEAST_THRESHOLD
from gradsense.learning.calibration import reference, softmax
from gradsense.prompts.templates import Template
from gradsense.tasks.task import Task

#: Flows used at most, the newest of the logs; they take about 40 MB.
MOST = 1_000_000
#: Log-odds above the flow that sets a threshold. A graph's outputs differ in their last digits
#: with the size of the batch, and the same prompt must not be above the threshold only because it
#: came alone.
MARGIN = 1e-3
#: Log-odds from where 1 - p in float64 is too coarse for ``MARGIN``, and soon is 1 for all.
_SATURATED = 30.0
#: Share of benign flows above even odds beyond which a warning says that the model does not know
#: the network.
_STRANGE = 0.05

_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class Traffic:
    """Flows that are taken to be benign.

    Args:
        phrase_ids: of the flows, uint16 [n, fields], in the order of the logs.
        names: of the logs, without their folders.
        left_out: flows whose label says that they are not benign.
        older: flows before the last ``MOST``.
        tally: lines read and dropped.
    """

    phrase_ids: PhraseIds
    names: tuple[str, ...]
    left_out: int = 0
    older: int = 0
    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class Calibrated:
    """The new manifest, and warnings for the user, one sentence each."""

    manifest: Manifest
    warnings: tuple[str, ...]


def read(
    logs: Sequence[Path],
    template: Template,
    most: int = MOST,
    networks: Networks | None = None,
) -> Traffic:
    """The flows of these logs, without those labelled as not benign.

    Args:
        logs: Zeek or Suricata logs as ``gradsense watch`` reads them, labelled or not; each with
            a context of its own.
        most: flows to keep, the last ones.
        networks: the operator's own, as in the watch's settings.

    Raises:
        InputError: a log cannot be read, or no flow is left.
    """
    networks = networks or Networks()
    tally, kept, found, left_out = Tally(), _no_phrase_ids(template), 0, 0
    for log in logs:
        stream, context = LogStream(log), ContextWindow()
        for block in read_blocks(log, _BLOCK_BYTES):
            flows = stream.parse(block, tally)
            if not isinstance(flows, pl.DataFrame):
                flows = pl.DataFrame(flows, schema=template.task.schema)
            # The context window takes every flow, as it does on the gateway.
            benign = _benign(context.add(flows), template.task)
            left_out += len(flows) - len(benign)
            found += len(benign)
            if len(benign):
                benign = pl.DataFrame(networks.mask(benign))
                kept = np.concatenate([kept, template.indices(benign)])[-most:]
    if not found:
        raise InputError(
            f"no flow to calibrate on ({left_out:,} are labelled as not benign, "
            f"{tally.total_dropped:,} lines could not be read)",
            hint="give logs of this network that hold benign traffic",
            file=", ".join(map(str, logs)),
        )
    return Traffic(kept, tuple(log.name for log in logs), left_out, found - len(kept), tally)


def calibrate(
    detector: Detector,
    traffic: Traffic,
    share: float = FALSE_ALARM_SHARE,
    *,
    novelty: bool = False,
) -> Calibrated:
    """The detector's manifest with alarm threshold and drift reference of this traffic.

    At most ``share`` of the flows exceed a threshold. Of fewer than 1 / ``share`` flows none
    does: the threshold is the highest value among them. The threshold on suspicion is searched
    on a scale of log-odds, where it cannot saturate, and is never below 0.5. The temperature
    stays. The thresholds at export are kept in ``provenance["site"]``.

    The novelty threshold stays as well unless ``novelty`` is True: a ``Novel`` alert also needs a
    flow that is new to its device, which by itself keeps false alerts few. On a network that is
    strange to the model most flows are novel, and a threshold above these would hide the attacks.

    Args:
        detector: its manifest is read, and stays as it is.
        traffic: n ≥ 1 flows.
        share: of the flows, 0..1.
        novelty: choose the novelty threshold too.

    Raises:
        InputError: the model has no benign class, or ``share`` is no share.
    """
    manifest = detector.manifest
    normal = detector.template.task.normal
    if normal not in manifest.labels:
        raise InputError(
            f"the model has no class '{normal}'",
            hint="there is nothing to calibrate; take a model that knows benign flows",
            field="labels",
        )
    if not 0 <= share < 1:
        raise InputError(f"a share of {share}", hint="give 0 to 1, say 0.0025", field="share")
    distinct, rows = np.unique(traffic.phrase_ids, axis=0, return_inverse=True)
    logits, scores = detector.answers(distinct)
    scaled = logits.astype(np.float64) / manifest.temperature
    odds = log_odds(scaled, manifest.labels.index(normal))[rows]
    sure = softmax(logits, manifest.temperature).max(axis=1)
    at = max(_exceeded_by(odds, share) + MARGIN, 0.0)
    source = ", ".join(traffic.names)

    def threshold(value: float, above: NDArray[np.bool_]) -> BundleThreshold:
        return BundleThreshold(
            value=value, share=float(above.mean()), flows=len(rows), source=source
        )

    update: dict[str, Any] = {
        "alarm": threshold(_probability(at), odds > at),
        "reference": reference(traffic.phrase_ids, detector.template, sure[rows]),
        "provenance": manifest.provenance | {"site": _site(manifest, traffic, share)},
    }
    if novelty and scores is not None:
        new = scores[rows].astype(np.float64)
        new_at = _exceeded_by(new, share) + MARGIN
        update["novelty"] = threshold(new_at, new > new_at)
    return Calibrated(
        manifest.model_copy(update=update), tuple(_warnings(traffic, share, odds, at))
    )


def log_odds(logits: NDArray[np.float64], benign: int) -> NDArray[np.float64]:
    """ln((1 - p) / p) of p(benign), [n], from logits [n, classes] after temperature."""
    others: NDArray[np.float64] = np.logaddexp.reduce(np.delete(logits, benign, axis=1), axis=1)
    return others - logits[:, benign]


def _exceeded_by(scores: NDArray[np.float64], share: float) -> float:
    """The lowest of the scores [n] that at most ``share`` of them exceed."""
    return float(np.sort(scores)[::-1][int(share * len(scores))])


def _probability(odds: float) -> float:
    return max(LEAST_THRESHOLD, float(1.0 / (1.0 + np.exp(-odds))))


def _site(manifest: Manifest, traffic: Traffic, share: float) -> dict[str, Any]:
    """How the bundle was calibrated here, and the thresholds that it was exported with."""
    exported = manifest.provenance.get("site", {}).get("exported") or {
        "alarm": manifest.alarm.model_dump(),
        "novelty": None if manifest.novelty is None else manifest.novelty.model_dump(),
    }
    return {
        "logs": list(traffic.names),
        "share": share,
        "flows": len(traffic.phrase_ids),
        "left_out": traffic.left_out,
        "older": traffic.older,
        "dropped": traffic.tally.total_dropped,
        "exported": exported,
    }


def _warnings(traffic: Traffic, share: float, odds: NDArray[np.float64], at: float) -> list[str]:
    flows, warnings = len(odds), list[str]()
    if traffic.tally.dropped:
        warnings.append(f"{traffic.tally.total_dropped:,} lines were left out as malformed")
    if traffic.left_out:
        warnings.append(f"{traffic.left_out:,} flows were left out: their label is not benign")
    if traffic.older:
        warnings.append(f"{traffic.older:,} older flows were left out: {flows:,} newer ones do")
    if share * flows < 1:
        needed = "no number of" if share == 0 else f"{np.ceil(1 / share):,.0f}"
        warnings.append(
            f"a share of {share:.2%} takes {needed} flows and these are {flows:,}: the thresholds "
            f"are the highest values among them, which about 1 in {flows + 1:,} flows will exceed"
        )
    strange = float((odds > 0).mean())
    if strange > _STRANGE:
        warnings.append(
            f"the model takes {strange:.0%} of these benign flows for attacks: it does not know "
            "this network, and attacks that it suspects less than these will raise no alert; "
            "train it with flows of this network"
        )
    if at > _SATURATED:
        warnings.append(
            f"the threshold is a probability of 1 - e^-{at:.0f}, which can hardly be exceeded: "
            "this model's suspicion is of no use here"
        )
    return warnings


def _benign(flows: pl.DataFrame, task: Task) -> pl.DataFrame:
    is_benign = pl.col("class").is_null() | (pl.col("class") == task.normal)
    return task.classed(flows, task.binary).filter(is_benign)


def _no_phrase_ids(template: Template) -> PhraseIds:
    return np.zeros((0, len(template.fields)), np.uint16)
