"""A device and a coordinator that is restored from backups, step by step in one process."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.agent.downlink import Downlink, Repeated
from gradsense.agent.recheck import Recheck
from gradsense.agent.store import AgentStore
from gradsense.agent.uplink import Uplink
from gradsense.coordinator.run import Run
from gradsense.federation.update import GlobalModel
from gradsense.learning.statistics import HEAD_BIAS, HEAD_WEIGHT, STATISTICS
from gradsense.transport.chunks import Resume
from gradsense.transport.messages import Message, SignedMessage
from gradsense.transport.pacing import Rate
from gradsense.transport.payloads import Ack
from gradsense.transport.protocol import COORDINATOR, NO_MODEL, MessageHeader, describe
from tests.support.toy_fleet import (
    RUN,
    job,
    new_run,
    open_run,
    signed_update,
    signing_key,
    status,
)
from tests.support.toys import factor_of, update

START = {HEAD_WEIGHT: np.zeros((2, 9), np.float32), HEAD_BIAS: np.zeros(2, np.float32)}
ALGORITHM, RECORDS = "gsfs:share=1.0", 9


class Pair:
    """One device, one coordinator, and what is under way between them, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now, self.made = folder, 0.0, 0
        self.memory = AgentStore(folder / "device")
        self.run: Run | None = new_run(folder / "run", START, algorithm=ALGORITHM)
        self.up: deque[Message] = deque([status("cam")])
        self.down: deque[Message] = deque()
        self.restored: list[int] = []
        self.begin()
        self.save()

    def begin(self) -> None:
        """Start the device, or start it again after a kill; its connection is new."""
        key, rng = signing_key("cam"), random.Random(0)
        self.downlink = Downlink(
            RUN,
            "cam",
            signing_key(COORDINATOR).public_key(),
            held=self.memory.model(),
            epochs=self.memory.epochs(),
        )
        self.uplink = Uplink(self.memory, key, Rate(None, 1), rng=rng)
        self.recheck = Recheck(self.memory, key, rng)
        self.down.clear()
        if self.run is not None:
            self.down.extend(self.run.announce())
        self.uplink.on_connect(self.now)
        self.recheck.on_connect(self.now)

    # What may happen ------------------------------------------------------------------------

    def make(self) -> None:
        self.made += 1
        version, base = self.memory.held()
        one = update(
            "cam",
            sequence=self.made,
            base_version=version,
            samples=RECORDS,
            delta={STATISTICS: factor_of(self.made, RECORDS, features=9)},
            codec=job(algorithm=ALGORITHM).rules.codec.name,
        )
        values: dict[str, Any] = {"sequence": self.made}
        self.memory.save((values, {}), update=signed_update(one, base))

    def send(self) -> None:
        self.now += 20.0
        said = self.recheck.due(self.now, connected=True)
        if not self.recheck.pending:
            said = self.uplink.due(self.now, connected=True, unacked=0)
        self.up.extend(said)

    def coordinate(self) -> None:
        """Take in one message of what waits at the broker."""
        if self.run is not None and self.up:
            self.down.extend(self.run.take([self.up.popleft()], now=self.now, wall=0.0))

    def hear(self) -> None:
        if not self.down:
            return
        news = self.downlink.take(self.down.popleft(), self.now)
        self.recheck.notice(self.downlink.latest, self.now)
        match news:
            case Ack() if self.recheck.pending:
                if self.recheck.on_ack(news):
                    self.uplink.on_offers()
            case Resume() if self.recheck.pending:
                if self.recheck.on_resume(news, self.now):
                    self.uplink.on_offers()
            case Ack():
                self.uplink.on_ack(news)
            case Resume():
                self.uplink.on_resume(news, self.now)
            case GlobalModel():
                state: dict[str, Any] = {"sequence": self.made}
                self.memory.save((state, {}), model=news, epoch=self.downlink.epoch)
            case Repeated():
                self.memory.same_model(self.downlink.epoch)

    def save(self) -> None:
        """Make a backup."""
        shutil.rmtree(self.folder / "copy", ignore_errors=True)
        assert self.run is not None
        self.run.close()
        shutil.copytree(self.folder / "run", self.folder / "copy")
        self.open()

    def restore(self) -> None:
        """The coordinator is killed and restored; what waits at the broker stays there."""
        assert self.run is not None
        self.run.close()
        shutil.rmtree(self.folder / "run")
        shutil.copytree(self.folder / "copy", self.folder / "run")
        self.open()

    def open(self) -> None:
        self.now += 1.0
        # The wall clock of a restored coordinator is later than that of the one before.
        self.run = open_run(self.folder / "run", wall=1000.0 + self.now)
        self.up.append(status("cam"))  # the broker has kept it, and passes it on again
        self.down.extend(self.run.announce())

    def kill(self) -> None:
        """The device: what was on its way to it is lost, and its store stays."""
        self.memory.close()
        self.memory = AgentStore(self.folder / "device")
        self.begin()

    def close(self) -> None:
        self.memory.close()
        if self.run is not None:
            self.run.close()

    def settle(self) -> None:
        for _ in range(400):
            self.send()
            while self.up or self.down:
                self.coordinate()
                self.hear()
            if self.memory.head() is None and not self.recheck.pending:
                return
        raise AssertionError("not settled")

    def check(self) -> None:
        """Every update is pooled once, and both hold the same model."""
        assert self.run is not None
        told = self.run.status()
        assert told.updates == self.made
        assert told.refused == {}
        assert self.memory.counters().get("acknowledged", 0) == self.made
        held = self.downlink.epoch, *self.memory.held()
        assert held[1:] == (told.version, told.hash)
        if not self.made:
            return
        assert told.devices["cam"].records == pytest.approx(RECORDS * self.made, rel=0.05)


STEPS = ["make", "make", "send", "send", "coordinate", "coordinate", "hear", "hear"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([*STEPS, "kill", "save", "restore"]), max_size=60))
def test_nothing_acknowledged_is_lost_or_counted_twice(steps: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(Path(folder))
        pair.settle()
        for step in steps:
            if step != "make" or pair.made < 40:
                getattr(pair, step)()
        pair.settle()
        pair.check()
        pair.close()


def test_what_the_backup_lacks_is_offered_again_in_order(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.settle()
    for number in range(1, 6):
        pair.make()
        pair.settle()
        if number == 2:
            pair.save()
            pair.settle()
    pair.make()
    pair.send()  # the sixth waits at the broker while the coordinator is restored
    pair.restore()
    assert pair.run is not None
    assert pair.run.status().updates == 2
    pair.settle()
    assert pair.memory.counters() == {"acknowledged": 6, "offered-again": 3}
    pair.check()
    pair.close()


def test_a_restart_without_a_restore_asks_once_and_offers_nothing(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.make()
    pair.settle()
    pair.save()
    pair.settle()
    assert pair.memory.counters() == {"acknowledged": 1}
    pair.check()
    pair.close()


def test_what_is_kept_is_bounded_and_the_oldest_goes_first(tmp_path: Path) -> None:
    for name, keep, left in (("number", (2, 1000), [2, 3]), ("bytes", (9, 25), [2, 3])):
        memory = AgentStore(tmp_path / name, keep=keep)
        for sequence in (1, 2, 3):
            properties = describe(
                MessageHeader("update", RUN, "cam", sequence, *NO_MODEL), b"b" * 10
            )
            signed = SignedMessage(properties, b"b" * 10)
            memory.save(({"sequence": sequence}, {}), update=signed)
            assert memory.acknowledged(sequence)
        memory.begin_epoch(1)
        asked = []
        while (one := memory.asked()) is not None:
            asked.append(one.properties.header.sequence)
            again = memory.unknown()
        assert asked == left[::-1]
        assert again == len(left), "where none is known all are offered"
        head = memory.head()
        assert head is not None
        assert head.properties.header.sequence == left[0]
        memory.close()
