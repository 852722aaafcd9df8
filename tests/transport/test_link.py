"""The link against a real Mosquitto over TLS: what arrives, what comes again, what comes back."""

from __future__ import annotations

import logging
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradsense.transport.connection import Arrival, Link, size
from gradsense.transport.identity import Identity
from gradsense.transport.messages import Message
from tests.support.mosquitto import WAIT_S
from tests.support.tls_broker import TlsBroker

pytestmark = pytest.mark.broker

RUN = "gradsense/v2/run1"
UP, DOWN, ACK = f"{RUN}/up/a/update", f"{RUN}/down/model", f"{RUN}/device/a/ack"
STATUS = f"{RUN}/up/a/presence"
PAIRS = (("gs-kind", "update"), ("gs-run", "run1"), ("gs-run", "größer"))


class Side:
    """A link that writes down what happens to it."""

    def __init__(self, identity: Identity, *topics: str, acks: bool = True, **more: Any) -> None:
        self.got: list[Arrival] = []
        self.opened: list[bool] = []
        self.broken = 0
        self._acks, self._news = acks, threading.Condition()
        self.link = Link(
            identity,
            subscriptions=topics,
            on_message=self._hear,
            on_connect=lambda session: self._tell(lambda: self.opened.append(session)),
            on_disconnect=lambda: self._tell(self._break),
            rng=random.Random(0),
            **{"keepalive_s": 1, **more},
        )
        self.link.start()

    def _break(self) -> None:
        self.broken += 1

    def _hear(self, arrival: Arrival) -> None:
        self._tell(lambda: self.got.append(arrival))
        if arrival.message.payload == b"poison":
            raise KeyError("poison")
        if self._acks:
            self.link.done(arrival)

    def _tell(self, change: Callable[[], None]) -> None:
        with self._news:
            change()
            self._news.notify_all()

    def until(self, found: Callable[[], bool]) -> None:
        with self._news:
            for _ in range(int(WAIT_S / 0.02)):
                if found():
                    return
                self._news.wait(0.02)  # nobody is told when the link counts something
            raise AssertionError((self.got, self.link.counts))

    def hears(self, payload: bytes, times: int = 1) -> Arrival:
        def found() -> list[Arrival]:
            return [one for one in self.got if one.message.payload == payload]

        self.until(lambda: len(found()) >= times)
        return found()[-1]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsBroker]:
    running = TlsBroker(tmp_path_factory.mktemp("fleet"))
    yield running
    running.stop()


@contextmanager
def ended(*sides: Side) -> Iterator[None]:
    try:
        yield
    finally:
        for side in sides:
            side.link.stop()


@pytest.fixture
def join(broker: TlsBroker) -> Iterator[Callable[..., Side]]:
    """Connects the coordinator or a device and waits until it is in."""
    sides: list[Side] = []

    def connect(name: str, *topics: str, **more: Any) -> Side:
        identity = broker.coordinator if name == "coordinator" else broker.device(name)
        side = Side(identity, *topics, **more)
        sides.append(side)
        side.until(lambda: side.link.connected)
        return side

    yield connect
    for side in sides:
        side.link.stop()


def test_both_sides_hear_each_other_with_all_properties(join: Callable[..., Side]) -> None:
    coordinator = join("coordinator", f"{RUN}/up/#")
    device = join("a", DOWN, f"{RUN}/device/a/#")
    up, body = Message(UP, PAIRS, bytes(range(256)) * 1024), b"\xff\x00"
    assert device.link.publish(up)
    assert coordinator.hears(up.payload).message == up
    assert coordinator.link.publish(Message(ACK, PAIRS[:1], body))
    assert device.hears(body).message == Message(ACK, PAIRS[:1], body)
    device.until(lambda: device.link.unacked == 0)
    counts = device.link.counts
    assert (counts.connects, counts.disconnects, counts.sent, counts.received) == (1, 0, 1, 1)
    # Topic, six words of properties (two letters of one take two bytes), payload.
    assert counts.bytes_sent == len(UP) + 35 + 2 + (1 << 18) == size(up)
    assert counts.bytes_received == len(ACK) + 13 + 2
    assert counts.refused == counts.faults == {}


def test_a_retained_message_comes_late_and_once_more_when_asked_for(
    join: Callable[..., Side],
) -> None:
    coordinator = join("coordinator")
    assert coordinator.link.publish(Message(DOWN, PAIRS, b"model", retain=True))
    coordinator.until(lambda: coordinator.link.unacked == 0)
    device = join("a", DOWN, f"{DOWN}/#")
    assert device.hears(b"model").retained
    assert device.hears(b"model").message.pairs == PAIRS
    before = len(device.got)
    assert device.link.resubscribe()
    device.until(lambda: len(device.got) > before)
    assert coordinator.link.publish(Message(DOWN, (), b"", retain=True))
    assert not device.hears(b"").retained


CHILD = """
import random, sys
from pathlib import Path
from gradsense.transport.messages import Message
from gradsense.transport.identity import of_device
from gradsense.transport.connection import Link
will = Message(sys.argv[2], (("gs-kind", "status"),), b"offline", retain=True)
link = Link(of_device(Path(sys.argv[1])), subscriptions=(), on_message=print, will=will,
            rng=random.Random(0))
link.start()
while not link.publish(Message(sys.argv[2], (), b"online", retain=True)):
    pass
sys.stdin.read()
"""


def test_the_last_will_follows_a_kill_and_not_a_goodbye(
    broker: TlsBroker, join: Callable[..., Side]
) -> None:
    coordinator = join("coordinator", STATUS)
    command = [sys.executable, "-c", CHILD, str(broker.bundle("a")), STATUS]
    child = subprocess.Popen(command, stdin=subprocess.PIPE)
    coordinator.hears(b"online")
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdin.close()  # type: ignore[union-attr]
    assert coordinator.hears(b"offline").message.pairs == (("gs-kind", "status"),)
    device = join("a", will=Message(STATUS, (), b"lost"))
    device.link.stop([Message(STATUS, (), b"goodbye")])
    coordinator.hears(b"goodbye")
    assert not device.link.connected
    assert device.link.counts.disconnects == 0
    join("b").link.publish(Message(f"{RUN}/up/b/presence", (), b"after"))
    assert b"lost" not in [one.message.payload for one in coordinator.got]
    coordinator.link.publish(Message(STATUS, (), b"", retain=True))
    coordinator.hears(b"")


@pytest.mark.parametrize("kill", [True, False])
def test_it_comes_back_after_the_broker_did_and_sends_nothing_by_itself(
    broker: TlsBroker, join: Callable[..., Side], kill: bool
) -> None:
    coordinator, device = join("coordinator", f"{RUN}/up/#"), join("a", DOWN)
    broker.freeze()
    for number in range(30):  # more than may be on the way at once
        assert device.link.publish(Message(UP, (), b"%d" % number))
    assert device.link.unacked == 30
    if not kill:
        broker.thaw()
    broker.restart(kill=kill)
    for side in (coordinator, device):
        side.until(lambda side=side: len(side.opened) == 2 and side.link.connected)
        assert side.broken == side.link.counts.disconnects == 1
    assert device.link.unacked == 0
    assert device.link.publish(Message(UP, (), b"after"))
    coordinator.hears(b"after")
    if kill:
        assert [one.message.payload for one in coordinator.got] == [b"after"]


def test_a_half_open_connection_is_found_and_nothing_is_queued(
    broker: TlsBroker, join: Callable[..., Side]
) -> None:
    device = join("a")
    broker.freeze()
    try:
        device.until(lambda: device.broken == 1)
        assert not device.link.connected
        assert not device.link.publish(Message(UP, (), b"into the void"))
        assert not device.link.resubscribe()
        assert device.link.unacked == 0
    finally:
        broker.thaw()
    device.until(lambda: len(device.opened) == 2)
    assert device.link.counts.sent == 0


def test_what_was_not_done_comes_again(broker: TlsBroker, join: Callable[..., Side]) -> None:
    device = join("a")
    first = join("coordinator", UP, acks=False, session_s=600)
    for body in (b"1", b"2"):
        device.link.publish(Message(UP, PAIRS, body))
        first.hears(body)
    first.link.done(first.hears(b"1"))
    first.link.stop()
    device.link.publish(Message(UP, PAIRS, b"3"))
    again = join("coordinator", UP, session_s=600)
    again.hears(b"3")
    assert again.opened == [True]
    assert [one.message.payload for one in again.got] == [b"2", b"3"]
    again.link.stop()
    clean = join("coordinator", UP)  # ends the session
    assert clean.opened == [False]
    device.link.publish(Message(UP, PAIRS, b"4"))
    clean.hears(b"4")
    assert [one.message.payload for one in clean.got] == [b"4"]


def test_a_receipt_of_an_earlier_connection_acknowledges_nothing(
    join: Callable[..., Side],
) -> None:
    device, session = join("a"), {"acks": False, "session_s": 600}
    first = join("coordinator", UP, **session)
    device.link.publish(Message(UP, PAIRS, b"1"))
    old = first.hears(b"1")
    first.link.stop()
    second = join("coordinator", UP, **session)  # it gets the same number again
    second.hears(b"1")
    second.link.done(old)
    second.link.stop([Message(DOWN, (), b"flushes what was sent")])
    third = join("coordinator", UP, **{**session, "acks": True})
    third.hears(b"1")
    third.link.stop()
    join("coordinator")  # ends the session


def test_no_more_arrives_than_may_be_under_way(join: Callable[..., Side]) -> None:
    device, slow = join("a"), join("coordinator", UP, acks=False, receive_maximum=2)
    other = join("b")
    for number in range(6):
        device.link.publish(Message(UP, (), b"%d" % number))
    slow.hears(b"1")
    device.until(lambda: device.link.unacked == 0)
    other.link.publish(Message(f"{RUN}/up/b/update", (), b"x"))
    other.until(lambda: other.link.unacked == 0)
    assert len(slow.got) == 2
    for number in range(6):
        slow.link.done(slow.hears(b"%d" % number))
    assert [one.message.payload for one in slow.got] == [b"%d" % number for number in range(6)]


def test_an_error_of_the_receiver_is_counted_and_stops_nothing(
    join: Callable[..., Side], caplog: pytest.LogCaptureFixture
) -> None:
    device, coordinator = join("a"), join("coordinator", UP, receive_maximum=2)
    for body in (*(b"poison",) * 5, b"after"):
        device.link.publish(Message(UP, (), body))
    coordinator.hears(b"after")
    assert coordinator.link.counts.faults == {"KeyError": 5}
    assert sum("KeyError" in record.message for record in caplog.records) == 1
    assert coordinator.broken == 0


def test_what_the_broker_does_not_allow_is_counted_by_name(join: Callable[..., Side]) -> None:
    device = join("a")
    device.link.publish(Message(f"{RUN}/up/b/update", (), b"forged"))
    device.until(lambda: device.link.counts.refused == {"publish: Not authorized": 1})
    assert device.link.unacked == 0


def refused(side: Side, name: str) -> None:
    """It is turned away again and again, and says so once."""
    with ended(side):
        side.until(lambda: side.link.counts.refused.get(name, 0) >= 2)
        assert set(side.link.counts.refused) == {name}
        assert side.link.counts.connects == 0
        assert side.opened == []


def test_strangers_and_wrong_brokers_are_told_what_to_do(
    broker: TlsBroker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    foreign = TlsBroker(tmp_path)
    foreign.stop()
    own, stranger = broker.device("a"), foreign.device("a")
    cases = [
        (replace(stranger, port=broker.port), "broker-certificate", "take its own bundle"),
        (
            replace(stranger, port=broker.port, ca=own.ca, crl=own.crl),
            *("own-certificate", "fleet list"),
        ),
        (replace(own, host="127.1"), "broker-host", "--broker"),
        (stranger, "unreachable", "goes on trying"),
    ]
    for identity, name, mend in cases:
        caplog.clear()
        refused(Side(identity), name)
        assert [mend in record.message for record in caplog.records] == [True], caplog.text
        assert "PRIVATE" not in caplog.text


def test_a_revoked_device_stays_out(broker: TlsBroker) -> None:
    lost = broker.device("lost")
    broker.revoke("lost")
    broker.restart()  # it comes to a signal when it comes to it
    refused(Side(lost), "own-certificate")


def test_a_device_without_a_clock_believes_the_broker_after_its_end(tmp_path: Path) -> None:
    old = TlsBroker(tmp_path, age_s=3 * 365 * 86400.0)  # the broker's certificate lasts two years
    try:
        device = Side(old.device("a"), check_dates=False)
        with ended(device):
            device.until(lambda: device.link.connected)
        refused(Side(old.device("a")), "broker-dates")
    finally:
        old.stop()


def test_it_stops_while_no_broker_answers(broker: TlsBroker) -> None:
    side = Side(replace(broker.device("a"), port=1))
    side.until(lambda: bool(side.link.counts.refused))
    side.link.stop([Message(STATUS, (), b"nobody hears")])
    assert "mqtt-a" not in [thread.name for thread in threading.enumerate()]
