"""One run: messages in, messages out, and a journal in between.

``Run`` holds no socket and no clock; whoever has the connection calls it. Nothing that it returns
may be sent before the journal has it, and it returns only then.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from gradsense.coordinator.inbox import KeyOf, Setting
from gradsense.coordinator.journal import RunJournal
from gradsense.coordinator.records import DUPLICATES, GIVEN_UP, REFUSED, IssuedModel, JournalEntry
from gradsense.coordinator.state import RunState, coordinator_of
from gradsense.coordinator.status import DeviceStatus, LastAggregation, PoolStatus, RunStatus
from gradsense.coordinator.step import Step
from gradsense.coordinator.trial import Trials
from gradsense.federation.pools import senders
from gradsense.fleet.jobs import Job
from gradsense.fleet.registry import Order
from gradsense.learning.learner import Tensors
from gradsense.transport.chunks import Quota
from gradsense.transport.identity import Identity
from gradsense.transport.messages import Message, SignedMessage, messages, sign_message
from gradsense.transport.payloads import model_hash, pack_model
from gradsense.transport.protocol import COORDINATOR, MessageHeader, Topic


class Run:
    """One run's coordinator, exactly as its journal has it.

    Should a step fail, for want of room or for any other reason, its memory is thrown away and
    read from the journal again. Nothing of it was acknowledged, so devices send it once more, and
    the next call works as soon as there is room.

    Args:
        folder: that ``create`` filled.
        key_of: (device, seconds since 1970) to its public signing key, 32 bytes; None: refuse it.
        identity: the coordinator's keys.
        quota: of uploads that wait for missing chunks; by default ``Quota.of`` the run's bodies.
        timer: seconds, only to measure how long an aggregation takes.
        wall: seconds since 1970, for ``RunJournal.open``.

    Raises:
        InputError: no run there, one that another process works on, or a damaged one.
        StorageFull: it cannot be opened for now.
    """

    def __init__(
        self,
        folder: Path,
        *,
        key_of: KeyOf,
        identity: Identity,
        quota: Quota | None = None,
        timer: Callable[[], float] = time.perf_counter,
        wall: float = 0.0,
    ) -> None:
        self._memory: RunState | None = None
        self._signed: SignedMessage | None = None
        self._journal = RunJournal(folder)
        try:
            trials = Trials(folder)
        except BaseException:
            self._journal.close()
            raise
        self._setting = Setting(key_of, identity, trials, quota, timer)
        try:
            self._journal.snapshots.sweep(self._journal.files())
            self._remember()
            self._epoch = self._journal.open(wall)
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, folder: Path, job: Job, tensors: Tensors) -> None:
        """Make a run's journal and its version 0.

        Args:
            folder: made if it is not there; may hold other things.
            tensors: the first global model.

        Raises:
            InputError: there is a run.
            StorageFull: it cannot be written.
        """
        ledger = RunJournal(folder, make=True)
        coordinator = coordinator_of(job, tensors)
        values, groups = coordinator.snapshot()
        try:
            name, sha256 = ledger.snapshots.save(0, groups)
            digest = model_hash(coordinator.model.tensors)
            first = IssuedModel(0, digest, 0.0, 0, (), file=name, file_sha256=sha256)
            ledger.begin(job.text(), replace(first, state=json.dumps(values)))
        finally:
            ledger.close()

    def close(self) -> None:
        """Close the journal. Nothing is lost if this is never called."""
        self._setting.trials.close()
        self._journal.close()

    # Steps ----------------------------------------------------------------------------------

    def take(self, arrivals: Sequence[Message], *, now: float, wall: float) -> list[Message]:
        """Take in a batch with one commit; it is durable when this returns.

        Args:
            now: the run's time, in seconds.
            wall: seconds since 1970, for the ends of certificates.

        Returns:
            what to publish: acknowledgements, answers to questions, a new model.

        Raises:
            StorageFull: there is no room; nothing was taken in. Call again later.
        """
        with self._step(now) as (memory, step):
            for message in arrivals:
                memory.take(step, message, wall)
        return self._out(step)

    def tick(self, now: float) -> list[Message]:
        """Close the pool if its deadline has passed; returns and raises as ``take``."""
        with self._step(now) as (memory, step):
            memory.tick(step)
        return self._out(step)

    def obey(self, orders: Sequence[Order], *, now: float) -> list[Message]:
        """Carry out the operator's orders that this run has not; returns and raises as ``take``."""
        waiting = [order for order in orders if order.id > self._remember().order]
        if not waiting:
            return []
        with self._step(now) as (memory, step):
            for order in waiting:
                memory.obey(step, order)
        return self._out(step)

    def _remember(self) -> RunState:
        if self._memory is None:
            self._signed = None
            self._memory = RunState(self._journal, self._setting)
        return self._memory

    @contextmanager
    def _step(self, now: float) -> Iterator[tuple[RunState, Step]]:
        """A transaction: committed to the journal on success, the state discarded on an error."""
        memory, self._memory = self._remember(), None
        step = Step(JournalEntry(max(now, memory.now)))
        memory.inbox.expire(step.batch.now)
        yield memory, step
        self._write(memory, step)
        self._memory = memory

    def _write(self, memory: RunState, step: Step) -> None:
        batch = step.batch
        memory.finish(step)
        if step.publish:
            self._signed = self._sign_model(memory)
            batch.widest = self._signed.properties.chunk_count
        if step.snapshot is not None:
            values, groups = step.snapshot
            newest = batch.models[-1]
            # Before the journal names it.
            name, sha256 = self._journal.snapshots.save(newest.version, groups)
            state = json.dumps(values)
            batch.models[-1] = replace(newest, file=name, file_sha256=sha256, state=state)
            if not memory.job.keep_updates:
                batch.forget = newest.event
                batch.events = [
                    replace(event, body=None) if event.id <= newest.event else event
                    for event in batch.events
                ]
        if not batch:
            return
        self._journal.commit(batch)
        memory.written(batch)
        if batch.models:
            self._journal.snapshots.sweep(self._journal.files())

    # Messages out ---------------------------------------------------------------------------

    def _out(self, step: Step) -> list[Message]:
        found: list[Message] = []
        for header, body in step.answers.values():
            plain = replace(header, sealed=False)
            found += messages(sign_message(plain, body, self._setting.identity.signing_key))
        return [*found, *self.announce()] if step.publish else found

    def _sign_model(self, memory: RunState) -> SignedMessage:
        """The newest model, signed."""
        job, identity, model = memory.job, self._setting.identity, memory.coordinator.model
        version, digest = model.version, memory.hashes[model.version]
        return sign_message(
            MessageHeader("model", job.run, COORDINATOR, 0, version, digest, epoch=self._epoch),
            pack_model(model),
            identity.signing_key,
            seal_for=identity.peer_seal_key if job.sealed else None,
        )

    def announce(self) -> list[Message]:
        """What every device should find at the broker; publish it after every connection.

        Returns:
            the newest model, retained, behind empty messages that clear the topics of chunks that
            earlier models had and it has not. Nothing before ``Job.min_devices`` have come.
        """
        memory = self._remember()
        if not memory.coordinator.started:
            return []
        self._signed = self._signed or self._sign_model(memory)
        surplus = range(self._signed.properties.chunk_count, self._journal.widest())
        topics = [str(Topic(memory.job.run, "model", index=index)) for index in surplus]
        cleared = [Message(topic, retain=True) for topic in topics]
        return [*cleared, *messages(self._signed, retain=True)]

    def revocations(self, crl: bytes) -> list[Message]:
        """The list of revoked broker certificates (PEM), for every device; to be retained."""
        header = MessageHeader("revoked", self.job.run, COORDINATOR)
        return messages(sign_message(header, crl, self._setting.identity.signing_key), retain=True)

    # Questions ------------------------------------------------------------------------------

    @property
    def job(self) -> Job:
        """What the run is."""
        return self._remember().job

    @property
    def now(self) -> float:
        """The largest time in the journal; the run's clock goes on from there."""
        return self._remember().now

    @property
    def newest(self) -> IssuedModel:
        """The last model issued."""
        return self._remember().newest

    @property
    def body_limit(self) -> int:
        """Bytes of the largest body that an update of this run may have."""
        return self._remember().inbox.limit

    def deadline(self) -> float | None:
        """When ``tick`` has something to do, in the run's time; None: not known yet."""
        return self._remember().coordinator.deadline()

    def status(self) -> RunStatus:
        """How the run stands."""
        memory = self._remember()
        coordinator, newest = memory.coordinator, memory.newest
        version, pooled = coordinator.model.version, coordinator.pooled
        online = [memory.devices[name] for name in coordinator.connected]
        refused: dict[str, dict[str, int]] = {}
        given_up: dict[str, int] = {}
        for (device, name), value in memory.counts.items():
            if name.startswith(REFUSED):
                refused.setdefault(device, {})[name.removeprefix(REFUSED)] = value
            elif name.startswith(GIVEN_UP):
                given_up[name.removeprefix(GIVEN_UP)] = value
        pool = coordinator.algorithm.pool
        invited = len(pool.voters(coordinator.awaited(), coordinator.enrolled))
        return RunStatus(
            run=memory.job.run,
            algorithm=memory.job.algorithm,
            now=memory.now,
            version=version,
            hash=memory.hashes[version],
            started=coordinator.started,
            finished=coordinator.finished,
            pooled=len(pooled),
            pool=PoolStatus(
                updates=len(pooled),
                clients=len(senders(pooled)),
                invited=invited,
                needed=pool.needed(invited),
                deadline=coordinator.deadline(),
            ),
            online=len(online),
            current=sum(device.held == version for device in online),
            devices={
                name: DeviceStatus(
                    online=name in coordinator.connected,
                    held=device.held,
                    sequence=device.sequence,
                    updates=coordinator.submissions.get(name, 0),
                    records=memory.contributed.records.get(name, 0.0),
                    refused=refused.get(name, {}),
                    bytes=device.bytes,
                    seen=device.seen,
                )
                for name, device in memory.devices.items()
            },
            updates=coordinator.submissions.total(),
            duplicates=memory.counts["", DUPLICATES],
            refused=dict(sum(map(Counter, refused.values()), Counter[str]())),
            strangers=refused.get("", {}),
            aggregations=version,
            bytes_in=sum(device.bytes for device in memory.devices.values()),
            waiting_bytes=memory.inbox.held,
            journal_bytes=self._journal.size(),
            given_up=given_up,
            last=(
                LastAggregation(version, newest.at, newest.contributors, newest.took_s)
                if version
                else None
            ),
        )
