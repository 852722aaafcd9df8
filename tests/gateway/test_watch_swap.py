"""Bundles that are replaced under a running watch: taken over, or left where they cannot be."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from gradsense.data.datasets.iot23 import BENIGN
from gradsense.detection import bundle
from gradsense.detection.bundle import BundleThreshold
from gradsense.detection.detector import Detector
from gradsense.detection.head import Head, with_head
from gradsense.errors import GradsenseError
from gradsense.gateway.instruments import Metrics, Observer
from gradsense.gateway.settings import Settings
from gradsense.gateway.watch import Successor, Watch
from gradsense.gateway.wiring import WatchPlan, open_watch
from gradsense.storage.files import replacing
from tests.support.sample_alerts import Ear


def head_for(bundle_path: Path, label: str) -> Head:
    """It says ``label`` to everything."""
    labels = bundle.read(bundle_path)[0].labels
    weight = np.zeros((len(labels), 1520), np.float32)
    return Head(weight, np.where(np.array(labels) == label, 9, 0).astype(np.float32))


def attack_of(bundle_path: Path) -> str:
    return next(label for label in bundle.read(bundle_path)[0].labels if label != BENIGN)


@pytest.fixture
def model(edge_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that says benign to everything."""
    path = tmp_path / "edge"
    with_head(edge_bundle, path, head_for(edge_bundle, BENIGN), {})
    return path


@pytest.fixture
def plan(model: Path, tmp_path: Path) -> WatchPlan:
    return WatchPlan(
        logs=[tmp_path / "conn.log"],
        model=model,
        state=tmp_path / "state",
        settings=Settings(sensor="gate"),
        verdicts=tmp_path / "verdicts.jsonl",
        threads=1,
    )


def settled(watch: Watch, until: Callable[[], bool]) -> None:
    """Rounds, as the loop does them, until something has happened."""
    assert watch._successor is not None
    for _ in range(500):
        watch._successor._next_look = 0.0
        watch.round()
        if until():
            return
        threading.Event().wait(0.02)
    pytest.fail("it never happened")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.slow
def test_twenty_bundles_under_a_log_that_grows(
    plan: WatchPlan, edge_bundle: Path, edge_log: Path
) -> None:
    log, ear = plan.logs[0], Ear()
    data = edge_log.read_bytes().splitlines(keepends=True)
    head, rows = [r for r in data if r.startswith(b"#")], [r for r in data if r[:1] != b"#"]
    log.write_bytes(b"".join(head))
    watch = open_watch(plan, extra={"ear": ear})
    running = threading.Thread(target=watch.run, kwargs={"once": False})
    running.start()
    attack, ids = attack_of(edge_bundle), {bundle.read(plan.model)[0].id}
    share = len(rows) // 21
    with log.open("ab", buffering=0) as file:
        for number in range(21):
            for row in rows[number * share : (number + 1) * share]:
                file.write(row)
            if number < 20:
                says = (attack, BENIGN)[number % 2]
                ids.add(
                    with_head(
                        edge_bundle,
                        plan.model,
                        head_for(edge_bundle, says),
                        {"provenance": {"number": number}},
                    ).id
                )
                assert watch._successor is not None
                watch._successor._next_look = 0.0
                until(lambda n=number: watch.counts["models_adopted"] == n + 1)
        until(lambda: watch.counts["flows"] == 21 * share)
    watch.stop.set()
    running.join(20)
    assert not running.is_alive()
    verdicts = lines(plan.verdicts or Path())
    first = len(head) + 1
    assert [one["line"] for one in verdicts] == list(range(first, first + 21 * share))
    said = Counter(one["verdict"] for one in verdicts)
    assert set(said) == {attack, BENIGN}
    assert min(said.values()) > 5 * share
    counters = watch.journal.counters()
    assert (counters["models_adopted"], counters["flows"]) == (20, 21 * share)
    assert {alert.model for alert in ear.heard} <= ids
    assert watch.grouper.model == bundle.read(plan.model)[0].id
    assert watch.summary()["inferred"] >= 21
    watch.journal.close()


def until(happened: Callable[[], bool]) -> None:
    for _ in range(1000):
        if happened():
            return
        threading.Event().wait(0.02)
    pytest.fail("it never happened")


def test_everything_that_depends_on_the_model_follows_it(
    plan: WatchPlan, edge_bundle: Path, edge_log: Path
) -> None:
    shutil.copyfile(edge_log, plan.logs[0])
    watch = open_watch(plan)
    registry = CollectorRegistry()
    watch._observer = Observer(Metrics(registry), watch.judge, watch.grouper, watch.journal)
    while watch.step(watch.sources[0]):
        pass
    flows, inferred = watch.counts["flows"], watch.judge.detector.inferred
    assert watch.counts["alarms"] == 0
    reference = bundle.read(edge_bundle)[0].reference
    assert reference is not None
    changed = reference.model_copy(update={"flows": 77})
    manifest = with_head(
        edge_bundle, plan.model, head_for(edge_bundle, attack_of(edge_bundle)),
        {"reference": changed},
    )  # fmt: skip
    settled(watch, lambda: watch.counts["models_adopted"] == 1)
    assert watch.judge.detector.manifest == manifest
    assert (watch.judge.detector.judged, watch.judge.detector.inferred) == (flows, inferred)
    assert watch.judge.drift is not None
    assert watch.judge.drift._expected_flows == 77
    assert watch.judge.drift.state().newer_flows == 0
    with plan.logs[0].open("ab") as file:
        file.write(edge_log.read_bytes().splitlines(keepends=True)[-2])
    assert watch.step(watch.sources[0])
    watch.finish(close_alerts=True)
    assert watch.counts["alarms"] == 1
    assert {alert.model for alert in watch.journal.alerts(10)} == {manifest.id}
    assert watch.journal.labels() == tuple(manifest.labels)
    value = registry.get_sample_value
    assert value("gradsense_model_swaps_total") == 1
    assert (value("gradsense_cache_hits_total") or 0) <= flows - inferred
    watch.journal.close()


def test_drift_remembers_when_it_last_recommended(plan: WatchPlan, edge_bundle: Path) -> None:
    watch = open_watch(plan)
    drift = watch.judge.drift
    assert drift is not None
    drift._recommended_at = 1234.0
    watch.judge.adopt(Detector.load(edge_bundle, threads=1))
    assert watch.judge.drift is not drift
    assert watch.judge.drift is not None
    assert watch.judge.drift.state().recommended_at == 1234.0
    watch.journal.close()


def damaged(model: Path) -> None:
    with replacing(model) as fresh:
        shutil.copytree(model, fresh, dirs_exist_ok=True)
        (fresh / "model.onnx").unlink()
        (fresh / "model.onnx").write_bytes(b"no graph")


def of_another_template(model: Path) -> None:
    manifest = json.loads((model / "manifest.json").read_text())
    manifest["template"] = {"name": "compact", "version": 1}
    bundle_text = json.dumps(manifest)
    with replacing(model) as fresh:
        shutil.copytree(model, fresh, dirs_exist_ok=True)
        (fresh / "manifest.json").write_text(bundle_text)


def of_another_reference(model: Path) -> None:
    manifest, _ = bundle.read(model)
    assert manifest.reference is not None
    reference = manifest.reference.model_copy(update={"fields": {"proto": (1.0,)}})
    bundle.rewrite_manifest(model, manifest.model_copy(update={"reference": reference}))


@pytest.mark.parametrize("spoil", [damaged, of_another_template, of_another_reference])
def test_a_bundle_that_cannot_take_over_is_reported_once(
    spoil: Callable[[Path], None],
    plan: WatchPlan,
    edge_bundle: Path,
    edge_log: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copyfile(edge_log, plan.logs[0])
    watch = open_watch(plan)
    before = watch.judge.detector
    with caplog.at_level(logging.WARNING):
        spoil(plan.model)
        settled(watch, lambda: watch.counts["models_refused"] == 1)
        for _ in range(5):
            assert watch._successor is not None
            watch._successor._next_look = 0.0
            watch.round()
    assert watch.judge.detector is before
    assert (
        len([one for one in caplog.records if "the previous model stays in use" in one.message])
        == 1
    )
    assert watch.journal.counters()["models_refused"] == 1
    assert watch.step(watch.sources[0]), "it goes on judging"
    shutil.rmtree(plan.model)
    with_head(edge_bundle, plan.model, head_for(edge_bundle, attack_of(edge_bundle)), {})
    settled(watch, lambda: watch.counts["models_adopted"] == 1)
    watch.journal.close()


def test_a_threshold_that_is_calibrated_anew_is_taken_over(plan: WatchPlan) -> None:
    watch = open_watch(plan)
    manifest, _ = bundle.read(plan.model)
    alarm = BundleThreshold(value=0.75, share=0.0, flows=9, source="a quiet day")
    bundle.rewrite_manifest(plan.model, manifest.model_copy(update={"alarm": alarm}))
    settled(watch, lambda: watch.judge.detector.manifest.alarm == alarm)
    watch.journal.close()


# The look itself ----------------------------------------------------------------------------


class Bench:
    """A successor whose loads are counted and can be held up."""

    def __init__(self, path: Path) -> None:
        self.path, self.loads, self.go = path, 0, threading.Event()
        self.go.set()
        self.successor = Successor(path, self.load)
        self.now = 0.0

    def load(self) -> Detector:
        self.loads += 1
        detector = Detector.load(self.path, threads=1)
        assert self.go.wait(20)
        return detector

    def look(self) -> Detector | None:
        self.now += 1.0
        return self.successor.look(self.now)

    def loaded(self) -> None:
        assert self.successor._coming is not None
        self.successor._coming[1].exception(20)


def test_a_look_costs_no_load_while_nothing_changes(model: Path) -> None:
    bench = Bench(model)
    assert [bench.look() for _ in range(3)] == [None] * 3
    assert bench.loads == 1
    # Written anew, and the same: loaded to find out, and not taken.
    with replacing(model) as fresh:
        shutil.copytree(model, fresh, dirs_exist_ok=True)
    assert bench.look() is None
    bench.loaded()
    assert bench.look() is None
    assert [bench.look() for _ in range(3)] == [None] * 3
    assert bench.loads == 2


def test_while_it_loads_nobody_waits(edge_bundle: Path, model: Path) -> None:
    bench = Bench(model)
    bench.go.clear()
    with_head(edge_bundle, model, head_for(edge_bundle, attack_of(edge_bundle)), {})
    assert [bench.look() for _ in range(4)] == [None] * 4
    bench.go.set()
    bench.loaded()
    fresh = bench.look()
    assert fresh is bench.successor.current
    assert bench.loads == 2


def test_what_was_replaced_while_it_was_read_is_read_again(edge_bundle: Path, model: Path) -> None:
    bench = Bench(model)
    bench.go.clear()
    with_head(edge_bundle, model, head_for(edge_bundle, attack_of(edge_bundle)), {})
    assert bench.look() is None
    last = with_head(edge_bundle, model, head_for(edge_bundle, BENIGN), {"temperature": 2.0})
    bench.go.set()
    bench.loaded()
    assert bench.look() is None, "it may be of both"
    assert bench.look() is None
    bench.loaded()
    fresh = bench.look()
    assert fresh is not None
    assert fresh.manifest == last


def test_a_moment_without_a_folder_changes_nothing(edge_bundle: Path, model: Path) -> None:
    bench = Bench(model)
    away = model.with_name("away")
    model.rename(away)
    assert [bench.look() for _ in range(3)] == [None] * 3
    away.rename(model)
    assert [bench.look() for _ in range(3)] == [None] * 3
    assert bench.loads == 1
    # It goes between the look and the load.
    bench.path = away
    with_head(edge_bundle, model, head_for(edge_bundle, attack_of(edge_bundle)), {})
    assert bench.look() is None
    bench.loaded()
    model.rename(model.with_name("gone"))
    assert [bench.look() for _ in range(3)] == [None] * 3


def test_whatever_a_load_raises_is_an_error_of_ours(
    edge_bundle: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(model)

    def full(path: Path, *, threads: int) -> Detector:
        raise MemoryError("no room")

    monkeypatch.setattr(Detector, "load", full)
    with_head(edge_bundle, model, head_for(edge_bundle, attack_of(edge_bundle)), {})
    assert bench.look() is None
    bench.loaded()
    with pytest.raises(GradsenseError, match="no room"):
        bench.look()
    assert bench.look() is None
