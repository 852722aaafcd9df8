"""Updates over a link that loses, repeats, reorders and breaks: each is stored once, in order."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gradsense.agent.downlink import Downlink
from gradsense.agent.store import NO_MODEL, AgentStore
from gradsense.agent.uplink import Uplink
from gradsense.transport.chunks import Assembler, Resume, ResumeRequest
from gradsense.transport.messages import Message, SignedMessage, messages, read, sign, sign_message
from gradsense.transport.pacing import Rate
from gradsense.transport.payloads import Ack
from gradsense.transport.protocol import Kind, MessageHeader, Properties, check_body, describe

DEVICE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
COORDINATOR = Ed25519PrivateKey.from_private_bytes(bytes(range(32, 64)))
WINDOW = 3


def signed(sequence: int, chunks: int) -> SignedMessage:
    """An update of so many chunks, however small."""
    body = random.Random(sequence).randbytes(10 * chunks)
    header = MessageHeader("update", "plant", "gate", sequence, *NO_MODEL)
    return SignedMessage(sign(describe(header, body, chunks=chunks), DEVICE), body)


class Cloud:
    """An honest coordinator: what it acknowledges is in ``stored``, which survives a restart."""

    def __init__(self) -> None:
        self.stored: list[tuple[int, bytes]] = []
        self.chunks: Counter[int] = Counter()  # index to how often it came
        self.restart()

    def restart(self) -> None:
        self.assembler = Assembler()

    def hear(self, message: Message) -> list[Message]:
        """What it answers."""
        found = read(message, lambda topic: DEVICE.public_key())
        properties, device = found.properties, found.properties.header.device
        sequence = properties.header.sequence
        if found.chunk is not None:
            self.chunks[found.chunk.index] += 1
        if sequence in [number for number, _ in self.stored]:
            return self._answer("ack", properties, Ack(sequence).pack())
        if properties.header.kind == "resume-request":
            resume = self.assembler.resume(device, ResumeRequest.parse(found.body))
            return self._answer("resume", properties, resume.pack())
        assert found.chunk is not None
        body = self.assembler.add(device, found.chunk, 0.0).body
        if body is None:
            return []
        check_body(body, properties, 1 << 20)
        self.stored.append((sequence, body))
        return self._answer("ack", properties, Ack(sequence).pack())

    def _answer(self, kind: Kind, properties: Properties, body: bytes) -> list[Message]:
        header = MessageHeader(kind, "plant", "gate", properties.header.sequence, *NO_MODEL)
        return messages(sign_message(header, body, COORDINATOR))


class Device:
    """The device's side of the exchange, over one state folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, 0
        self.begin()

    def begin(self) -> None:
        self.memory = AgentStore(self.folder)
        self.uplink = Uplink(
            self.memory, DEVICE, Rate(None, 1 << 20), window=WINDOW, rng=random.Random(0)
        )
        self.downlink = Downlink("plant", "gate", COORDINATOR.public_key())

    def restart(self) -> None:
        self.memory.close()
        self.begin()

    def make(self, chunks: int) -> None:
        self.made += 1
        self.memory.save(({"sequence": self.made}, {}), update=signed(self.made, chunks))

    def hear(self, message: Message, now: float) -> None:
        found = self.downlink.take(message, now)
        if isinstance(found, Ack):
            self.uplink.on_ack(found)
        elif isinstance(found, Resume):
            self.uplink.on_resume(found, now)
        else:
            raise AssertionError(f"{found}: {self.downlink.refused}")


class Exchange(RuleBasedStateMachine):
    """A device and a coordinator, with a hostile network and two restless processes."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.device, self.cloud = Device(Path(self._folder.name)), Cloud()
        self.now, self.connected = 0.0, False
        self.up: list[Message] = []  # on their way to the broker
        self.broker: list[Message] = []  # confirmed by it, but not durable there
        self.down: list[Message] = []

    # The device -----------------------------------------------------------------------------

    @precondition(lambda self: self.device.made < 6)
    @rule(chunks=st.sampled_from([1, 1, 2, 5]))
    def make(self, chunks: int) -> None:
        self.device.make(chunks)

    @rule()
    def send(self) -> None:
        due = self.device.uplink.due(self.now, connected=self.connected, unacked=len(self.up))
        assert not due or len(self.up) + len(due) <= WINDOW
        self.up += due

    @rule(seconds=st.sampled_from([0.0, 1.0, 5.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def hear_of_a_model(self) -> None:
        self.device.uplink.on_model(self.now)

    # The network ----------------------------------------------------------------------------

    @precondition(lambda self: not self.connected)
    @rule()
    def connect(self) -> None:
        self.connected = True
        self.device.uplink.on_connect(self.now)

    @precondition(lambda self: self.connected)
    @rule(lost=st.booleans())
    def disconnect(self, lost: bool) -> None:
        """What was on its way up may have reached the broker or not; a clean session ends."""
        self.connected = False
        self.broker += [] if lost else self.up
        self.up, self.down = [], []
        self.device.uplink.on_disconnect()

    @precondition(lambda self: self.up)
    @rule()
    def confirm(self) -> None:
        self.broker.append(self.up.pop(0))

    @precondition(lambda self: self.broker)
    @rule(place=st.randoms(use_true_random=False), fate=st.sampled_from(["once", "twice", "lost"]))
    def deliver_up(self, place: random.Random, fate: str) -> None:
        message = place.choice(self.broker)
        if fate != "twice":
            self.broker.remove(message)
        if fate != "lost":
            self.down += self.cloud.hear(message)

    @precondition(lambda self: self.down and self.connected)
    @rule(place=st.randoms(use_true_random=False), fate=st.sampled_from(["once", "twice", "lost"]))
    def deliver_down(self, place: random.Random, fate: str) -> None:
        message = place.choice(self.down)
        if fate != "twice":
            self.down.remove(message)
        if fate != "lost":
            self.device.hear(message, self.now)

    # The processes --------------------------------------------------------------------------

    @rule()
    def restart_device(self) -> None:
        if self.connected:
            self.disconnect(lost=True)
        self.device.restart()

    @rule()
    def restart_coordinator(self) -> None:
        self.cloud.restart()

    @rule()
    def restart_broker(self) -> None:
        """All that it had confirmed is gone."""
        if self.connected:
            self.disconnect(lost=True)
        self.broker = []

    # What must hold -------------------------------------------------------------------------

    @invariant()
    def each_is_stored_once_and_in_order(self) -> None:
        sequences = [sequence for sequence, _ in self.cloud.stored]
        assert sequences == list(range(1, len(sequences) + 1))
        for sequence, body in self.cloud.stored:
            assert body == random.Random(sequence).randbytes(len(body))

    @invariant()
    def none_is_let_go_before_it_is_stored(self) -> None:
        acknowledged = self.device.memory.counters().get("acknowledged", 0)
        assert acknowledged <= len(self.cloud.stored)
        waiting = len(self.device.memory._db.all("SELECT 1 FROM outbox"))
        assert acknowledged + waiting == self.device.made

    def teardown(self) -> None:
        """The link heals: within a bounded time the outbox is empty."""
        if not self.connected:
            self.connect()
        for _ in range(60):
            self.send()
            self.broker, self.up = self.broker + self.up, []
            for message in self.broker:
                self.down += self.cloud.hear(message)
            self.broker = []
            for message in self.down:
                self.device.hear(message, self.now)
            self.down = []
            if self.device.memory.head() is None:
                break
            wake = self.device.uplink.wake_at(self.now)
            self.now = self.now if wake is None else wake  # None: the window was full
        assert self.device.memory.head() is None
        assert len(self.cloud.stored) == self.device.made
        self.each_is_stored_once_and_in_order()
        self.device.memory.close()
        self._folder.cleanup()


TestExchange = pytest.mark.slow(Exchange.TestCase)
TestExchange.settings = settings(max_examples=60, stateful_step_count=100, deadline=None)


# A slow link that breaks at 90 % goes on at 90 % -----------------------------------------------


@pytest.mark.parametrize("restarted", ["nobody", "device", "coordinator"])
def test_only_what_is_missing_is_sent_again(tmp_path: Path, restarted: str) -> None:
    device, cloud = Device(tmp_path), Cloud()
    device.make(chunks=10)
    device.uplink.on_connect(0.0)
    sent: list[Message] = []
    while due := device.uplink.due(0.0, connected=True, unacked=0):
        sent += due
    assert len(sent) == 10
    for message in sent[:9]:
        assert cloud.hear(message) == []
    device.uplink.on_disconnect()
    if restarted == "device":
        device.restart()
    if restarted == "coordinator":
        cloud.restart()  # it had nothing durable but what it acknowledged
    device.uplink.on_connect(1.0)
    again = device.uplink.due(1.0, connected=True, unacked=0)
    assert [message.topic.rpartition("/")[2] for message in again] == ["resume-request"]
    cloud.chunks.clear()
    for answer in cloud.hear(again[0]):
        device.hear(answer, 1.0)
    while due := device.uplink.due(1.0, connected=True, unacked=0):
        for message in due:
            for answer in cloud.hear(message):
                device.hear(answer, 1.0)
    expected = range(10) if restarted == "coordinator" else [9]
    assert cloud.chunks == Counter(expected)
    assert cloud.stored == [(1, signed(1, 10).body)]
    assert device.memory.head() is None
