"""Enrolled devices attack a live coordinator, and an honest one measures its round trips meanwhile.

    python -m benchmarks.fleet.hostile --messages 100000

A real Mosquitto as ``fleet init`` configures it, a coordinator under a limit of 2 GiB of address
space, and one process that attacks with ten devices' keys, one kind of attack after the other. The
honest device asks after an upload, which the coordinator answers, ten times a second.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from safetensors.numpy import save

from gradsense.coordinator.run import Run
from gradsense.coordinator.service import read_status
from gradsense.federation.transforms import codecs
from gradsense.federation.transforms.transform import compress
from gradsense.federation.update import Update
from gradsense.fleet.enrolment import create, opened
from gradsense.fleet.jobs import JOB_FILE, RUNS, START, Job
from gradsense.learning.statistics import HEAD_BIAS, HEAD_WEIGHT, STATISTICS, factorise
from gradsense.localfleet.local_broker import await_listener, free_port, program
from gradsense.transport import identity
from gradsense.transport.chunks import ResumeRequest
from gradsense.transport.connection import Arrival, Link
from gradsense.transport.messages import Message, messages, presence, sign_message
from gradsense.transport.payloads import ONLINE, model_hash, pack_update
from gradsense.transport.protocol import NO_MODEL, MessageHeader

RUN, LABELS, WIDTH, ATTACKERS = "porch", ("Benign", "DDoS", "C&C", "PortScan"), 512, 10
LIMIT_BYTES = 2 << 30

Publish = tuple[Message, int]  # and its QoS


# Attacks ------------------------------------------------------------------------------------


class Attacker:
    """One enrolled device's keys, and what can be done with them."""

    def __init__(self, bundle: Path, base: str, rng: np.random.Generator) -> None:
        self.who, self.base, self.rng = identity.of_device(bundle), base, rng
        self.sequence = 0

    def update(self, body: bytes, *, claim: int = 0) -> list[Message]:
        """Signed publishes of a body, as the next update."""
        self.sequence += 1
        header = MessageHeader("update", RUN, self.who.name, self.sequence, 0, self.base)
        found = messages(sign_message(header, body, self.who.signing_key))
        return found[:claim] if claim else found

    def of(self, delta: dict[str, np.ndarray], samples: int = 20, codec: str = "uniform") -> bytes:
        """A body as an honest packer would make it."""
        return pack_update(Update(self.who.name, 0, 1, samples, "x", delta, codec=codec))

    def factor(self) -> np.ndarray:
        """An honest one."""
        labels = np.eye(len(LABELS))[self.rng.integers(len(LABELS), size=20)]
        x = self.rng.standard_normal((20, WIDTH))
        return factorise(np.hstack([x, np.ones((20, 1)), labels]), 0.005)

    def bomb(self) -> bytes:
        """The 281 bytes that asked for 4 GiB."""
        parts: dict[str, np.ndarray] = {
            f"shape:{STATISTICS}": np.array([1 << 26], np.int64),
            f"gaps:{STATISTICS}": np.array([(1 << 26) - 1], np.uint32),
            f"values:{STATISTICS}": np.ones(1, np.float16),
        }
        return self._headed(str(self.rng.choice(sorted(codecs()))), compress(save(parts)))

    def zeros(self) -> bytes:
        """A frame of zeros that unpacks to 200 MiB."""
        return self._headed("uniform", compress(bytes(200 << 20)))

    def _headed(self, codec: str, frame: bytes) -> bytes:
        text = json.dumps({"samples": 9, "reason": "x", "score": None, "codec": codec}).encode()
        return len(text).to_bytes(4, "little") + text + frame

    def mutated(self) -> Message:
        """A message of any kind with something changed, signed before or after."""
        header = MessageHeader("resume-request", RUN, self.who.name, self.sequence)
        ask = ResumeRequest(self.rng.bytes(16), int(self.rng.integers(1, 9))).pack()
        key = self.who.signing_key
        made = [
            *messages(sign_message(header, ask[: int(self.rng.integers(21))], key)),
            presence(RUN, self.who.name, ONLINE, NO_MODEL, key),
            self.update(self.of({STATISTICS: self.factor()}))[0],
        ][int(self.rng.integers(3))]
        pairs = list(made.pairs)
        place = int(self.rng.integers(len(pairs)))
        match int(self.rng.integers(4)):
            case 0:
                del pairs[place]
            case 1:
                pairs[place] = (pairs[place][0], self.rng.bytes(9).hex())
            case 2:
                pairs.append(pairs[place])
            case _:
                return replace(made, payload=self.rng.bytes(len(made.payload)))
        return replace(made, pairs=tuple(pairs), retain=False)


def attacks(one: Attacker) -> dict[str, Callable[[], list[Publish]]]:
    """Name to what one step of it publishes."""
    own = f"gradsense/v2/{RUN}/up/{one.who.name}"
    small = Message(f"{own}/update", payload=bytes(64))

    def at_1(made: list[Message]) -> list[Publish]:
        return [(message, 1) for message in made]

    def distorted() -> bytes:
        factor, kind = one.factor(), int(one.rng.integers(4))
        changed = [factor * 1e3, -factor, np.ones_like(factor), one.rng.random(factor.shape)][kind]
        return one.of({STATISTICS: changed.astype(np.float32)})

    zeros = one.zeros()
    return {
        "bombs": lambda: at_1(one.update(one.bomb()) + one.update(zeros)),
        "2^53 samples": lambda: at_1(
            one.update(one.of({STATISTICS: one.factor()}, samples=2**53 - 1))
        ),
        "distorted statistics": lambda: at_1(one.update(distorted())),
        "half uploads": lambda: at_1(one.update(one.rng.bytes(600 << 10), claim=2)),
        "mutations": lambda: at_1([one.mutated()]),
        "retained": lambda: [
            (Message(f"gradsense/v2/r{one.rng.integers(1 << 30)}/x", (), bytes(64), True), 1),
            (replace(small, retain=True), 1),
        ],
        "flood, QoS 1": lambda: [(small, 1)] * 20,
        "flood, QoS 0": lambda: [(small, 0)] * 20,
    }


def attack(bundles: list[Path], base: str, count: int, pause_s: float, log: Any) -> None:
    """Publish so many hostile messages, an equal share of each kind; runs in its own process."""
    rng = np.random.default_rng(0)
    attackers = [Attacker(bundle, base, rng) for bundle in bundles]
    clients = [_client(one) for one in attackers]
    plans = [attacks(one) for one in attackers]
    for name in plans[0]:
        sent, last = 0, None
        log.put((name, time.monotonic()))
        while sent < count / len(plans[0]):
            for client, plan in zip(clients, plans, strict=True):
                for message, qos in plan[name]():
                    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
                    if message.pairs:
                        properties.UserProperty = list(message.pairs)
                    last = client.publish(
                        message.topic, message.payload, qos, message.retain, properties
                    )
                    sent += 1
        if last is not None and last.rc == 0:
            last.wait_for_publish(30)
        time.sleep(pause_s)
    log.put(("", time.monotonic()))
    for client in clients:
        client.loop_stop()


def _client(one: Attacker) -> paho.Client:
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.tls_set_context(one.who.tls())
    client.connect(one.who.host, one.who.port)
    client.loop_start()
    return client


# The honest one -----------------------------------------------------------------------------


def honest(bundle: Path, stop: threading.Event) -> Iterator[tuple[float, float]]:
    """(when, seconds) of each round trip, until ``stop``; infinite where none came in 20 s."""
    who, came = identity.of_device(bundle), threading.Event()

    def on_message(arrival: Arrival) -> None:
        link.done(arrival)
        came.set()

    link = Link(
        who,
        subscriptions=[f"gradsense/v2/{RUN}/device/{who.name}/#"],
        on_message=on_message,
        rng=random.Random(0),
    )
    link.start()
    while not link.connected:
        time.sleep(0.02)
    number = 0
    while not stop.is_set():
        number += 1
        header = MessageHeader("resume-request", RUN, who.name, number)
        body = ResumeRequest(number.to_bytes(16, "little"), 3).pack()
        (message,) = messages(sign_message(header, body, who.signing_key))
        came.clear()
        began = time.monotonic()
        link.publish(message)
        yield began, time.monotonic() - began if came.wait(20) else float("inf")
        time.sleep(max(0.0, 0.1 - (time.monotonic() - began)))
    link.stop()


# All together -------------------------------------------------------------------------------


def play(
    folder: Path, count: int, *, attackers: int = ATTACKERS, pause_s: float = 0.5
) -> dict[str, Any]:
    """Figures of one attack with so many messages.

    Args:
        folder: an empty one.
        pause_s: after each kind of attack, six times as long before the first.

    Raises:
        InputError: no Mosquitto is installed.
    """
    fleet, port = folder / "fleet", free_port()
    create(fleet, None, port, now=time.time())
    job = Job(run=RUN, algorithm="gsfs", labels=LABELS)
    head = {
        HEAD_WEIGHT: np.zeros((len(LABELS), WIDTH), np.float32),
        HEAD_BIAS: np.zeros(len(LABELS), np.float32),
    }
    place = fleet / RUNS / RUN
    Run.create(place, job, head)
    (place / START).mkdir()
    (place / START / JOB_FILE).write_text(job.text())
    bundles = [folder / f"d{number}" for number in range(attackers + 1)]
    with opened(fleet) as registry:
        for bundle in bundles:
            registry.enroll(bundle.name, bundle, now=time.time() - 60, days=2, run=place / START)
    log = (folder / "processes.log").open("wb")
    broker = subprocess.Popen(
        [program(), "-c", str(fleet / "broker" / "mosquitto.conf")], stderr=log
    )
    await_listener(port)
    coordinator = subprocess.Popen(
        [sys.executable, "-m", "gradsense", "coordinator", "--fleet", str(fleet)],
        stderr=log,
    )
    resource.prlimit(coordinator.pid, resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    try:
        while not (read_status(fleet) or {}).get("connected"):
            time.sleep(0.1)
        return _played(fleet, bundles, (model_hash(head), count, pause_s), coordinator)
    finally:
        for process in (coordinator, broker):
            process.terminate()
            process.wait(20)
        log.close()


def _played(
    fleet: Path,
    bundles: list[Path],
    plan: tuple[str, int, float],
    coordinator: subprocess.Popen[bytes],
) -> dict[str, Any]:
    trips: list[tuple[float, float]] = []
    stop = threading.Event()
    listener = threading.Thread(target=lambda: trips.extend(honest(bundles[0], stop)))
    listener.start()
    time.sleep(6 * plan[2])
    context = multiprocessing.get_context("spawn")
    phases: Any = context.Queue()
    attacker = context.Process(target=attack, args=(bundles[1:], *plan, phases))
    attacker.start()
    attacker.join()
    stop.set()
    listener.join()
    marks = [phases.get() for _ in range(phases.qsize())]
    time.sleep(2)
    status = dict(read_status(fleet) or {})
    peak = Path(f"/proc/{coordinator.pid}/status").read_text() if coordinator.poll() is None else ""
    return {
        "crashed": coordinator.poll() is not None,
        "peak_mb": next((int(x.split()[1]) / 1024 for x in peak.splitlines() if "HWM" in x), 0.0),
        "phases": [
            (name, [s for at, s in trips if began <= at < ended])
            for (name, began), (_, ended) in itertools.pairwise(marks)
        ],
        "before": [s for at, s in trips if at < marks[0][1]],
        "refused": status["runs"][RUN]["refused"],
        "turned_away": status["turned_away"],
        "shut_out": status["shut_out"],
    }


def _quantiles(seconds: list[float]) -> list[str]:
    if not seconds:
        return ["-"] * 3
    return [f"{1e3 * float(np.quantile(seconds, q)):,.0f}" for q in (0.5, 0.99, 1.0)]


def main() -> None:
    """Run it and print the tables."""
    from benchmarks.shared import table  # noqa: PLC0415  (torch, for seconds; attackers need none)

    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--messages", type=int, default=100_000)
    arguments = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = play(Path(folder), arguments.messages)
    every = [s for _, trips in found["phases"] for s in trips]
    rows = [["before", str(len(found["before"])), *_quantiles(found["before"])]]
    rows += [[name, str(len(trips)), *_quantiles(trips)] for name, trips in found["phases"]]
    rows.append(["all attacks", str(len(every)), *_quantiles(every)])
    print(table(["attack", "round trips", "p50, ms", "p99, ms", "most, ms"], rows))
    away: dict[str, int] = {}
    for names in found["turned_away"].values():
        for name, number in names.items():
            away[name] = away.get(name, 0) + number
    print("refused by the run:   ", json.dumps(found["refused"]))
    print("turned away at its door:", json.dumps(away), "shut out:", sorted(found["shut_out"]))
    print(f"coordinator: crashed {found['crashed']}, most memory {found['peak_mb']:.0f} MB")


if __name__ == "__main__":
    main()
