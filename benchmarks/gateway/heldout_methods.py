"""What ``heldout.py`` compares: a network cut in two, and everything that may ring on it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest, RandomForestClassifier

from gradsense.data.datasets.iot23 import BENIGN, BINARY_CLASSES, classed
from gradsense.data.flows import ContextWindow, class_numbers
from gradsense.data.networks import Networks
from gradsense.data.sources.lines import Tally
from gradsense.data.sources.stream import read_log
from gradsense.detection import bundle
from gradsense.detection.bundle import BundleThreshold
from gradsense.detection.calibrate import Traffic, calibrate, log_odds
from gradsense.detection.detector import Detector
from gradsense.experiments.bench import Bench
from gradsense.experiments.forest import _TREES, codes, features
from gradsense.experiments.run import train
from gradsense.experiments.rundir import MODEL
from gradsense.gateway.adapt.baseline import BaselineSettings, DeviceBaseline
from gradsense.gateway.alerting.grouping import LogClock
from gradsense.gateway.judge import Judge
from gradsense.learning.alarms import FALSE_ALARM_SHARE, threshold_for

#: As a gateway that was told nothing knows them.
NETWORKS = Networks()
#: The labelled networks' own addresses, and private ones that stand for them.
_OWN, _PRIVATE = r"^147\.32\.", "10.32."
#: Flows that a device's habits are learnt from by default; fewer where the network has fewer.
_LEARNT = BaselineSettings().min_flows
#: Below every novelty score: the model has no say, and the device's habits decide alone.
_ALWAYS_NOVEL = BundleThreshold(value=-1e9, share=1.0, flows=0, source="heldout")
_COMMAND = (sys.executable, "-c", "from gradsense.cli import main; main()")
Rings = NDArray[np.bool_]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Network:
    """One log with context, and where it is cut.

    Args:
        flows: all flows, in the order of the log, with ``class`` (Benign, Malicious or null).
        benign: rows to calibrate on.
        after: rows to judge.
    """

    name: str
    flows: pl.DataFrame
    benign: NDArray[np.int64]
    after: NDArray[np.int64]

    @cached_property
    def judged(self) -> pl.DataFrame:
        """The flows to judge."""
        return self.flows[self.after]

    @property
    def habits(self) -> BaselineSettings:
        """How habits are learnt: within hours, as the logs are a day long."""
        return BaselineSettings(days=0, min_flows=min(_LEARNT, 2 * len(self.benign) // 3))

    def told(self) -> Network:
        """The same network with private addresses."""
        private = [pl.col(end).str.replace(_OWN, _PRIVATE) for end in ("orig_h", "resp_h")]
        return Network(self.name, self.flows.with_columns(private), self.benign, self.after)


@dataclass(frozen=True)
class Outcome:
    """What one method did to the flows after the cut: which ring, and what each rings for."""

    site: Network
    rings: Rings
    labels: list[str]


def network(name: str, log: Path, *, labelled: bool) -> Network:
    """Read a log. Without labels the first half of it is held to be benign."""
    context = ContextWindow()
    blocks = [context.add(block) for block in read_log(log, tally=Tally())]
    flows = classed(pl.concat(blocks), BINARY_CLASSES)
    known = flows["class"] == BENIGN if labelled else pl.Series([True] * len(flows))
    benign = np.flatnonzero(known.fill_null(value=False).to_numpy())
    benign = benign[: len(benign) // 2]
    return Network(name, flows, benign, np.arange(benign[-1] + 1, len(flows)))


# The model ------------------------------------------------------------------------------------


def trained(bench: Bench, folder: Path) -> Path:
    """The bundle of a run."""
    bench.own_tests.clear()
    train(bench, folder)
    edge = folder / "edge"
    export = [*_COMMAND, "export", "--model", str(folder / MODEL), "--out", str(edge)]
    subprocess.run(export, check=True, stdout=subprocess.DEVNULL)
    return edge


def with_thresholds(edge: Path, site: Network, folder: Path, *, novelty: str = "kept") -> Detector:
    """The bundle with thresholds of this network; novelty ``kept``, ``calibrated`` or ``off``."""
    detector = Detector.load(edge, threads=1, cache=0)
    phrase_ids = detector.phrase_ids(site.flows)[site.benign]
    traffic = Traffic(phrase_ids, (site.name,))
    manifest = calibrate(detector, traffic, novelty=novelty == "calibrated").manifest
    if novelty == "off":
        manifest = manifest.model_copy(update={"novelty": _ALWAYS_NOVEL})
    copy = folder / f"{site.name}-{novelty}"
    bundle.write(copy, manifest, {name: edge / name for name in manifest.files})
    return Detector.load(copy, threads=1)


def by_gateway(detector: Detector, site: Network, *, habits: bool = False) -> Outcome:
    """What the gateway rings for, with habits learnt from the calibration flows."""
    judge = Judge(
        detector,
        LogClock(),
        baseline=DeviceBaseline(detector.template, site.habits) if habits else None,
    )
    now = float(site.flows["ts"].max())  # type: ignore[arg-type]
    if habits:
        judge.judge(site.name, site.flows[site.benign], now=now)
    judged = judge.judge(site.name, site.judged, now=now)
    rows = dict(zip(site.judged["line"].to_list(), range(len(site.after)), strict=True))
    rings, labels = np.zeros(len(site.after), bool), [""] * len(site.after)
    for alarm in judged.alarms:
        row = rows[alarm.example().line]
        rings[row], labels[row] = True, alarm.label
    return Outcome(site, rings, labels)


def model_scores(detector: Detector, site: Network) -> Scores:
    """Log-odds of suspicion, of all flows."""
    distinct, rows = np.unique(detector.phrase_ids(site.flows), axis=0, return_inverse=True)
    logits = detector.answers(distinct)[0].astype(np.float64) / detector.manifest.temperature
    return log_odds(logits, detector.manifest.labels.index(BENIGN))[rows]


def habit_scores(detector: Detector, site: Network) -> Scores:
    """Surprise of all flows given the calibration flows, in nats."""
    baseline = DeviceBaseline(detector.template, site.habits)
    phrase_ids, ts = detector.phrase_ids(site.flows), site.flows["ts"].to_numpy()
    devices = list(map(NETWORKS.device, site.flows["orig_h"], site.flows["resp_h"]))
    quiet = [devices[row] for row in site.benign]
    baseline.observe(quiet, phrase_ids[site.benign], ts[site.benign], np.ones(len(quiet), bool))
    scores, _ = baseline.observe(devices, phrase_ids, ts, np.zeros(len(devices), bool))
    return scores.astype(np.float64)


# Peers ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forest:
    """The random forest of IoT-23, and the threshold that its validation flows give."""

    model: RandomForestClassifier
    known: dict[str, dict[str, float]]
    threshold: float

    @classmethod
    def grow(cls, bench: Bench) -> Forest:
        parts, classes = bench.corpus.parts, bench.corpus.classes
        known = codes(parts.train)
        model = RandomForestClassifier(_TREES, random_state=bench.settings.seed)
        model.fit(features(parts.train, known, context=True), class_numbers(parts.train, classes))
        quiet = parts.validation.filter(pl.col("class") == BENIGN)
        grown = cls(model, known, 0.0)
        return cls(model, known, threshold_for(grown.suspicion(quiet)))

    def suspicion(self, flows: pl.DataFrame) -> Scores:
        """1 - p(benign); Benign is class 0."""
        odds = self.model.predict_proba(features(flows, self.known, context=True))
        suspicion: Scores = odds[:, 1:].sum(axis=1)
        return suspicion


def isolation(site: Network, seed: int) -> tuple[Scores, NDArray[np.int64]]:
    """Scores of all flows, and the calibration rows that the forest was not grown on."""
    seen = features(site.flows, codes(site.flows[site.benign]), context=True)
    forest = IsolationForest(n_estimators=_TREES, random_state=seed)
    forest.fit(seen[site.benign[::2]])
    return -forest.score_samples(seen), site.benign[1::2]


def began_outside(site: Network) -> Rings:
    """Flows whose originator is not in the own network."""
    return ~np.fromiter(map(NETWORKS.is_local, site.flows["orig_h"]), bool, len(site.flows))


def above(scores: Scores, quiet: NDArray[np.int64], site: Network) -> Outcome:
    """Flows above what so few of the quiet ones exceed."""
    allowed = int(FALSE_ALARM_SHARE * len(quiet))
    return plain(site, scores[site.after] > np.sort(scores[quiet])[::-1][allowed])


def plain(site: Network, rings: Rings) -> Outcome:
    """Alarms of a method that names no class."""
    return Outcome(site, rings, ["Alarm"] * len(rings))
