"""Intruders over a real broker: each is refused, named and counted, and the fleet goes on.

Who cannot even connect (no certificate, wrong CA, expired, revoked, another's session) is tried in
tests/fleet/test_broker.py, and what a device refuses in tests/agent/test_downlink.py.
"""

from __future__ import annotations

import dataclasses
import random
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from gradsense.coordinator.service import CoordinatorService
from gradsense.federation.update import Update
from gradsense.fleet.jobs import Job
from gradsense.transport.connection import Arrival, Link
from gradsense.transport.messages import Message, messages, sign_message
from gradsense.transport.payloads import Ack, model_hash, pack_update
from gradsense.transport.protocol import MessageHeader
from tests.support.live_coordinator import Teller, eventually, new_run, working
from tests.support.tls_broker import TlsBroker
from tests.support.toys import tensor, update

pytestmark = pytest.mark.broker

START = {"w": tensor(0.0, 0.0)}
BASE = model_hash(START)
#: The pool waits for a third device, which is silent, so nothing is aggregated meanwhile.
JOB = Job(run="porch", algorithm="fedavg", labels=("no", "yes"), min_devices=3, interval_s=0.0)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsBroker]:
    made = TlsBroker(tmp_path_factory.mktemp("intruders"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def process(broker: TlsBroker) -> Iterator[CoordinatorService]:
    new_run(broker.fleet, JOB, START)
    with working(broker.fleet) as made:
        yield made


@pytest.fixture(scope="module")
def honest(broker: TlsBroker, process: CoordinatorService) -> Iterator[Teller]:
    made = Teller(broker, "porch", "honest")
    silent = Teller(broker, "porch", "silent")
    yield made
    for teller in (made, silent):
        teller.link.stop()


@pytest.fixture(scope="module")
def mallory(broker: TlsBroker, process: CoordinatorService, honest: Teller) -> Iterator[Teller]:
    made = Teller(broker, "porch", "mallory")
    eventually(lambda: process.latest["runs"]["porch"]["started"])
    yield made
    made.link.stop()


def said(sequence: int, **fields: object) -> Update:
    delta = {"w": tensor(1.0, 2.0)}
    return update("mallory", **{"sequence": sequence, "delta": delta} | fields)


def refused(process: CoordinatorService) -> dict[str, int]:
    return dict(process.latest["runs"]["porch"]["refused"])


def altered(message: Message, **fields: object) -> Message:
    pairs = tuple((name, str(fields.get(name, value))) for name, value in message.pairs)
    return dataclasses.replace(message, pairs=pairs)


def flip(message: Message) -> Message:
    payload = bytearray(message.payload)
    payload[-1] ^= 1
    return dataclasses.replace(message, payload=bytes(payload))


def bomb(sequence: int) -> bytes:
    """A body of some kilobytes whose frame declares 300 MiB of zeros."""
    return pack_update(said(sequence, packed=bytes(300 << 20)))


def lying(teller: Teller, n: int) -> list[Message]:
    """Signed well, but as another device."""
    header = MessageHeader("update", "porch", "honest", n, 0, BASE)
    signed = sign_message(header, pack_update(said(n)), teller.identity.signing_key)
    topic = "gradsense/v2/porch/up/mallory/update"
    return [dataclasses.replace(one, topic=topic) for one in messages(signed)]


def sealed_for_another(teller: Teller, n: int) -> list[Message]:
    header = MessageHeader("update", "porch", "mallory", n, 0, BASE)
    other = teller.identity.own_seal_key.public_key()
    body = pack_update(said(n))
    return messages(sign_message(header, body, teller.identity.signing_key, seal_for=other))


Attack = Callable[[Teller, int], list[Message]]

#: Name under which it is refused, and what is said. Nothing of these is answered.
UNANSWERED: list[tuple[str, Attack]] = [
    ("bad-properties", lambda m, n: [Message("gradsense/v2/porch/up/mallory/update")]),
    ("unsupported-schema", lambda m, n: [altered(m.sent(said(n), BASE)[0], **{"gs-schema": "1"})]),
    ("bad-signature", lying),
    ("bad-signature", lambda m, n: [altered(m.sent(said(n), BASE)[0], **{"gs-sequence": n + 1})]),
    (
        "bad-chunk",
        lambda m, n: [
            dataclasses.replace(one, payload=one.payload[:-1]) for one in m.sent(said(n), BASE)
        ],
    ),
    ("wrong-hash", lambda m, n: [flip(one) for one in m.sent(said(n), BASE)]),
]

#: The same of what is answered, since the device's own key has signed it.
ANSWERED: dict[str, Attack] = {
    "too-large": lambda m, n: m.sent(said(n), BASE, raw=bomb(n)),
    "bad-body": lambda m, n: m.sent(said(n), BASE, raw=b"no frame at all"),
    "wrong-codec": lambda m, n: m.sent(said(n, codec="topk"), BASE),
    "cannot-open": sealed_for_another,
    "unknown-base": lambda m, n: m.sent(said(n), "1" * 64),
    "unknown-tensor": lambda m, n: m.sent(said(n, delta={"v": tensor(1.0)}), BASE),
    "wrong-shape": lambda m, n: m.sent(said(n, delta={"w": tensor(1.0)}), BASE),
    "not-finite": lambda m, n: m.sent(said(n, delta={"w": tensor(np.nan, 0.0)}), BASE),
    "norm-too-large": lambda m, n: m.sent(said(n, delta={"w": tensor(1e9, 0.0)}), BASE),
    "bad-sample-count": lambda m, n: m.sent(said(n, samples=-5), BASE),
}


@pytest.mark.parametrize(("name", "attack"), UNANSWERED)
def test_what_is_not_signed_well_is_counted_by_name(
    process: CoordinatorService, mallory: Teller, name: str, attack: Attack
) -> None:
    before = refused(process).get(name, 0)
    mallory.say(attack(mallory, 50))
    eventually(lambda: refused(process).get(name, 0) == before + 1)
    assert mallory.arrivals.empty()


@pytest.mark.parametrize(("number", "name"), list(enumerate(ANSWERED, 100)))
def test_what_is_signed_well_and_wrong_is_refused_by_name(
    process: CoordinatorService, mallory: Teller, number: int, name: str
) -> None:
    mallory.say(ANSWERED[name](mallory, number))
    assert mallory.hear() == Ack(number, name)
    eventually(lambda: refused(process).get(name) == 1)


def test_replayed_and_reordered_updates_count_once(
    process: CoordinatorService, honest: Teller
) -> None:
    first, third = (update("honest", sequence=n, delta={"w": tensor(1.0, 2.0)}) for n in (1, 3))
    publishes = honest.sent(first, BASE)
    honest.say(publishes)
    assert honest.hear() == Ack(1)
    honest.say(publishes)  # recorded on the way and sent again: answered as before
    assert honest.hear() == Ack(1)
    honest.tell(third, BASE)
    second = update("honest", sequence=2, delta={"w": tensor(1.0, 2.0)})
    honest.say(honest.sent(second, BASE))
    assert honest.hear() == Ack(2), "late, as after a restored backup, and once"
    honest.say(honest.sent(second, BASE))
    assert honest.hear() == Ack(2)
    other = update("honest", sequence=1, delta={"w": tensor(9.0, 9.0)})
    honest.say(honest.sent(other, BASE))  # the same number for something else
    assert honest.hear() == Ack(1, "replay")
    eventually(lambda: refused(process).get("replay") == 1)
    told = process.latest["runs"]["porch"]
    assert told["devices"]["honest"]["updates"] == 3
    assert told["duplicates"] == 2


def test_a_device_may_neither_speak_as_another_nor_listen_to_it(
    broker: TlsBroker, process: CoordinatorService, honest: Teller
) -> None:
    heard: list[Arrival] = []
    greeted = threading.Event()
    link = Link(
        broker.device("eve"),
        subscriptions=["gradsense/v2/porch/device/honest/#", "gradsense/v2/porch/up/#", "#"],
        on_message=heard.append,
        on_connect=lambda _: greeted.set(),
        rng=random.Random(0),
    )
    link.start()
    eventually(greeted.is_set)
    for message in honest.sent(update("honest", sequence=9), BASE):
        link.publish(message)
    eventually(lambda: link.counts.refused)
    fine = update("honest", sequence=10, delta={"w": tensor(0.5, 0.5)})
    honest.tell(fine, BASE)
    eventually(lambda: process.latest["runs"]["porch"]["devices"]["honest"]["sequence"] == 10)
    assert process.latest["runs"]["porch"]["devices"]["honest"]["updates"] == 4
    # These are for every device; nothing else came through.
    down = {f"gradsense/v2/porch/down/{kind}" for kind in ("model", "revoked")}
    assert {arrival.message.topic for arrival in heard} == down
    link.stop()


def test_nothing_stopped(process: CoordinatorService, honest: Teller) -> None:
    """The last word: after all of that an honest update is still taken in."""
    honest.tell(update("honest", sequence=11, delta={"w": tensor(0.1, 0.1)}), BASE)
    told = process.latest
    assert told["connected"]
    assert told["runs"]["porch"]["version"] == 0
    assert told["counts"].get("stalls", 0) == 0
