"""A run's state in memory, which is a function of its journal, and what a message does to it.

Messages become events of the pure ``federation.Coordinator``; its effects become journal entries
and answers. Replayed events take the same way as live ones, so that a restarted coordinator is the
one that was killed. A step changes memory first and is written to the journal at its end. Should
that fail, memory is thrown away and read again, so the two never differ for longer than a step.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

from gradsense.coordinator.contributed import Contributed
from gradsense.coordinator.inbox import FINAL, Inbox, Setting
from gradsense.coordinator.journal import SCHEMA, RunJournal
from gradsense.coordinator.records import (
    DUPLICATES,
    GIVEN_UP,
    REFUSED,
    DeviceRecord,
    IssuedModel,
    JournalEntry,
    JournalEvent,
    Kind,
    UpdateOutcome,
)
from gradsense.coordinator.step import Step
from gradsense.coordinator.trial import Suspect
from gradsense.errors import InputError, NotStarted, Replay, RunFinished, UnknownBase, UpdateRefused
from gradsense.federation import events
from gradsense.federation.coordinator import Coordinator
from gradsense.federation.rules.rule import SumRule
from gradsense.federation.update import Update
from gradsense.fleet.jobs import Job
from gradsense.fleet.registry import Order
from gradsense.learning.learner import Tensors
from gradsense.storage import files
from gradsense.transport.messages import Message, Read
from gradsense.transport.payloads import model_hash, open_presence, open_update
from gradsense.transport.protocol import BadTopic, MessageHeader, Properties, TooLarge, parse_topic

#: Refusals that sending the same again cannot change; they go into the journal and are answered.
_FINAL = (*FINAL, Replay, RunFinished, UnknownBase)

_log = logging.getLogger(__name__)


def coordinator_of(
    job: Job, weights: Tensors, contributed: Contributed | None = None
) -> Coordinator:
    """The pure coordinator of a run that begins with these weights."""
    return Coordinator(
        weights,
        job.rules,
        seed=job.seed,
        participation=job.participation,
        min_clients=job.min_devices,
        rounds=job.rounds,
        max_staleness=job.max_staleness,
        bounds=job.bounds,
        contributions=contributed,
    )


class RunState:
    """Exactly what the journal has.

    Attributes:
        coordinator: the pure machine.
        hashes: version to hash of every model issued.
        newest: the last model issued.
        now: the largest time in the journal.
        order: id of the last of the operator's orders that was carried out.

    Raises:
        InputError: the journal or the newest snapshot is damaged.
        StorageFull: they cannot be read for now.
    """

    def __init__(self, journal: RunJournal, setting: Setting) -> None:
        self._journal, self._setting = journal, setting
        text, self.now = journal.run()
        self.job = files.parsed(text, Job, journal.file)
        self.newest = newest = journal.newest()
        groups = journal.snapshots.load(newest.file or "", newest.file_sha256 or "")
        self.hashes = journal.hashes()
        self.contributed, self.order = Contributed(journal.file.parent), journal.last_order()
        weights = self.job.rules.weights(groups["model"])
        self.coordinator = coordinator_of(self.job, weights, self.contributed)
        try:
            self.coordinator.restore(json.loads(newest.state or ""), groups)
        except (ValueError, KeyError, TypeError) as error:
            what = f"the state of its newest model is damaged ({error!r})"
            raise InputError(what, hint=SCHEMA.hint, file=journal.file) from error
        self.last_event = newest.event
        for row in journal.events(newest.event):
            self._replay(row)
            self.last_event = row.id
        self.devices, self.counts = journal.devices(), journal.counts()
        codec, bounds = self.job.rules.codec, self.coordinator.shape_bounds
        self.inbox = Inbox(self.job.run, setting, codec, bounds, journal.pieces())

    def _replay(self, row: JournalEvent) -> None:
        """Replay an event that follows the snapshot.

        Raises:
            InputError: the replay gives another result than the original run.
        """
        update = None
        if row.kind == "update":
            place = self.job.run, row.device, row.sequence or 0, row.base_version
            header = MessageHeader("update", *place)
            run = self.coordinator
            try:
                update = open_update(row.body or b"", header, run.algorithm.codec, run.shape_bounds)
            except UpdateRefused as refusal:
                raise _elsewhere(row, f"refused as {refusal.reason}") from None
        for effect in self.coordinator.handle(self._event(row, update)):
            match effect:
                case events.Refuse():
                    raise _elsewhere(row, f"refused as {effect.refusal.reason}")
                case events.Broadcast() if effect.model.version > 0:
                    # Every aggregation makes a snapshot, so none can follow it.
                    raise _elsewhere(row, f"gave version {effect.model.version}")

    def finish(self, step: Step) -> None:
        """Finish a step before it is written."""
        for reason, number in self.inbox.flush(step.batch).items():
            self._count(step, "", GIVEN_UP + reason, number)
        step.batch.contributions = self.contributed.flush()

    def written(self, batch: JournalEntry) -> None:
        """Called after the batch was committed."""
        self.now, self.order = batch.now, max(self.order, batch.order)
        self.last_event += len(batch.events)
        if batch.models:
            self.newest = batch.models[-1]

    # What happens ---------------------------------------------------------------------------

    def tick(self, step: Step) -> None:
        """Close the pool if its deadline has passed."""
        due = self.coordinator.deadline()
        if due is not None and step.batch.now >= due:
            self._apply(step, self._row(step, "tick"))

    def obey(self, step: Step, order: Order) -> None:
        """Carry out what an operator has ordered: what does not concern this run is only noted."""
        step.batch.order = order.id
        if order.kind == "revoke" and order.device in self.devices:
            self._apply(step, self._row(step, "revoke", order.device))
        elif order.kind == "rollback" and order.run == self.job.run:
            row = self._row(step, "rollback", base_version=order.version)
            try:
                self._rolled_back(row)
            except InputError as error:  # an old order must not stop the run
                _log.error("run %s: no return to model %d: %s", order.run, order.version, error)
            else:
                self._apply(step, row)

    def take(self, step: Step, message: Message, wall: float) -> None:
        """Take in one message; whatever is wrong with it is counted by name."""
        try:
            read = self.inbox.read(message, wall)
        except UpdateRefused as refusal:
            self._turn_away(step, self._known(message.topic), refusal.reason, wall)
            return
        header = read.properties.header
        device = self.devices.setdefault(header.device, DeviceRecord(header.device))
        device.seen = step.batch.now
        device.bytes += len(message.payload)
        step.batch.devices[device.name] = device
        try:
            match header.kind:
                case "update":
                    self._update(step, device, read)
                case "resume-request":
                    self._resume_request(step, device, read)
                case "presence":
                    self._status(step, device, read)
        except UpdateRefused as refusal:
            self._count(step, device.name, REFUSED + refusal.reason)

    def _turn_away(self, step: Step, device: str, reason: str, wall: float) -> None:
        """Count what could not be verified; ``device`` is whose topic it came on, if known."""
        self._count(step, device, REFUSED + reason)
        # A revoked device's last will cannot be verified, but nobody should wait for it.
        connected = device in self.coordinator.connected
        if connected and self._setting.key_of(device, wall) is None:
            self._apply(step, self._row(step, "leave", device))

    def _known(self, topic: str) -> str:
        """The device that a topic names, if it ever sent anything; else nothing."""
        try:
            device = parse_topic(topic).device
        except BadTopic:
            return ""
        return device if device in self.devices else ""

    def _update(self, step: Step, device: DeviceRecord, read: Read) -> None:
        properties, chunk = read.properties, read.chunk
        assert chunk is not None
        if self._answered(step, device, read):
            return
        # Its presence may still be under way, and nothing that counts follows from that.
        if device.name not in self.coordinator.enrolled:
            self._apply(step, self._row(step, "join", device.name))
        try:
            self._admit(properties, step.batch.now)
            whole = self.inbox.assemble(device.name, chunk, step.batch.now)
            if whole is None:
                return
            found = self._setting.trials.handle(
                Suspect.of(properties),
                lambda: self._rehearse(properties, whole, step.batch.now),
                lambda: self._pool(step, properties, whole),
            )
        except _FINAL as refusal:
            self.inbox.forget(device.name, chunk.message)
            self._apply(step, self._about(step, "refused", properties, refusal=refusal.reason))
            self._decide(step, device, read, refusal.reason)
            return
        self._decide(step, device, read, found)

    def _pool(self, step: Step, properties: Properties, whole: bytes) -> str:
        """Open an update and pool it; the name under which it was refused, or nothing."""
        update, body = self.inbox.open(whole, properties)
        row = self._about(step, "update", properties, samples=update.samples, body=body)
        return self._apply(step, row, update)

    def _rehearse(self, properties: Properties, whole: bytes, now: float) -> None:
        """All of ``_pool`` that depends on what a device wrote; the rest is of bounded arrays."""
        self.coordinator.check(self.inbox.open(whole, properties)[0], now)

    def _admit(self, properties: Properties, now: float) -> None:
        """What an update's signed properties alone decide, before any of it is kept.

        Raises:
            UpdateRefused: ``too-large``, ``replay``, ``run-finished`` or ``unknown-base``; for now
                ``too-often``, ``pool-full`` or ``not-started``.
        """
        header = properties.header
        who = f"update {header.sequence} of '{header.device}'"
        if properties.body_size > self.inbox.limit:
            raise TooLarge(f"{who}: a body of {properties.body_size} bytes")
        self.coordinator.admit(header.device, header.sequence, now)
        if not self.job.rules.trains:  # its update says nothing about its base
            if not self.coordinator.started:
                raise NotStarted(f"{who}: too few devices have come")
            return
        known = self.hashes.get(header.base_version) == header.base_hash
        if not self.coordinator.started or not known:
            raise UnknownBase(f"{who}: base version {header.base_version} has another hash")

    def _answered(self, step: Step, device: DeviceRecord, read: Read) -> bool:
        """Say again what became of an update, if that is known."""
        properties, header = read.properties, read.properties.header
        found = self._verdict(step, device, header.sequence)
        if found is None:
            return False
        if found.body_sha256 != properties.body_sha256:
            self._count(step, device.name, REFUSED + Replay.reason)
            step.acknowledge(header, Replay.reason)  # the other body's answer is not this one's
            return True
        if properties.chunk_index == 0:  # not once for each of its chunks
            self._count(step, "", DUPLICATES)
        step.acknowledge(header, found.refusal)
        return True

    def _verdict(self, step: Step, device: DeviceRecord, sequence: int) -> UpdateOutcome | None:
        if sequence > device.sequence:
            return None
        found = step.verdicts.get((device.name, sequence))
        return found or self._journal.verdict(device.name, sequence)

    def _decide(self, step: Step, device: DeviceRecord, read: Read, refusal: str) -> None:
        header = read.properties.header
        if refusal:
            self._count(step, device.name, REFUSED + refusal)
        device.sequence = max(device.sequence, header.sequence)
        verdict = UpdateOutcome(read.properties.body_sha256, refusal)
        step.verdicts[device.name, header.sequence] = verdict
        step.acknowledge(header, refusal)

    def _resume_request(self, step: Step, device: DeviceRecord, read: Read) -> None:
        header = read.properties.header
        found = self._verdict(step, device, header.sequence)
        if found is not None:
            step.acknowledge(header, found.refusal)
            return
        answer = self.inbox.resume(device.name, read.body)
        place = replace(header, kind="resume")
        step.answers["resume", device.name, header.sequence] = place, answer.pack()

    def _status(self, step: Step, device: DeviceRecord, read: Read) -> None:
        online, header = open_presence(read.body), read.properties.header
        holds = self.hashes.get(header.base_version) == header.base_hash
        device.held = header.base_version if holds else None
        connected = device.name in self.coordinator.connected
        if online != connected:
            self._apply(step, self._row(step, "join" if online else "leave", device.name))

    # Events ---------------------------------------------------------------------------------

    def _row(self, step: Step, kind: Kind, device: str = "", **about: Any) -> JournalEvent:
        number = self.last_event + len(step.batch.events) + 1
        return JournalEvent(number, step.batch.now, kind, device, **about)

    def _about(self, step: Step, kind: Kind, properties: Properties, **more: Any) -> JournalEvent:
        """An event that decides what becomes of an update."""
        return self._row(
            step,
            kind,
            properties.header.device,
            sequence=properties.header.sequence,
            base_version=properties.header.base_version,
            body_sha256=properties.body_sha256,
            size=properties.body_size,
            **more,
        )

    def _apply(self, step: Step, row: JournalEvent, update: Update | None = None) -> str:
        """Handle an event and put it into the batch.

        Returns:
            the name under which the coordinator refused ``update``; empty: it did not.
        """
        began, refusal = self._setting.timer(), ""
        effects = self.coordinator.handle(self._event(row, update))
        took_s = self._setting.timer() - began
        for effect in effects:
            if isinstance(effect, events.Refuse):
                refusal = effect.refusal.reason
                row = replace(row, kind="refused", refusal=refusal, samples=0, body=None)
        step.batch.events.append(row)
        for effect in effects:
            if isinstance(effect, events.Broadcast):
                self._publish(step, row, effect, took_s)
        return refusal

    def _event(self, row: JournalEvent, update: Update | None) -> events.Event:
        """What a journal's row means to the coordinator."""
        event: events.Event
        match row.kind:
            case "join":
                event = events.Joined(row.device)
            case "leave":
                event = events.Left(row.device, row.at)
            case "refused":
                event = events.TurnedAway(row.device, row.refusal, row.at)
            case "tick":
                event = events.Ticked(row.at)
            case "revoke":
                event = events.Revoked(row.device, row.at)
            case "rollback":
                event = self._rolled_back(row)
            case "update":
                assert update is not None
                event = events.Arrived(update, row.at)
        return event

    def _rolled_back(self, row: JournalEvent) -> events.RolledBack:
        """Raises: InputError: the run cannot return to that version."""
        if isinstance(self.job.rules.rule, SumRule):
            raise InputError("its model is a sum", hint="revoke the device instead")
        model = self._journal.issued(row.base_version)
        if model is None:
            raise InputError(
                f"model {row.base_version} is kept no longer", hint="choose a later one"
            )
        groups = self._journal.snapshots.load(model.file or "", model.file_sha256 or "")
        return events.RolledBack(groups["model"], groups["server"], row.at)

    def _publish(
        self, step: Step, row: JournalEvent, effect: events.Broadcast, took_s: float
    ) -> None:
        step.publish, version = True, effect.model.version
        if version == 0:  # is in the journal since the run was made
            return
        digest = self.hashes[version] = model_hash(effect.model.tensors)
        step.batch.models.append(
            IssuedModel(version, digest, row.at, row.id, effect.contributors, took_s)
        )
        step.snapshot = self.coordinator.snapshot()

    def _count(self, step: Step, device: str, name: str, number: int = 1) -> None:
        self.counts[device, name] += number
        step.batch.counts[device, name] += number


def _elsewhere(row: JournalEvent, what: str) -> InputError:
    return InputError(
        f"event {row.id} ({row.kind}), played again, {what}",
        hint="use the gradsense that wrote the journal, or restore the run from its backup",
    )
