"""The training agent: reads the site's labelled flows, senses, uploads, adopts global models.

One thread does it all. Training is interrupted between two blocks: to rest within the limits, to
send and to receive. A newer model ends a slice at once; what the slice had done is lost, and the
flows are read again from the model that came.

Everything that must survive is in the store before it is sent, so whatever goes wrong,
a full disk too, the agent may simply end: started again it goes on from there.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from gradsense.agent.downlink import Downlink, Repeated, RevokedBrokers
from gradsense.agent.handover import DETECTOR, hand_over, hand_over_weights, handed_over
from gradsense.agent.labelling import BatchBuilder, Harvest
from gradsense.agent.limits import Interrupted, Throttle
from gradsense.agent.plan import AgentPlan
from gradsense.agent.reader import Reader
from gradsense.agent.recheck import Recheck
from gradsense.agent.store import AgentStore
from gradsense.agent.uplink import Uplink
from gradsense.detection import bundle as bundles
from gradsense.errors import Replay, UpdateRefused
from gradsense.federation.client import Client
from gradsense.federation.update import GlobalModel, Update
from gradsense.fleet import jobs
from gradsense.learning.learner import Learner
from gradsense.transport import identity, revocations
from gradsense.transport.chunks import Resume
from gradsense.transport.connection import Arrival, Link
from gradsense.transport.messages import Message, SignedMessage, presence, sign_message
from gradsense.transport.pacing import Rate
from gradsense.transport.payloads import OFFLINE, ONLINE, Ack, pack_update
from gradsense.transport.protocol import MessageHeader, device_filters

if TYPE_CHECKING:  # it brings torch, which few devices need
    from gradsense.agent.weight_learners import WeightLearners

#: Seconds without anything to do, at most and at least; between looks at logs that gave nothing.
_IDLE_S, _LEAST_S, _LOOK_S = 0.2, 0.005, 1.0
#: A model whose chunks stop coming for so long is asked for again.
_LOST_S = 10.0
#: Batches that are read in one local round, some four thousand distinct flows and half a GiB.
_MOST_BATCHES = 8
#: Publishes on the way to the broker, and a cap's burst in bytes: four chunks.
_WINDOW, _BURST = 8, 1 << 20

_log = logging.getLogger(__name__)


class Agent:
    """One device's part in one run.

    Args:
        rng: spreads reconnections.
        timer: monotonic seconds; wall clocks are never looked at.

    Raises:
        InputError: bundle, rules, logs or state cannot be used.
    """

    def __init__(
        self, plan: AgentPlan, *, rng: random.Random, timer: Callable[[], float] = time.monotonic
    ) -> None:
        self.plan, self._timer = plan, timer
        self.stop = threading.Event()
        self.counts: Counter[str] = Counter()
        self._identity = identity.of_device(plan.bundle)
        crl = revocations.held(plan.bundle / "device", plan.state)
        self._identity = replace(self._identity, crl=crl)
        start = plan.bundle / jobs.RUN
        self._job, self._start = jobs.read(start), start
        algorithm = self._job.rules
        manifest, template = bundles.read(start / jobs.EDGE)
        self.memory = AgentStore(plan.state)
        self.memory.claim(self._job.run, self._identity.name)
        self._throttle = Throttle(plan.limits, wanted=self._wanted)
        self._weights: WeightLearners | None = None
        name, between = self._identity.name, self._throttle.between
        learner: Learner
        if not algorithm.trains:
            learner = Reader(start / jobs.EDGE, self.memory, between=between)
        else:
            from gradsense.agent.weight_learners import WeightLearners  # noqa: PLC0415

            self._weights = WeightLearners(self._job, start / jobs.MODEL, between)
            learner = self._weights.of(self.memory, name)
        self.client = Client(name, learner, algorithm, local_epochs=self._job.epochs)
        saved, kept = self.memory.client(), self.memory.model()
        if saved is not None:
            self.client.restore(*saved)
        self._invited = kept is None or kept.invites(name)
        self._harvest = Harvest(
            template,
            manifest.labels,
            logs=plan.logs,
            rules=plan.rules,
            journal_folder=plan.journal,
            networks=plan.networks,
            places=self.memory.places(),
            taken=self.memory.taken(),
        )
        self._batcher = BatchBuilder(settle_s=plan.settle_s)
        self._newer: GlobalModel | None = None
        self._was_interrupted = False  # the last local round was interrupted
        self._refused: list[Ack] = []
        self._inbox: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._downlink = Downlink(
            self._job.run,
            name,
            self._identity.coordinator_key,
            seal_key=self._identity.own_seal_key,
            held=kept,
            epochs=self.memory.epochs(),
        )
        self._recheck = Recheck(self.memory, self._identity.signing_key, rng)
        self._uplink = Uplink(
            self.memory,
            self._identity.signing_key,
            Rate(plan.uplink, _BURST),
            window=_WINDOW,
            rng=rng,
        )
        self._down_rate = Rate(plan.downlink, _BURST)
        self._connected = threading.Event()
        self._next_look = self._next_resubscribe = 0.0
        self.link = Link(
            self._identity,
            subscriptions=device_filters(self._job.run, name),
            on_message=self._inbox.put,
            on_connect=lambda resumed: self._connected.set(),
            will=self._status(OFFLINE),
            keepalive_s=plan.keepalive_s,
            check_dates=False,
            rng=rng,
        )

    # The loop -------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until ``stop`` is set."""
        self._repair_detector()
        self.link.start()
        try:
            while not self.stop.is_set():
                if not self.step():
                    self._rest()
        finally:
            self.link.stop(goodbye=[self._status(OFFLINE)])
            self.memory.close()

    def step(self) -> bool:
        """One turn; False if there was nothing to do."""
        self._exchange()
        if self._refused:
            self._take_back()
        if self._newer is not None:
            self._adopt(self._newer)
            return True
        gathered = self._gather()
        return self._work() or gathered

    def _rest(self) -> None:
        """Wait for a message, or until something is due."""
        now = self._timer()
        sender = self._recheck if self._recheck.pending else self._uplink
        wake = sender.wake_at(now)
        wait = _IDLE_S if wake is None else min(_IDLE_S, wake - now)
        if self.link.unacked:
            wait = _LEAST_S  # a PUBACK does not wake this wait
        with suppress(queue.Empty):
            self._take(self._inbox.get(timeout=max(wait, _LEAST_S)))

    # Messages -------------------------------------------------------------------------------

    def _wanted(self) -> bool:
        """Exchange messages; whether to interrupt training.

        A round that follows an interrupted one is not interrupted again; otherwise a slow device
        would never upload.
        """
        self._exchange()
        return (self._newer is not None and not self._was_interrupted) or self.stop.is_set()

    def _exchange(self) -> None:
        """Receive what has come and send what may go."""
        now = self._timer()
        if self._connected.is_set():
            self._connected.clear()
            self.link.publish(self._status(ONLINE))
            self._uplink.on_connect(now)
            self._recheck.on_connect(now)
        with suppress(queue.Empty):
            while True:
                self._take(self._inbox.get_nowait())
        connected = self.link.connected
        due = self._recheck.due(now, connected=connected)
        if not self._recheck.pending:
            due = self._uplink.due(now, connected=connected, unacked=self.link.unacked)
        for message in due:
            if not self.link.publish(message):
                self._uplink.on_disconnect()
                break
        waits = self._downlink.waits_since
        if waits is not None and now > max(waits + _LOST_S, self._next_resubscribe):
            self._next_resubscribe = now + _LOST_S
            self.link.resubscribe()

    def _take(self, arrival: Arrival) -> None:
        size = len(arrival.message.payload)
        # The broker sends no more than a few chunks ahead of our acknowledgements.
        if wait := self._down_rate.wait_s(min(size, _BURST), self._timer()):
            self.stop.wait(wait)
        now = self._timer()
        self._down_rate.take(min(size, _BURST), now)
        news = self._downlink.take(arrival.message, now)
        self._recheck.notice(self._downlink.latest, now)
        match news:
            case Ack() | Resume() if self._recheck.pending:
                self._answered(news, now)
            case GlobalModel() as model:
                self._newer = model
                self._uplink.on_model(now)
            case Repeated():
                if self._newer is None and self._downlink.epoch > self.memory.epochs()[0]:
                    self.memory.same_model(self._downlink.epoch)
                self._uplink.on_model(now)
            case Ack() as ack if ack.refusal:
                self._refused.append(ack)  # it changes the client, which may be at work
            case Ack() as ack:
                self._uplink.on_ack(ack)
            case Resume() as resume:
                self._uplink.on_resume(resume, now)
            case RevokedBrokers() as found:
                self._revoke(found.crl)
        self.link.done(arrival)

    def _revoke(self, crl: bytes) -> None:
        """Keep a longer list of revoked broker certificates, and break with a broker on it."""
        held = self._identity.crl
        try:
            before = None if held is None else held.read_bytes()
            if not revocations.newer(crl, before, self._identity.ca):
                return
        except UpdateRefused as refusal:
            _log.warning("refused from the coordinator's topics: %s (%s)", refusal.reason, refusal)
            self.counts["bad-revocations"] += 1
            return
        place = revocations.keep(crl, self.plan.state)
        self._identity = replace(self._identity, crl=place)
        self.link.trust(place)

    def _answered(self, answer: Ack | Resume, now: float) -> None:
        """An answer about what was acknowledged before; any other is one of no concern by now."""
        if isinstance(answer, Ack):
            done = self._recheck.on_ack(answer)
        else:
            done = self._recheck.on_resume(answer, now)
        if done:
            self._uplink.on_offers()

    def _status(self, body: bytes) -> Message:
        run, me = self._job.run, self._identity
        return presence(run, me.name, body, self.memory.held(), me.signing_key)

    def _take_back(self) -> None:
        """Roll the client back for each refused update."""
        for ack in filter(self._uplink.expects, self._refused):
            _log.warning("update %d was refused: %s", ack.sequence, ack.refusal)
            if ack.refusal == Replay.reason:
                _log.error(
                    "the coordinator has later updates of this device: its state was lost or "
                    "copied, and it would report the same flows twice; enrol it under a new id"
                )
            else:
                self.client.refused(ack.sequence)
            self._uplink.on_ack(ack, client=self.client.snapshot())
        self._refused.clear()

    # Learning -------------------------------------------------------------------------------

    def _gather(self) -> bool:
        """Read one piece of the site's logs or feedback; False if there was nothing new."""
        now, gathered = self._timer(), None
        if now >= self._next_look:
            with suppress(Interrupted):
                self._throttle.between()
            gathered = self._harvest.step()
            if gathered is None:
                self._next_look = now + _LOOK_S
            else:
                self._batcher.add(gathered, now)
        batch = self._batcher.take(now)
        if batch is not None:
            self.memory.append(batch)
            if len(batch) and self._weights is not None:
                self.client.learner = self._weights.of(self.memory, self.client.name)
        return gathered is not None or batch is not None

    def _work(self) -> bool:
        """One local round if there is something to do (eq 1), and its update into the outbox."""
        if not self._may_work():
            return False
        try:
            update = self.client.work(self._budget())
        except Interrupted:
            self.counts["interrupted"] += 1
            self._was_interrupted = True
            return True
        self._was_interrupted = False
        self.counts["local_rounds"] += 1
        signed = None if update is None else self._sign(update)
        self.memory.save(self.client.snapshot(), update=signed)
        if update is not None:
            self.counts["updates"] += 1
            _log.info("update %d: %s, %d flows", update.sequence, update.reason, update.samples)
        return True

    def _may_work(self) -> bool:
        client = self.client
        if client.version < 0 or not self._invited or self.memory.full or not len(self.memory):
            return False
        return not client.waiting and client.plan(self._budget()).steps > 0

    def _budget(self) -> int:
        """Steps of one round at most: what statistics are taken of is in memory at once."""
        return _MOST_BATCHES if self._weights is None else self.client.round_steps

    def _sign(self, update: Update) -> SignedMessage:
        _, digest = self.memory.held()
        run, base, me = self._job.run, update.base_version, self._identity
        header = MessageHeader("update", run, update.client, update.sequence, base, digest)
        seal_for = me.peer_seal_key if self._job.sealed else None
        return sign_message(header, pack_update(update), me.signing_key, seal_for=seal_for)

    def _adopt(self, model: GlobalModel) -> None:
        """Take a new global model, publish that, and hand it to the detector."""
        self._newer = None
        if restored := model.version <= self.client.version:
            self.counts["restored"] += 1
            _log.warning(
                "the coordinator was restored from a backup: model %d takes the place of %d",
                model.version,
                self.client.version,
            )
        self.client.adopt(model, restored=restored)
        self.memory.save(self.client.snapshot(), model=model, epoch=self._downlink.epoch)
        self._invited = model.invites(self.client.name)
        self.link.publish(self._status(ONLINE))
        self.counts["adopted"] += 1
        _log.info("model %d", model.version)
        self._hand_over(model)

    def _hand_over(self, model: GlobalModel) -> None:
        """Give the detector a model, unless nobody has learnt anything yet."""
        if model.version == 0:
            return
        out, run = self.plan.state / DETECTOR, self._job.run
        if self._weights is None:
            hand_over(self._start / jobs.EDGE, out, model, batches=self.memory, run=run)
        else:
            weights = replace(model, tensors=self.client.algorithm.weights(model.tensors))
            hand_over_weights(self._start / jobs.MODEL, out, weights, batches=self.memory, run=run)
        self.counts["handed_over"] += 1

    def _repair_detector(self) -> None:
        """Where the process was killed between adopting a model and handing it over."""
        held, out = self.memory.model(), self.plan.state / DETECTOR
        if held is not None and not handed_over(out, held, run=self._job.run):
            self._hand_over(held)
