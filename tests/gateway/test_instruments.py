"""Metrics keep in step with the watch, and drift becomes a recommendation to retrain."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from gradsense.gateway.adapt.drift import Drift, DriftSettings, RetrainingRecommendation
from gradsense.gateway.instruments import Metrics, Observer
from gradsense.gateway.store import StoreBatch
from gradsense.gateway.watch import Watch
from gradsense.gateway.wiring import WatchPlan, open_watch


@pytest.fixture
def watch(edge_bundle: Path, edge_log: Path, tmp_path: Path) -> Watch:
    plan = WatchPlan(logs=[edge_log], model=edge_bundle, state=tmp_path / "s", once=True, threads=1)
    return open_watch(plan)


def test_metrics_say_what_the_summary_says(watch: Watch) -> None:
    registry = CollectorRegistry()
    watch._observer = Observer(Metrics(registry), watch.judge, watch.grouper, watch.journal)
    watch.run(once=True)
    watch._next_round = 0.0
    watch.round(once=True)

    def value(name: str, **labels: str) -> float:
        return registry.get_sample_value(f"gradsense_{name}", labels) or 0.0

    summary = watch.summary()
    assert value("flows_total") == summary["flows"]
    assert value("alarms_total") == summary["alarms"]
    for label, number in summary["verdicts"].items():
        assert value("verdicts_total", label=label) == number
    assert value("cache_hits_total") == summary["flows"] - summary["inferred"]
    assert value("alerts_open") == 0
    assert value("batch_seconds_count") > 0


def test_drift_becomes_a_recommendation_and_survives(watch: Watch) -> None:
    detector = watch.judge.detector
    drift = Drift(
        detector.template,
        detector.manifest.reference,
        DriftSettings(window=400, least=100, every_s=60),
    )
    watch.judge.drift = drift
    strange = np.array([[len(field.phrases) - 1 for field in detector.template.fields]] * 200)
    for now in (1000.0, 1010.0, 1020.0, 1030.0):
        drift.add(strange.astype(np.uint16), np.full(200, 0.3))
        watch._clock, watch._next_round = (lambda now=now: now), 0.0
        watch.round(once=True)
    found = watch.journal.blobs("retraining")
    assert watch.counts["retraining_recommendations"] == len(found) == 1
    one = RetrainingRecommendation.model_validate_json(next(iter(found.values())))
    assert one.report.level == "major"
    assert watch.journal.blobs("drift")["state"]


def test_baselines_are_counted_and_states_that_do_not_fit_are_reported(
    edge_bundle: Path, edge_log: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = WatchPlan(logs=[edge_log], model=edge_bundle, state=tmp_path / "s", threads=1)
    first = open_watch(plan)
    first.journal.commit(StoreBatch(blobs={("baseline", "10.0.0.1"): b"damaged"}))
    first.journal.close()
    with caplog.at_level(logging.WARNING):
        watch = open_watch(plan)
    assert "DeviceBaseline: 1 saved states do not fit" in caplog.text
    registry = CollectorRegistry()
    observer = Observer(Metrics(registry), watch.judge, watch.grouper, watch.journal)
    while watch.step(watch.sources[0]):
        pass
    observer.round()
    assert watch.judge.baseline is not None
    assert registry.get_sample_value("gradsense_baselines", {"state": "learnt"}) == 0
    learning = registry.get_sample_value("gradsense_baselines", {"state": "learning"})
    assert learning == len(watch.judge.baseline) > 0
    watch.journal.close()
