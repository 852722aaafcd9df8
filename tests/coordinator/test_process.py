"""The coordinator's process over a real broker: several runs, new ones, a full disk, its status."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import random
import signal
import sqlite3
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from gradsense.cli.app import app
from gradsense.coordinator import exporter, trial
from gradsense.coordinator.doorkeeper import Allowance
from gradsense.coordinator.journal import FILE, RunJournal
from gradsense.coordinator.run import Run
from gradsense.coordinator.service import CoordinatorService, read_status
from gradsense.errors import InputError
from gradsense.federation.transforms.transform import Parts, Plain
from gradsense.federation.update import Update
from gradsense.fleet.jobs import Job
from gradsense.gateway.instruments import serve
from gradsense.storage.sqlite import StorageFull
from gradsense.transport.messages import Message
from gradsense.transport.payloads import Ack, model_hash, pack_update
from tests.support.live_coordinator import Teller, eventually, new_run, working
from tests.support.tls_broker import TlsBroker
from tests.support.toys import factor_of, tensor, update

pytestmark = pytest.mark.broker

START = {"w": tensor(0.0, 0.0)}
BASE = model_hash(START)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[TlsBroker]:
    made = TlsBroker(tmp_path)
    yield made
    made.stop()


def job(run: str) -> Job:
    return Job(run=run, algorithm="fedavg", labels=("no", "yes"), interval_s=0.0, upload_gap_s=0.0)


def told(process: CoordinatorService, run: str) -> dict[str, object]:
    found: dict[str, object] = process.latest["runs"].get(run, {})
    return found


def said(name: str, value: float, sequence: int = 1) -> Update:
    return update(name, sequence=sequence, delta={"w": tensor(value, value)})


def test_runs_do_not_mix_and_may_begin_at_any_time(
    broker: TlsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradsense.coordinator.service._LOOK_S", 0.1)
    new_run(broker.fleet, job("porch"), START)
    with working(broker.fleet) as process:
        cam = Teller(broker, "porch", "cam")
        eventually(lambda: told(process, "porch").get("online") == 1)
        new_run(broker.fleet, job("garden"), START)
        eventually(lambda: told(process, "garden"))
        bell = Teller(broker, "garden", "bell")
        eventually(lambda: told(process, "garden").get("online") == 1)
        cam.tell(said("cam", 1.0), BASE)
        eventually(lambda: told(process, "porch").get("version") == 1)
        assert told(process, "garden")["version"] == 0
        bell.tell(said("bell", 2.0), BASE)
        eventually(lambda: told(process, "garden").get("version") == 1)
        hashes = {told(process, run)["hash"] for run in ("porch", "garden")}
        assert hashes == {
            model_hash({"w": tensor(1.0, 1.0)}),
            model_hash({"w": tensor(2.0, 2.0)}),
        }
        for teller in (cam, bell):
            teller.link.stop()


def test_suspects_are_tried_in_a_child_beside_a_live_connection(
    broker: TlsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two updates that a process ended over: one by chance, and one whose value ends each child."""
    here, plain = os.getpid(), Plain.values

    def values(self: Plain, parts: Parts, size: int) -> np.ndarray:
        if parts[""].ravel()[0] == 6.0:
            assert os.getpid() != here, "never again in this process"
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, parts, size)

    monkeypatch.setattr(Plain, "values", values)
    folder = new_run(broker.fleet, job("porch").model_copy(update={"min_devices": 2}), START)
    good, bad = said("cam", 1.0), said("bell", 6.0)
    hashes = [hashlib.sha256(pack_update(one)).hexdigest() for one in (good, bad)]
    (folder / trial.FILE).write_text("cam 1 {}\nbell 1 {}\n".format(*hashes))
    with working(broker.fleet) as process:
        cam, bell = (Teller(broker, "porch", name) for name in ("cam", "bell"))
        eventually(lambda: told(process, "porch").get("started"))
        bell.say(bell.sent(bad, BASE))
        assert bell.hear() == Ack(1, "set-aside")
        cam.tell(good, BASE)
        eventually(lambda: told(process, "porch").get("version") == 1)
        assert told(process, "porch")["refused"] == {"set-aside": 1}
        assert process.latest["link"]["disconnects"] == 0
        for teller in (cam, bell):
            teller.link.stop()


def test_a_flood_is_shut_out_and_others_are_heard(
    broker: TlsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the coordinator at once, then by the broker, and for a while only."""
    allowance = Allowance(messages_per_s=1.0, burst_messages=50, shut_out_s=3.0)
    monkeypatch.setattr("gradsense.coordinator.doorkeeper.Allowance", lambda: allowance)
    new_run(broker.fleet, job("porch"), START)
    acl = broker.fleet / "broker" / "acl"
    with working(broker.fleet) as process:
        cam, loud = (Teller(broker, "porch", name) for name in ("cam", "loud"))
        eventually(lambda: told(process, "porch").get("online") == 2)
        for qos in (0, 1):  # those of QoS 0 come before the broker denies all
            for _ in range(200):
                loud.link._current.client.publish(  # type: ignore[union-attr]
                    "gradsense/v2/porch/up/loud/update", bytes(64), qos
                )
        kept = Message("gradsense/v2/porch/up/cam/resume-request", (), b"x", retain=True)
        cam.say([kept])
        cam.tell(said("cam", 1.0), BASE)
        eventually(lambda: "loud" in process.latest["shut_out"])
        eventually(lambda: "user loud\ntopic deny #" in acl.read_text())

        def counted() -> bool:
            away = process.latest["turned_away"]
            loudly = away.get("loud", {}).keys() >= {"qos-0", "shut-out"}
            return loudly and away.get("cam") == {"retained": 1}

        eventually(counted)
        eventually(lambda: "user loud" not in acl.read_text())

        def heard() -> bool:  # the broker comes to its new rules when it comes to them
            loud.say(loud.sent(said("loud", 1.0), BASE))
            with suppress(queue.Empty):
                return bool(loud.arrivals.get(timeout=1.0))
            return False

        eventually(heard)
        metrics = {
            sample.name
            for family in exporter.StatusCollector(lambda: process.latest).collect()
            for sample in family.samples
        }
        assert "gradsense_coordinator_turned_away_total" in metrics
        for teller in (cam, loud):
            teller.link.stop()


def test_an_unreadable_run_stops_no_other(
    broker: TlsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradsense.coordinator.service._LOOK_S", 0.1)
    for run in ("garden", "porch"):
        new_run(broker.fleet, job(run), START)
    (broker.fleet / "runs/garden" / FILE).write_bytes(b"rubbish" * 1000)
    (broker.fleet / "runs/notes.txt").touch()
    with working(broker.fleet) as process:
        (broker.fleet / "runs/attic").mkdir()
        eventually(lambda: set(process.latest["unreadable"]) == {"attic", "garden", "notes.txt"})
        cam = Teller(broker, "porch", "cam")
        eventually(lambda: told(process, "porch").get("online") == 1)
        (metric,) = (
            family
            for family in exporter.StatusCollector(lambda: process.latest).collect()
            if family.name == "gradsense_coordinator_unreadable_runs"
        )
        assert [sample.value for sample in metric.samples] == [3]
        cam.link.stop()


@pytest.mark.parametrize("error", [MemoryError(), InputError("damaged", hint="mend it")])
def test_a_run_that_fails_while_it_works_stops_no_other(
    error: Exception, broker: TlsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tick = Run.tick

    def fails(run: Run, now: float) -> list[Message]:
        if run.job.run == "garden":
            raise error
        return tick(run, now)

    monkeypatch.setattr("gradsense.coordinator.service._LOOK_S", 0.1)
    monkeypatch.setattr(Run, "tick", fails)
    for run in ("garden", "porch"):
        new_run(broker.fleet, job(run), START)
    with working(broker.fleet) as process:
        cam = Teller(broker, "porch", "cam")
        eventually(lambda: told(process, "porch").get("online") == 1)
        eventually(lambda: set(process.latest["unreadable"]) == {"garden"})
        cam.tell(said("cam", 1.0), BASE)
        eventually(lambda: told(process, "porch").get("version") == 1)
        cam.link.stop()


def test_a_status_of_before_is_refused(tmp_path: Path) -> None:
    for text in ("[]", '{"runs": {}}'):
        (tmp_path / "status.json").write_text(text)
        with pytest.raises(InputError, match="format"):
            read_status(tmp_path)


def test_a_device_is_taken_out_of_a_working_fleet(
    broker: TlsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the command line: what it sent is gone, whoever remains goes on."""
    monkeypatch.setattr("gradsense.coordinator.service._LOOK_S", 0.1)
    head = {"score.weight": np.zeros((2, 1), np.float32), "score.bias": np.zeros(2, np.float32)}
    fields = {"algorithm": "gsfs:share=0.3", "interval_s": 0.0, "upload_gap_s": 0.0}
    new_run(broker.fleet, Job(run="porch", labels=("no", "yes"), **fields), head)
    with working(broker.fleet) as process:
        tellers = [Teller(broker, "porch", name) for name in ("cam", "bell")]
        eventually(lambda: told(process, "porch").get("online") == 2)
        hashes = []
        for version, teller in enumerate(tellers, 1):
            delta = {"statistics": factor_of(version, 9)}
            moved = update(teller.name, samples=9, delta=delta, codec="uniform")
            teller.tell(moved, model_hash(head))
            eventually(lambda: told(process, "porch").get("version") == version)  # noqa: B023
            hashes.append(told(process, "porch")["hash"])
        result = CliRunner().invoke(app, ["fleet", "revoke", "bell", "--fleet", str(broker.fleet)])
        assert result.exit_code == 0, result.output
        assert "model 2 of run porch" in result.output
        eventually(lambda: told(process, "porch").get("version") == 3)
        assert told(process, "porch")["hash"] == hashes[0], "as if bell had never spoken"
        for teller in tellers:
            teller.link.stop()


def test_a_full_disk_stops_it_and_loses_nothing(
    broker: TlsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradsense.coordinator.service._RETRY_S", 0.05)
    new_run(broker.fleet, job("porch"), START)
    commit = RunJournal.commit
    with working(broker.fleet) as process:
        cam = Teller(broker, "porch", "cam")
        eventually(lambda: told(process, "porch").get("online") == 1)

        def full(self: RunJournal, batch: object) -> None:
            raise StorageFull("no room") from sqlite3.OperationalError("disk is full")

        monkeypatch.setattr(RunJournal, "commit", full)
        cam.say(cam.sent(said("cam", 1.0), BASE))
        eventually(lambda: process.counts["stalls"] >= 3)
        assert cam.arrivals.empty(), "nothing was acknowledged"
        monkeypatch.setattr(RunJournal, "commit", commit)
        assert cam.hear().refusal == ""
        eventually(lambda: told(process, "porch").get("version") == 1)
        assert told(process, "porch")["updates"] == 1
        cam.link.stop()


def test_status_and_metrics_say_the_same(broker: TlsBroker) -> None:
    new_run(broker.fleet, job("porch"), START)
    with working(broker.fleet) as process:
        cam = Teller(broker, "porch", "cam")
        eventually(lambda: told(process, "porch").get("online") == 1)
        cam.tell(said("cam", 1.0), BASE)
        cam.say([Message("gradsense/v2/porch/up/cam/update")])
        eventually(lambda: told(process, "porch").get("refused") == {"bad-properties": 1})
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for family in exporter.StatusCollector(lambda: process.latest).collect()
            for sample in family.samples
        }
        cam.link.stop()
    name = "gradsense_coordinator_"
    assert samples[f"{name}connected",] == 1
    assert samples[f"{name}updates_total", "porch"] == 1
    assert samples[f"{name}aggregations_total", "porch"] == 1
    assert samples[f"{name}refused_total", "porch", "bad-properties"] == 1
    status = read_status(broker.fleet)
    assert status is not None
    assert status["stopped"]
    assert status["runs"]["porch"]["version"] == 1
    assert json.loads(json.dumps(status)) == status


def test_prometheus_can_read_it(broker: TlsBroker) -> None:
    new_run(broker.fleet, job("porch"), START)
    with working(broker.fleet) as process:
        registry = CollectorRegistry()
        registry.register(exporter.StatusCollector(lambda: process.latest))
        close = serve(registry, f"127.0.0.1:{broker.port + 1}")
        try:
            url = f"http://127.0.0.1:{broker.port + 1}/metrics"
            with urllib.request.urlopen(url, timeout=5) as answer:
                text = answer.read().decode()
        finally:
            close()
    assert 'gradsense_coordinator_version{run="porch"} 0.0' in text


def test_one_coordinator_a_fleet(broker: TlsBroker) -> None:
    new_run(broker.fleet, job("porch"), START)
    with working(broker.fleet), pytest.raises(InputError, match="another coordinator"):
        CoordinatorService(broker.fleet, rng=random.Random(0))
