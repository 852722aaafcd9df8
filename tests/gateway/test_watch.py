"""The watch in one process: logs in, journal and verdicts out, and faults on the way."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest

from gradsense.data.datasets.iot23 import BENIGN
from gradsense.errors import GradsenseError
from gradsense.gateway.alerting.alert import Alert
from gradsense.gateway.settings import Settings
from gradsense.gateway.store import GatewayStore, StoreBatch
from gradsense.gateway.watch import Watch
from gradsense.gateway.wiring import WatchPlan, open_watch
from gradsense.storage.sqlite import StorageFull
from tests.support.fuzz_lines import HEADS, mutated, tsv_line
from tests.support.sample_alerts import Ear


@pytest.fixture
def plan(edge_bundle: Path, edge_log: Path, tmp_path: Path) -> WatchPlan:
    return WatchPlan(
        logs=[edge_log],
        model=edge_bundle,
        state=tmp_path / "state",
        settings=Settings(sensor="gate"),
        once=True,
        verdicts=tmp_path / "verdicts.jsonl",
        threads=1,
    )


def lines_of(plan: WatchPlan) -> list[dict]:
    assert plan.verdicts is not None
    return [json.loads(line) for line in plan.verdicts.read_bytes().splitlines()]


def finished(plan: WatchPlan, **changes: object) -> Watch:
    watch = open_watch(WatchPlan(**{**vars(plan), **changes}))
    watch.run(once=True)
    watch.journal.close()
    return watch


def test_once_judges_every_flow_and_tells_every_alert(plan: WatchPlan) -> None:
    ear = Ear()
    watch = open_watch(plan, extra={"ear": ear})
    watch.run(once=True)
    verdicts = lines_of(plan)
    summary = watch.summary()
    assert summary["flows"] == len(verdicts) > 500
    assert [one["line"] for one in verdicts] == sorted(one["line"] for one in verdicts)
    rang = sum(one["alarm"] for one in verdicts)
    assert summary["alarms"] == rang > 0
    last = {alert.id: alert for alert in ear.heard}
    assert all(alert.state == "closed" for alert in last.values())
    assert sum(alert.flows for alert in last.values()) == rang
    assert summary["alerts"] == len(last)
    assert all(alert.sensor == "gate" and alert.why for alert in last.values())
    assert summary["sinks"]["ear"] == {"waiting": 0, "delivered": len(ear.heard), "dropped": 0}
    assert summary["inferred"] < summary["flows"]


def test_a_log_read_in_pieces_gives_the_same_verdicts(plan: WatchPlan, tmp_path: Path) -> None:
    finished(plan)
    whole = lines_of(plan)
    log = tmp_path / "conn.log"
    data = plan.logs[0].read_bytes()
    pieces = tmp_path / "pieces.jsonl"
    for share in (0.3, 0.31, 0.8, 1.0):  # each a process of its own, as far as the state goes
        log.write_bytes(data[: int(share * len(data))])
        watch = open_watch(
            WatchPlan(**{**vars(plan), "logs": [log], "verdicts": pieces, "state": tmp_path / "s2"})
        )
        while watch.step(watch.sources[0], final=share == 1.0):
            pass
        watch.finish(close_alerts=False)
        watch.journal.close()
    again = [json.loads(line) for line in pieces.read_text().splitlines()]
    keys = ("line", "uid", "verdict", "alarm")
    assert [[one[k] for k in keys] for one in again] == [[one[k] for k in keys] for one in whole]


def test_a_restart_repeats_nothing(plan: WatchPlan) -> None:
    first = finished(plan)
    again = finished(plan)
    assert first.counts["flows"] > 0
    assert again.counts["flows"] == 0
    assert len(lines_of(plan)) == first.counts["flows"]


def test_verdicts_that_were_never_committed_are_taken_back(plan: WatchPlan) -> None:
    finished(plan)
    before = lines_of(plan)
    assert plan.verdicts is not None
    with plan.verdicts.open("a") as file:
        file.write('{"half": "a batch", "that was never')
    finished(plan)
    assert lines_of(plan) == before


def test_several_logs_keep_their_own_context(plan: WatchPlan, tmp_path: Path) -> None:
    other = tmp_path / "other.log"
    other.write_bytes(plan.logs[0].read_bytes())
    watch = finished(plan, logs=[plan.logs[0], other])
    verdicts = lines_of(plan)
    half = len(verdicts) // 2
    assert watch.counts["flows"] == 2 * half
    one = [v["verdict"] for v in verdicts if v["log"] == str(other)]
    assert one == [v["verdict"] for v in verdicts if v["log"] != str(other)]


def test_what_is_no_flow_is_counted_with_an_example(plan: WatchPlan, tmp_path: Path) -> None:
    log = tmp_path / "conn.log"
    lines = plan.logs[0].read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:20], b"garbage\n", b"\xff\xfe\n", *lines[20:40]]))
    watch = open_watch(WatchPlan(**{**vars(plan), "logs": [log]}))
    watch.run(once=True)
    summary = watch.summary()
    assert sum(drop["count"] for drop in summary["dropped"].values()) == 2
    assert any("garbage" in line for line in summary["dropped_lines"])
    assert watch.journal.counters()["dropped:wrong number of fields"] == 1


@pytest.mark.parametrize("live", [False, True], ids=["in blocks", "line by line"])
def test_hostile_lines_go_all_the_way_and_are_counted(
    plan: WatchPlan, tmp_path: Path, live: bool
) -> None:
    rng, log, lines = Random(5), tmp_path / "conn.log", 300 if live else 6000
    log.write_bytes(b"\n".join(HEADS[tsv_line]) + b"\n")
    watch = open_watch(WatchPlan(**{**vars(plan), "logs": [log], "once": not live}))
    with log.open("ab", buffering=0) as file:
        for _ in range(lines):
            line = tsv_line(rng)
            file.write((mutated(line, rng) if rng.random() < 0.5 else line) + b"\n")
            if live:
                watch.step(watch.sources[0])
    watch.run(once=True)
    summary = watch.summary()
    dropped = sum(drop["count"] for drop in summary["dropped"].values())
    assert summary["flows"] == len(lines_of(plan)) > lines / 6
    assert dropped > lines / 20
    assert summary["counts"]["flows"] == watch.journal.counters()["flows"]


def test_a_full_disk_stops_reading_and_loses_nothing(
    plan: WatchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = open_watch(plan)
    commit, faults = watch.journal.commit, iter([True, True, False, True])

    def flaky(batch: StoreBatch) -> None:
        if next(faults, False):
            raise StorageFull("the journal cannot be written: database or disk is full")
        commit(batch)

    monkeypatch.setattr(watch.journal, "commit", flaky)
    watch.stop.wait = lambda seconds: False  # type: ignore[method-assign]
    watch.run(once=True)
    verdicts = lines_of(plan)
    assert len({one["line"] for one in verdicts}) == len(verdicts) == watch.counts["flows"] > 500
    assert watch.counts["stalls"] == 2


def test_stopping_on_a_full_disk_says_so_and_goes_on_later(
    plan: WatchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = open_watch(plan)

    def full(batch: StoreBatch) -> None:
        watch.stop.set()
        raise StorageFull("disk full")

    monkeypatch.setattr(watch.journal, "commit", full)
    with pytest.raises(GradsenseError, match="nothing is lost"):
        watch.run(once=True)
    watch.journal.close()
    again = finished(plan)
    assert len(lines_of(plan)) == again.counts["flows"] > 500


@pytest.mark.slow
def test_alerts_outlive_the_process_and_close_in_silence(plan: WatchPlan) -> None:
    ear = Ear()
    watch = open_watch(plan, extra={"ear": ear}, clock=lambda: 0.0)
    while watch.step(watch.sources[0]):
        pass
    open_before = len(watch.grouper)
    assert open_before > 0
    watch.finish(close_alerts=False)
    watch.journal.close()
    now = [1000.0]
    again = open_watch(plan, extra={"ear": ear}, clock=lambda: now[0])
    assert len(again.grouper) == open_before
    again.judge.clock.advance(1e9)
    again.round()
    assert len(again.grouper) == 0


def test_feedback_silences_and_is_training_data(plan: WatchPlan) -> None:
    ear = Ear()
    watch = open_watch(plan, extra={"ear": ear})
    watch.run(once=True)
    alert = max((one for one in ear.heard if one.state == "closed"), key=lambda one: one.flows)
    assert watch.journal.record_feedback(watch.journal.alert(alert.id), BENIGN, 1.0) > 0
    data = watch.journal.examples()
    assert {word.label for word, _, _ in data} == {BENIGN}
    assert sum(flows for _, _, flows in data) <= alert.flows
    template = watch.judge.detector.template
    texts = {template.texts(np.frombuffer(one, np.uint16)[None])[0] for _, one, _ in data}
    watch.journal.close()
    fresh = WatchPlan(**{**vars(plan), "verdicts": plan.state / "again.jsonl"})
    with sqlite3.connect(plan.state / "watch.sqlite3") as db:
        db.execute("DELETE FROM places")
    again = open_watch(fresh)
    again.round()
    again.run(once=True)
    assert again.counts["silenced"] > 0
    assert again.counts["alarms"] + again.counts["silenced"] == watch.counts["alarms"]
    fields = again.judge.detector.template.fields
    assert all(len(text.split()) == len(fields) for text in texts)


def test_a_dead_sink_does_not_stop_detection(plan: WatchPlan) -> None:
    class Dead(Ear):
        name = "dead"

        def send(self, alerts: Sequence[Alert]) -> None:
            raise OSError("nobody there")

    watch = open_watch(plan, extra={"dead": Dead()})
    assert watch.outbox is not None
    watch.outbox.flush = lambda seconds: False  # type: ignore[method-assign]
    watch.run(once=True)
    assert watch.counts["flows"] > 500
    assert watch.summary()["sinks"]["dead"]["waiting"] > 0


def test_it_stops_when_told_and_leaves_alerts_open(plan: WatchPlan, tmp_path: Path) -> None:
    live = WatchPlan(**{**vars(plan), "once": False})
    watch = open_watch(live)
    thread = threading.Thread(target=watch.run, kwargs={"once": False})
    thread.start()
    for _ in range(200):
        if watch.counts["flows"] > 500:
            break
        threading.Event().wait(0.05)
    watch.stop.set()
    thread.join(20)
    assert not thread.is_alive()
    watch.journal.close()
    assert GatewayStore(plan.state).open_groups()
