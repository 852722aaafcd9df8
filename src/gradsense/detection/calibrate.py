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
from gradsense.data.sources.lines import Tally
from gradsense.data.sources.logfile import read_blocks
from gradsense.data.sources.stream import LogStream
from gradsense.detection.bundle import BundleThreshold, Manifest
from gradsense.detection.detector import Detector
from gradsense.detection.session import PhraseIds
from gradsense.errors import InputError
from gradsense.learning.alarms import FALSE_ALARM_SHARE, LEAST_THRESHOLD
from gradsense.learning.calibration import reference, softmax
from gradsense.prompts.templates import Template

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
    logs: Sequence[Path], template: Template, most: int = MOST, networks: Networks | None = None
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
    tally, found, left_out = Tally(), 0, 0
    kept: PhraseIds = np.zeros((0, len(template.fields)), np.uint16)
    for log in logs:
        stream, context = LogStream(log), ContextWindow()
        for block in read_blocks(log, _BLOCK_BYTES):
            flows = stream.parse(block, tally)
            if not isinstance(flows, pl.DataFrame):
                flows = pl.DataFrame(flows, schema=template.task.schema)
            # The context window takes every flow, as it does on the gateway.
            benign = template.task.classed(context.add(flows), template.task.binary).filter(
                pl.col("class").is_null() | (pl.col("class") == template.task.normal)
            )
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
    detector: Detector, traffic: Traffic, share: float = FALSE_ALARM_SHARE, *, novelty: bool = False
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
    distinct, flows = np.unique(traffic.phrase_ids, axis=0, return_counts=True)
    logits, scores = detector.answers(distinct)
    scaled = logits.astype(np.float64) / manifest.temperature
    odds = log_odds(scaled, manifest.labels.index(normal))
    sure = softmax(logits, manifest.temperature).max(axis=1)
    source = ", ".join(traffic.names)
    alarm, at = alarm_threshold(odds, flows, share, source)
    update: dict[str, Any] = {
        "alarm": alarm,
        "reference": reference(distinct, detector.template, sure, flows),
        "provenance": manifest.provenance | {"site": _site(manifest, traffic, share)},
    }
    if novelty and scores is not None:
        new = scores.astype(np.float64)
        new_at = exceeded_by(new, flows, share) + MARGIN
        update["novelty"] = _threshold(new_at, new > new_at, flows, source)
    strange = float(flows[odds > 0].sum() / flows.sum())
    return Calibrated(
        manifest.model_copy(update=update), tuple(_warnings(traffic, share, strange, at))
    )


def alarm_threshold(
    odds: NDArray[np.float64], weights: NDArray[np.int64], share: float, source: str
) -> tuple[BundleThreshold, float]:
    """The threshold on suspicion that at most ``share`` of benign flows exceed, never below 0.5.

    Args:
        odds: log-odds against benign, [n ≥ 1].
        weights: flows that have each of them, [n].
        source: of the flows, in words.

    Returns:
        the threshold as a probability, and as log-odds.
    """
    at = max(exceeded_by(odds, weights, share) + MARGIN, 0.0)
    value = max(LEAST_THRESHOLD, float(1 / (1 + np.exp(-at))))
    return _threshold(value, odds > at, weights, source), at


def _threshold(
    value: float, above: NDArray[np.bool_], weights: NDArray[np.int64], source: str
) -> BundleThreshold:
    flows = int(weights.sum())
    share = float(weights[above].sum() / flows)
    return BundleThreshold(value=value, share=share, flows=flows, source=source)


def exceeded_by(scores: NDArray[np.float64], weights: NDArray[np.int64], share: float) -> float:
    """The lowest of the scores [n ≥ 1] that at most ``share`` of the flows exceed.

    Args:
        weights: flows that have each score, [n].
    """
    order = np.argsort(-scores, kind="stable")
    upto = np.cumsum(weights[order])
    return float(scores[order][np.searchsorted(upto, int(share * upto[-1]), side="right")])


def log_odds(logits: NDArray[np.float64], benign: int) -> NDArray[np.float64]:
    """ln((1 - p) / p) of p(benign), [n], from logits [n, classes] after temperature."""
    others: NDArray[np.float64] = np.logaddexp.reduce(np.delete(logits, benign, axis=1), axis=1)
    return others - logits[:, benign]


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


def _warnings(traffic: Traffic, share: float, strange: float, at: float) -> list[str]:
    flows, warnings = len(traffic.phrase_ids), list[str]()
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
