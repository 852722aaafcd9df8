"""``gradsense watch`` and ``gradsense feedback`` as an operator runs them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gradsense.detection import bundle
from gradsense.gateway.store import GatewayStore, StoreBatch
from tests.support.mosquitto import Broker, Listener

Command = Callable[..., Any]
RUN = [sys.executable, "-c", "from gradsense.cli import main; main()"]


@pytest.mark.parametrize("form", ["text", "jsonl", "ocsf", "ecs"])
def test_once_writes_alerts_to_stdout(edge_bundle: Path, edge_log: Path, form: str) -> None:
    # In a process of its own: JSON goes straight to the file descriptor.
    command = [*RUN, "watch", str(edge_log), "--model", str(edge_bundle), "--once"]
    done = subprocess.run([*command, "--output", form], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "flows judged" in done.stderr
    lines = done.stdout.splitlines()
    if form == "text":
        assert any("closed" in line for line in lines)
        return
    records = [json.loads(line) for line in lines]
    if form == "jsonl":
        assert {one["state"] for one in records} >= {"open", "closed"}
    elif form == "ocsf":
        assert {one["class_uid"] for one in records} == {2004}
        assert {one["activity_id"] for one in records} >= {1, 3}
    else:
        assert {one["event"]["kind"] for one in records} == {"alert"}


def test_once_with_json_is_a_summary(gradsense: Command, edge_bundle: Path, edge_log: Path) -> None:
    told = gradsense("watch", edge_log, "--model", edge_bundle, "--once", "--json")
    assert told.code == 0, told.err
    summary = json.loads(told.out)
    assert summary["flows"] == sum(summary["verdicts"].values()) > 500
    again = gradsense("watch", edge_log, "--model", edge_bundle, "--once", "--json")
    assert json.loads(again.out) == summary, "one log, one result"


@pytest.mark.slow
def test_a_log_may_come_through_a_pipe(edge_bundle: Path, edge_log: Path) -> None:
    command = [*RUN, "watch", "-", "--model", str(edge_bundle), "--once", "--json"]
    with edge_log.open("rb") as log:
        piped = subprocess.run(command, stdin=log, capture_output=True, check=True)
    feeder = subprocess.Popen(["cat", str(edge_log)], stdout=subprocess.PIPE)
    slow = subprocess.run(command, stdin=feeder.stdout, capture_output=True, check=True)
    feeder.wait()
    assert json.loads(piped.stdout)["flows"] == json.loads(slow.stdout)["flows"] > 500


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--model", "nowhere"], ["nowhere", "gradsense export"]),
        (["--config", "nowhere.toml"], ["nowhere.toml"]),
        (["--verdicts", "no/such/folder/v.jsonl"], ["v.jsonl", "writable"]),
    ],
)
def test_mistakes_are_one_line(
    gradsense: Command, edge_bundle: Path, edge_log: Path, args: list[str], parts: list[str]
) -> None:
    model = [] if "--model" in args else ["--model", edge_bundle]
    gradsense("watch", edge_log, "--once", *model, *args).complaint(*parts)


def test_a_folder_is_no_log(gradsense: Command, edge_bundle: Path, tmp_path: Path) -> None:
    gradsense("watch", tmp_path, "--model", edge_bundle, "--once").complaint("is a folder")


def test_a_log_that_is_not_there_is_an_error_only_once(
    gradsense: Command, edge_bundle: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "conn.log"
    told = gradsense("watch", missing, "--model", edge_bundle, "--once")
    told.complaint("no such file", str(missing))


def test_feedback_from_alert_to_silence(
    gradsense: Command, edge_bundle: Path, edge_log: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    watch = ("watch", edge_log, "--model", edge_bundle, "--once", "--json", "--state")
    first = json.loads(gradsense(*watch, state).out)
    assert json.loads(gradsense(*watch, state).out)["flows"] == 0, "it was all read"
    alerts = json.loads(gradsense("feedback", "--state", state, "--json").out)
    assert len(alerts) == min(20, first["alerts"])
    worst = max(alerts, key=lambda one: one["flows"])
    listed = gradsense("feedback", "--state", state)
    assert worst["id"] in listed.out
    told = gradsense("feedback", worst["id"][:8], "--benign", "--state", state)
    assert told.code == 0, told.err
    assert "training data" in told.out
    gradsense("feedback", worst["id"], "--state", state).complaint("--benign")
    gradsense("feedback", "nope", "--benign", "--state", state).complaint("no such alert")
    gradsense("feedback", "x", "--benign", "--state", tmp_path).complaint("--state")


def test_feedback_names_a_class_that_the_model_knows(
    gradsense: Command, edge_bundle: Path, edge_log: Path, tmp_path: Path
) -> None:
    state, (manifest, _) = tmp_path / "state", bundle.read(edge_bundle)
    watched = gradsense(
        "watch", edge_log, "--model", edge_bundle, "--once", "--json", "--state", state
    )
    assert watched.code == 0, watched.err
    (*_, oldest) = json.loads(gradsense("feedback", "--state", state, "--json").out)
    give = ("feedback", oldest["id"], "--state", state)
    for unknown in ("DDos", "Novel", "Benign "):
        gradsense(*give, "--label", unknown).complaint("--label", *manifest.labels[1:])
    store = GatewayStore(state)
    assert store.feedback() == []
    for label in manifest.labels:
        assert gradsense(*give, "--label", label).code == 0
        assert [one.label for one in store.feedback()] == [label]
    assert gradsense(*give, "--malicious").code == 0
    # A state of an older gradsense does not say what its model knew.
    store.commit(StoreBatch(blobs={("model", "labels"): None}))
    assert gradsense(*give, "--label", "Torii").code == 0
    store.close()


@pytest.mark.broker
def test_live_over_mqtt_to_home_assistant_and_prometheus(
    edge_bundle: Path, edge_log: Path, tmp_path: Path
) -> None:
    broker, port = Broker(tmp_path), _free_port()
    log, config = tmp_path / "conn.log", tmp_path / "watch.toml"
    config.write_text(
        'sensor = "gate"\n'
        f'[[sink]]\ntype = "mqtt"\nhost = "127.0.0.1"\nport = {broker.port}\n'
        f'[[sink]]\ntype = "prometheus"\naddress = "127.0.0.1:{port}"\n'
        f'[[sink]]\ntype = "jsonl"\npath = "{tmp_path / "alerts.jsonl"}"\nformat = "ocsf"\n'
    )
    command = [*RUN, "watch", str(log), "--model", str(edge_bundle), "--config", str(config)]
    command += ["--state", str(tmp_path / "state"), "--output", "none"]
    with closing(Listener(broker.port)) as ear:
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            ear.expect("gradsense/gate/status", "online")
            log.write_bytes(edge_log.read_bytes())  # it appears while it is watched
            first = json.loads(ear.expect("gradsense/gate/alert"))
            assert (first["state"], first["sensor"]) == ("open", "gate")
            slug = first["device"].replace(".", "-")
            topic = f"homeassistant/binary_sensor/gradsense_gate_{slug}/config"
            found = json.loads(ear.expect(topic))
            assert found["unique_id"] == f"gradsense_gate_{slug}"
            ear.expect(found["state_topic"], "ON")
            attributes = json.loads(ear.expect(found["json_attributes_topic"]))
            assert (attributes["class"], attributes["alert"]) == (first["label"], first["id"])
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                metrics = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
                if "gradsense_flows_total 0.0" not in metrics and "_alerts_total{" in metrics:
                    break
                time.sleep(0.1)
            assert "gradsense_alerts_total{" in metrics
            assert "gradsense_verdicts_total{" in metrics
            child.send_signal(signal.SIGTERM)
            child.communicate(timeout=30)
            assert child.returncode == 0
            ear.expect("gradsense/gate/status", "offline")
        finally:
            child.kill()
            broker.stop()
    records = [json.loads(line) for line in (tmp_path / "alerts.jsonl").read_text().splitlines()]
    assert {one["class_uid"] for one in records} == {2004}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_waited_out(edge_bundle: Path, edge_log: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        filler = disk / "filler"
        verdicts = disk / "verdicts.jsonl"
        log = tmp_path / "conn.log"
        log.write_bytes(edge_log.read_bytes())
        command = [*RUN, "watch", str(log), "--model", str(edge_bundle), "--output", "none"]
        command += ["--state", str(disk / "state"), "--verdicts", str(verdicts)]
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        _until(lambda: verdicts.exists() and verdicts.stat().st_size > 0)
        _fill(filler)
        rows = [row for row in edge_log.read_bytes().splitlines(True) if not row.startswith(b"#")]
        with log.open("ab") as file:
            file.write(b"".join(rows))
        time.sleep(2.0)
        assert child.poll() is None, "it waits"
        filler.unlink()
        _until(lambda: verdicts.read_bytes().count(b"\n") == 2 * len(rows))
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=30)
        assert child.returncode == 0, said
        assert "reading stops until it can be written" in " ".join(said.split())
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def _fill(file: Path) -> None:
    """Write zeros until the disk is full."""
    with file.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(b"\0" * 4096)


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)
