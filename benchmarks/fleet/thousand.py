"""A thousand light devices on one machine: one Mosquitto, one coordinator, real connections.

    python -m benchmarks.fleet.thousand [--devices 1000] [--only round,floor] [--out FILE]

Five parts, each with a broker, a coordinator (``gradsense coordinator``, its journal on disk) and
a crowd (``crowd.py``) of its own:

- ``floor``: no coordinator of ours. A bare client publishes as many bytes as our model has; each
  device answers with as many as our update has; when all came the next is published. Nothing is
  verified, written down or acknowledged but by the broker.
- ``round``: FedAvg, every device answers every model. Then a minute of silence.
- ``ceaseless``: FedBuff; a device sends its next update as soon as the last is acknowledged.
- ``paced``: FedBuff with a pool of 50; devices send after random pauses.
- ``large``: gsfs with moments of a real size, of fewer devices, ceaseless.

The wait for a model is counted from the first publish of the update that completed its pool, as
the journal has it, to the last device's having verified it. The crowd's own work is on the same
cores: a device's share is the row ``crowd``. The fleet's folder is made in memory where the
machine has ``/dev/shm``, since enrolling waits for the disk some twenty times a device.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes

from benchmarks.fleet.crowd import PATIENCE_S, Workers, merged
from benchmarks.fleet.light import KEEPALIVE_S, SEGMENT_BYTES, Part, Wire, packet_properties
from benchmarks.fleet.thousand_figures import (
    SAMPLE_S,
    SETTLE_S,
    Meter,
    Row,
    Scene,
    counted,
    figures,
    pools,
    show,
)
from benchmarks.processes import pss_mb
from gradsense.coordinator.run import Run
from gradsense.coordinator.service import read_status
from gradsense.federation.algorithms.gsfs import Gsfs
from gradsense.federation.update import GlobalModel, exactly
from gradsense.fleet.enrolment import create, opened
from gradsense.fleet.jobs import JOB_FILE, RUNS, START, Job
from gradsense.learning.learner import Tensors
from gradsense.learning.statistics import HEAD_BIAS, HEAD_WEIGHT, STATISTICS, factorise
from gradsense.localfleet.local_broker import free_port
from gradsense.transport import identity
from gradsense.transport.messages import messages, sign_message
from gradsense.transport.payloads import model_hash, pack_model
from gradsense.transport.protocol import COORDINATOR, MessageHeader

if TYPE_CHECKING:  # it brings torch, which the crowd's processes would import as well
    from gradsense.localfleet.local_fleet import LocalFleet

PARTS = ("floor", "round", "ceaseless", "paced", "large")
LABELS = ("benign", "scan", "flood", "control")
#: Weights of the tiny model; 680 bytes of float32.
WEIGHTS, FLOWS = 170, 1000


# The fleet ----------------------------------------------------------------------------------


@dataclass
class Ground:
    """Where everything is: a fleet without runs, and its devices' bundles."""

    fleet: Path
    disk: Path
    bundles: list[Path] = field(default_factory=list)


def prepared(memory: Path, disk: Path, devices: int, queue: int | None) -> tuple[Ground, Row]:
    """Make the fleet and enrol everybody; what that took."""
    ground = Ground(memory / "fleet", disk)
    create(ground.fleet, None, free_port(), now=time.time())
    (disk / RUNS).mkdir()
    (ground.fleet / RUNS).symlink_to(disk / RUNS)
    if queue is not None:
        conf = ground.fleet / "broker" / "mosquitto.conf"
        limit = f"max_queued_messages {queue}"
        text = re.sub(r"^max_queued_messages \d+$", limit, conf.read_text(), flags=re.MULTILINE)
        conf.write_text(text)
    began = time.perf_counter()
    with opened(ground.fleet) as fleet:
        for number in range(devices):
            place = memory / "devices" / f"d{number:05d}"
            fleet.enroll(place.name, place, now=time.time(), days=2)
            ground.bundles.append(place)
    each = (time.perf_counter() - began) / devices
    return ground, {"enrol_ms": 1e3 * each, "enrol_disk_ms": 1e3 * _enrolling(disk)}


def _enrolling(disk: Path, devices: int = 10) -> float:
    """Seconds to enrol a device where the fleet's folder is on disk."""
    create(disk / "other", None, free_port(), now=time.time())
    began = time.perf_counter()
    with opened(disk / "other") as fleet:
        for number in range(devices):
            fleet.enroll(f"d{number}", disk / f"bundle{number}", now=time.time(), days=2)
    return (time.perf_counter() - began) / devices


@contextmanager
def run_of(ground: Ground, job: Job, tensors: Tensors) -> Iterator[Path]:
    """A run of the fleet, gone afterwards."""
    folder = ground.fleet / RUNS / job.run
    try:
        Run.create(folder, job, tensors)
        (folder / START).mkdir()
        (folder / START / JOB_FILE).write_text(job.text(), encoding="utf-8")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class BarePublisher:
    """Publishes a model's message each time that all devices have answered."""

    def __init__(self, fleet: Path, run: str, tensors: Tensors, devices: int) -> None:
        who = identity.of_coordinator(fleet)
        place = MessageHeader("model", run, COORDINATOR, 1, 1, model_hash(tensors))
        signed = sign_message(place, pack_model(GlobalModel(1, tensors)), who.signing_key)
        (self._model,) = messages(signed, retain=True)
        self._devices, self._came = devices, 0
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, who.name, protocol=MQTTProtocolVersion.MQTTv5
        )
        self._client.tls_set_context(who.tls())
        self._client.on_message = self._on_message
        self._client.connect(who.host, who.port, KEEPALIVE_S)
        self._client.subscribe(f"gradsense/v2/{run}/up/#", 1)

    def __enter__(self) -> BarePublisher:
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self) -> None:
        """Publish the model."""
        properties = packet_properties(PacketTypes.PUBLISH, self._model.pairs)
        self._client.publish(self._model.topic, self._model.payload, 1, True, properties)

    def _on_message(self, *_: Any) -> None:
        self._came += 1
        if self._came == self._devices:
            self._came = 0
            self.publish()


# Parts --------------------------------------------------------------------------------------


def scenes(arguments: argparse.Namespace) -> dict[str, Scene]:
    """All parts by name."""
    rng = np.random.default_rng(0)
    n, rounds, seconds = arguments.devices, arguments.rounds, arguments.seconds
    tiny = {"w": rng.standard_normal(WEIGHTS).astype(np.float32)}

    def scene(name: str, algorithm: str, part: Part, **more: Any) -> Scene:
        job = Job(
            run=name,
            algorithm=algorithm,
            labels=LABELS,
            min_devices=n,
            interval_s=0.0,
            upload_gap_s=0.0,
        )
        return Scene(job, tiny, replace(part, run=name), n, **more)

    part = Part("", "round", {"w": 1e-3 * tiny["w"]}, samples=FLOWS)
    loud, slow = replace(part, sends="ceaseless"), replace(part, sends="paced")
    each = replace(part, rounds=rounds)
    return {
        "floor": scene("floor", "fedavg", replace(each, sends="bare")),
        "round": scene("round", "fedavg", each, idle_s=arguments.idle),
        "ceaseless": scene("ceaseless", f"fedbuff:updates={n}", loud, seconds=seconds),
        "paced": scene(
            "paced",
            "fedbuff:updates=50",
            replace(slow, pause_s=n / arguments.pace),
            seconds=2 * seconds,
        ),
        "large": large(min(n, arguments.large), arguments.width, seconds),
    }


def large(devices: int, width: int, seconds: float) -> Scene:
    """Moments of so many features, as the default algorithm sends them."""
    rng = np.random.default_rng(1)
    job = Job(
        run="large",
        algorithm="gsfs",
        labels=LABELS,
        min_devices=devices,
        interval_s=0.0,
        upload_gap_s=0.0,
    )
    labels = np.eye(len(LABELS))[rng.integers(len(LABELS), size=FLOWS)]
    rows = np.hstack([rng.standard_normal((FLOWS, width)), np.ones((FLOWS, 1)), labels])
    algorithm = job.rules
    assert isinstance(algorithm, Gsfs)
    codec = algorithm.codec
    factor = {STATISTICS: factorise(rows, algorithm.tolerance)}
    packed = codec.pack(factor)
    head = {
        HEAD_WEIGHT: np.zeros((len(LABELS), width), np.float32),
        HEAD_BIAS: np.zeros(len(LABELS), np.float32),
    }
    part = Part(
        "large",
        "ceaseless",
        codec.unpack(packed, exactly(factor)),
        packed=packed,
        codec=codec.name,
        samples=FLOWS,
    )
    return Scene(job, head, part, devices, seconds=seconds)


def play(ground: Ground, scene: Scene, workers: int) -> Row:
    """One part from an empty broker to figures."""
    local = _local(ground)
    with ExitStack() as stack:
        stack.enter_context(local)
        stack.enter_context(_logs_shown(local))
        folder = stack.enter_context(run_of(ground, scene.job, scene.tensors))
        shutil.rmtree(ground.fleet / "broker" / "data")
        (ground.fleet / "broker" / "data").mkdir(mode=0o700)
        local.start_broker()
        pids = {"broker": [local.process("broker").pid]}
        bare = scene.part.sends == "bare"
        if not bare:
            local.start_coordinator()
            _until(lambda: bool((read_status(ground.fleet) or {}).get("connected")))
            pids["coordinator"] = [local.process("coordinator").pid]
        before: Row = {f"{name}_empty_mb": pss_mb(*own) for name, own in pids.items()}
        crowd = stack.enter_context(Workers(ground.bundles[: scene.devices], scene.part, workers))
        crowd.ask("hello")
        pids["crowd"] = crowd.pids
        meter = stack.enter_context(Meter(pids))
        before["crowd_empty_mb"] = pss_mb(*crowd.pids)
        row = before | _played(ground, scene, crowd, meter, pids)
        status = None if bare else _status(ground, scene.job.run)
        log = (local.out / "broker.log").read_text(errors="replace")
        row["broker_drops"] = log.count("being dropped")
        seen = row.pop("seen")
        local.stop()
        if status is not None:
            row |= counted(folder, scene, seen, status)
        return row | figures(scene, seen, meter, row, pools(folder, scene, seen))


def _local(ground: Ground) -> LocalFleet:
    from gradsense.localfleet.local_fleet import LocalFleet  # noqa: PLC0415

    out = Path(tempfile.mkdtemp(dir=ground.disk))
    local = LocalFleet(out, 0, job=lambda labels: Job(run="none", labels=labels))
    local.fleet = ground.fleet
    (ground.fleet / "status.json").unlink(missing_ok=True)
    return local


def _played(
    ground: Ground, scene: Scene, crowd: Workers, meter: Meter, pids: Mapping[str, list[int]]
) -> Row:
    part, row = scene.part, Row()
    with ExitStack() as stack:
        if part.sends == "bare":
            publisher = stack.enter_context(
                BarePublisher(ground.fleet, part.run, scene.tensors, scene.devices)
            )
        began = time.monotonic()
        crowd.ask("connect")
        row["connected_at"] = time.monotonic()
        row["connect_cpu_ms"] = {
            name: 1e3 * meter.cpu_s(name, began, time.monotonic()) / scene.devices for name in pids
        }
        first = crowd.wire()
        if part.sends == "bare":
            publisher.publish()
        if part.rounds is not None:
            crowd.ask("finished", 3 * PATIENCE_S)
        else:
            time.sleep(scene.seconds + SETTLE_S)
        row["ended_at"] = time.monotonic()
        row["mb"] = {name: pss_mb(*own) for name, own in pids.items()}
        crowd.ask("quiet")
        time.sleep(SAMPLE_S * 3)
        row["wire"] = _difference(first, crowd.wire())
        if scene.idle_s:
            row["idle"] = _idle(scene, crowd, meter, pids)
        row["seen"] = merged(crowd.ask("seen"))
    return row


def _idle(scene: Scene, crowd: Workers, meter: Meter, pids: Mapping[str, list[int]]) -> Row:
    """Nothing happens but the connections' keepalive."""
    time.sleep(2.5)  # until the coordinator has written its status
    began, first = time.monotonic(), crowd.wire()
    time.sleep(scene.idle_s)
    ended, wire = time.monotonic(), _difference(first, crowd.wire())
    hours = scene.devices * (ended - began) / 3600
    return {
        "tls_bytes_hour": (wire["sent"] + wire["received"]) / hours,
        "ip_bytes_hour": wire["ip"] / hours,
        "cpu_share": {
            name: meter.cpu_s(name, began, ended - 2 * SAMPLE_S) / (ended - began) for name in pids
        },
    }


def _difference(first: Wire, last: Wire) -> Row:
    segments = last.segments_in - first.segments_in + last.segments_out - first.segments_out
    sent, received = last.sent - first.sent, last.received - first.received
    return {"sent": sent, "received": received, "ip": sent + received + SEGMENT_BYTES * segments}


@contextmanager
def _logs_shown(local: LocalFleet) -> Iterator[None]:
    """If anything goes wrong, the ends of both logs go to standard error."""
    try:
        yield
    except BaseException:
        for file in sorted(local.out.glob("*.log")):
            lines = file.read_text(errors="replace").splitlines()[-20:]
            print(f"{file.name}:", *lines, sep="\n    ", file=sys.stderr)
        raise


def _until(ready: Any, patience_s: float = 30.0) -> None:
    end = time.monotonic() + patience_s
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError("the coordinator did not connect")
        time.sleep(0.05)


def _status(ground: Ground, run: str) -> Mapping[str, Any]:
    time.sleep(2.2)  # it is written once a second
    status = read_status(ground.fleet)
    assert status is not None
    return dict(status["runs"][run]) | {"link": status["link"], "process": status["counts"]}


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2, help="processes of the crowd")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=15.0, help="of the ceaseless parts")
    parser.add_argument("--pace", type=float, default=25.0, help="updates a second in 'paced'")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds of silence")
    parser.add_argument("--large", type=int, default=100, help="devices of 'large'")
    parser.add_argument("--width", type=int, default=320, help="features of 'large'")
    parser.add_argument("--queue", type=int, help="another max_queued_messages for the broker")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--out", type=Path, help="JSON of all figures")
    arguments = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing stays behind
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    rows: dict[str, Row] = {}
    with (
        tempfile.TemporaryDirectory(dir=shared) as memory,
        tempfile.TemporaryDirectory() as disk,
    ):
        ground, enrolling = prepared(Path(memory), Path(disk), arguments.devices, arguments.queue)
        for name, scene in scenes(arguments).items():
            if name in arguments.only.split(","):
                began = time.monotonic()
                rows[name] = play(ground, scene, arguments.workers)
                print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    show(rows, enrolling)
    if arguments.out is not None:
        text = json.dumps({"enrolling": enrolling, "parts": rows}, indent=1)
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
