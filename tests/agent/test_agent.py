"""The agent's loop over a link that the test holds: what it says, when, and what survives."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from gradsense.agent import agent as module
from gradsense.agent.agent import Agent
from gradsense.agent.limits import ResourceLimits
from gradsense.agent.plan import AgentPlan
from gradsense.data.synthetic.traffic import write_fleet
from gradsense.detection import bundle as bundles
from gradsense.federation.update import GlobalModel, Update
from gradsense.fleet import jobs
from gradsense.fleet.enrolment import create, opened
from gradsense.learning.learner import Tensors
from gradsense.learning.statistics import HEAD_BIAS, HEAD_WEIGHT
from gradsense.transport import identity
from gradsense.transport.connection import Arrival
from gradsense.transport.messages import Message, messages, read, sign_message, unsealed
from gradsense.transport.payloads import Ack, model_hash, open_presence, open_update, pack_model
from gradsense.transport.protocol import COORDINATOR, MessageHeader

FREE = ResourceLimits(
    nice=0, cpu_share=64.0, memory_mb=1 << 20, least_free_mb=0, temperature_c=None
)


class FakeLink:
    """Keeps what is published; the test says when it is connected."""

    made: ClassVar[list[FakeLink]] = []

    def __init__(self, identity: object, **options: Callable[..., None]) -> None:
        self.hear, self.greet = options["on_message"], options["on_connect"]
        self.said: list[Message] = []
        self.connected, self.unacked = True, 0
        FakeLink.made.append(self)

    def publish(self, message: Message) -> bool:
        self.said.append(message)
        return self.connected

    def done(self, arrival: Arrival) -> None:
        pass

    def resubscribe(self) -> bool:
        return True


class Site:
    """A device's folders, a coordinator's keys, and the agent of the moment."""

    def __init__(self, tmp_path: Path, edge: Path, *, sealed: bool = False) -> None:
        self.tmp_path = tmp_path
        create(tmp_path / "fleet", None, 8883, now=time.time())
        start = tmp_path / "fleet" / jobs.RUNS / "porch" / jobs.START
        start.mkdir(parents=True)
        manifest, _ = bundles.read(edge)
        self.job = jobs.Job(
            run="porch", algorithm="gsfs:floor=0.0", labels=manifest.labels, sealed=sealed
        )
        (start / jobs.JOB_FILE).write_text(self.job.text())
        shutil.copytree(edge, start / jobs.EDGE)
        with opened(tmp_path / "fleet") as fleet:
            fleet.enroll("cam", tmp_path / "bundle", now=time.time(), days=1, run=start)
        self.cloud = identity.of_coordinator(tmp_path / "fleet")
        self.device = identity.of_device(tmp_path / "bundle")
        self.classes = len(manifest.labels)
        (log,) = write_fleet(tmp_path / "captures", sites=1, flows=300, seed=1)
        self.log = log
        self.begin()

    def begin(self) -> None:
        """Start the agent, or start it again after a kill: nothing of the old one is called."""
        if hasattr(self, "agent"):
            self.agent.memory.close()
        self.agent = Agent(
            AgentPlan(
                bundle=self.tmp_path / "bundle",
                logs=[self.log],
                state=self.tmp_path / "state",
                limits=FREE,
                settle_s=0.0,
            ),
            rng=random.Random(0),
        )
        self.link = FakeLink.made[-1]
        self.link.greet(False)

    def hear(self, *publishes: Message) -> None:
        for message in publishes:
            self.link.hear(Arrival(message, retained=False))

    def head(self, version: int) -> Tensors:
        rng = np.random.default_rng(version)
        weight = rng.normal(size=(self.classes, 1520)).astype(np.float32)
        return {HEAD_WEIGHT: weight, HEAD_BIAS: np.zeros(self.classes, np.float32)}

    def model(self, version: int) -> list[Message]:
        tensors = self.head(version)
        digest = model_hash(tensors)
        header = MessageHeader("model", "porch", COORDINATOR, 0, version, digest)
        body = pack_model(GlobalModel(version, tensors))
        seal_for = self.cloud.peer_seal_key if self.job.sealed else None
        return messages(sign_message(header, body, self.cloud.signing_key, seal_for=seal_for))

    def ack(self, sequence: int, refusal: str = "") -> Message:
        header = MessageHeader("ack", "porch", "cam", sequence, 0, "0" * 64)
        signed = sign_message(header, Ack(sequence, refusal).pack(), self.cloud.signing_key)
        return messages(signed)[0]

    def work(self) -> None:
        """Until there is nothing to do for now."""
        while self.agent.step():
            pass

    def updates(self) -> list[Update]:
        """All updates that were published, as the coordinator would open them."""
        found = []
        for message in self.link.said:
            one = read(message, lambda _: self.device.signing_key.public_key())
            if one.properties.header.kind == "update":
                assert one.chunk is not None
                body = unsealed(one.chunk.piece, one.properties, self.cloud.own_seal_key)
                algorithm, head = self.job.rules, self.head(0)
                bounds = algorithm.shape_bounds(head, algorithm.rule.init(head))
                found.append(open_update(body, one.properties.header, algorithm.codec, bounds))
        return found

    def held(self) -> list[tuple[bool, int]]:
        """Presence: online, and the version held."""
        found = []
        for message in self.link.said:
            one = read(message, lambda _: self.device.signing_key.public_key())
            if one.properties.header.kind == "presence":
                found.append((open_presence(one.body), one.properties.header.base_version))
        return found


@pytest.fixture
def make(
    tmp_path: Path, edge_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Site]]:
    monkeypatch.setattr(module, "Link", FakeLink)
    sites: list[Site] = []

    def make(**options: bool) -> Site:
        sites.append(Site(tmp_path, edge_bundle, **options))
        return sites[-1]

    yield make
    for site in sites:
        site.agent.memory.close()


@pytest.fixture
def site(make: Callable[..., Site]) -> Site:
    return make()


def flows_of(log: Path) -> int:
    return sum(not line.startswith("#") for line in log.read_text().splitlines())


@pytest.mark.parametrize("sealed", [False, True])
def test_what_the_log_labels_is_told_once(make: Callable[..., Site], sealed: bool) -> None:
    site = make(sealed=sealed)
    site.work()
    assert site.updates() == [], "without a model there is nothing to compare with"
    site.hear(*site.model(0))
    site.work()
    (update,) = site.updates()
    assert (update.client, update.sequence, update.base_version) == ("cam", 1, 0)
    assert update.samples == flows_of(site.log)
    site.hear(site.ack(1), *site.model(1))
    site.work()
    assert len(site.updates()) == 1
    assert site.held() == [(True, 0), (True, 0), (True, 1)]


def test_an_update_outlives_the_process(site: Site) -> None:
    site.hear(*site.model(0))
    site.work()
    before = site.updates()
    site.begin()
    site.work()
    (again,) = site.updates()
    assert (again.sequence, again.samples) == (1, before[0].samples)
    site.hear(site.ack(1))
    site.work()
    site.begin()
    site.work()
    assert site.updates() == [], "it was acknowledged"


def test_the_detector_gets_every_model_but_the_first(site: Site) -> None:
    place = site.tmp_path / "state" / module.DETECTOR
    site.hear(*site.model(0))
    site.work()
    assert not place.exists()
    site.hear(site.ack(1), *site.model(1))
    site.work()
    manifest, _ = bundles.read(place)
    assert manifest.provenance["fleet"]["version"] == 1


def test_a_hand_over_that_a_kill_cut_off_is_made_up_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "hand_over", lambda *_, **__: None)
    site.hear(*site.model(0), *site.model(1))
    site.work()
    monkeypatch.undo()
    monkeypatch.setattr(module, "Link", FakeLink)
    site.begin()
    site.agent._repair_detector()
    manifest, _ = bundles.read(site.tmp_path / "state" / module.DETECTOR)
    assert manifest.provenance["fleet"]["version"] == 1


def test_a_newer_model_interrupts_a_visit_but_not_two_in_a_row(site: Site) -> None:
    site.hear(*site.model(0))
    gather = site.agent._gather
    while not len(site.agent.memory):
        site.agent._exchange()
        gather()
    site.agent.step()  # adopts version 0
    site.hear(*site.model(1))
    site.agent._work()  # hears of it between two blocks
    assert site.agent.counts["interrupted"] == 1
    assert site.updates() == []
    site.agent.step()
    assert site.agent.client.version == 1
    site.hear(*site.model(2))
    site.agent._work()
    assert site.agent.counts["interrupted"] == 1
    assert site.agent.client.version == 1
    site.work()
    assert [update.base_version for update in site.updates()] == [1]
    assert site.agent.client.version == 2


def test_what_was_refused_is_told_again_with_the_next_model(site: Site) -> None:
    site.hear(*site.model(0))
    site.work()
    site.hear(site.ack(1, "unknown-base"))
    site.work()
    assert len(site.updates()) == 1, "not before there is another model"
    site.begin()  # and it is remembered
    site.hear(*site.model(1))
    site.work()
    (update,) = site.updates()
    assert (update.sequence, update.samples) == (2, flows_of(site.log))


def test_a_device_that_lost_its_state_does_not_tell_twice(site: Site) -> None:
    site.hear(*site.model(0))
    site.work()
    site.hear(site.ack(1, "replay"), *site.model(1))
    site.work()
    assert len(site.updates()) == 1
    assert site.agent.memory.head() is None


def test_a_full_outbox_stops_the_work_and_loses_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(site.agent.memory), "full", True)
    site.hear(*site.model(0))
    site.work()
    assert site.updates() == []
    monkeypatch.undo()
    monkeypatch.setattr(module, "Link", FakeLink)
    site.work()
    assert len(site.updates()) == 1
