"""A run's state in memory, which is a function of its journal, and what a message does to it.

A step changes memory first and is written down at its end. Should that fail, memory is thrown
away and read again, so the two never differ for longer than a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gradsense.coordinator import snapshots
from gradsense.coordinator.inbox import FINAL, Inbox, KeyOf
from gradsense.coordinator.journal import (
    DUPLICATES,
    GIVEN_UP,
    REFUSED,
    DeviceRecord,
    Event,
    IssuedModel,
    JournalEntry,
    Kind,
    Outcome,
    RunJournal,
)
from gradsense.coordinator.machine import RunFinished, RunMachine
from gradsense.errors import InputError, Replay, UnknownBase, UpdateRefused
from gradsense.federation.update import Update
from gradsense.fleet.jobs import Job
from gradsense.transport.chunks import Quota
from gradsense.transport.identity import Identity
from gradsense.transport.messages import Message, Read
from gradsense.transport.payloads import Ack, model_hash, open_presence, open_update
from gradsense.transport.protocol import (
    BadTopic,
    MessageHeader,
    Properties,
    SizeLimits,
    parse_topic,
)

#: Refusals that no repetition mends; they are written down and answered.
_FINAL = (*FINAL, Replay, RunFinished, UnknownBase)


@dataclass
class Step:
    """What a batch of messages brings about, before it is written down.

    Attributes:
        answers: (kind, device, sequence) to where the answer stands, and its body.
        verdicts: of the updates in this batch.
        snapshot: of the newest model in ``batch.models``.
        publish: there is a model to tell of.
    """

    batch: JournalEntry
    answers: dict[tuple[str, str, int], tuple[MessageHeader, bytes]] = field(default_factory=dict)
    verdicts: dict[tuple[str, int], Outcome] = field(default_factory=dict)
    snapshot: tuple[dict[str, Any], snapshots.Groups] | None = None
    publish: bool = False

    def acknowledge(self, header: MessageHeader, refusal: str) -> None:
        """Answer an update once, however often it came in this batch."""
        body = Ack(header.sequence, refusal).pack()
        self.answers["ack", header.device, header.sequence] = replace(header, kind="ack"), body


@dataclass(frozen=True)
class Setting:
    """What a run is told from outside; see ``run.Run``."""

    key_of: KeyOf
    identity: Identity
    quota: Quota
    limits: SizeLimits
    timer: Callable[[], float]


class RunState:
    """Exactly what the journal has.

    Attributes:
        newest: the last model issued.
        now: the largest time in the journal.

    Raises:
        InputError: the journal or the newest snapshot is damaged.
        LedgerFull: they cannot be read for now.
    """

    def __init__(self, ledger: RunJournal, files: Path, setting: Setting) -> None:
        self._ledger, self._setting = ledger, setting
        text, self.now = ledger.run()
        self.job = _job(text, ledger.file)
        self.newest = newest = ledger.newest()
        groups = snapshots.load(files / (newest.file or ""), newest.file_sha256 or "")
        self.machine = RunMachine(self.job, newest, groups, ledger.hashes())
        self.machine.replay(ledger.events(newest.event), self._recorded)
        self.last_event = ledger.last_event()
        self.devices, self.counts = ledger.devices(), ledger.counts()
        self.intake = Inbox(
            self.job.run,
            key_of=setting.key_of,
            seal_key=setting.identity.own_seal_key,
            pieces=ledger.pieces(),
            quota=setting.quota,
            limits=setting.limits,
        )

    def _recorded(self, event: Event) -> Update:
        place = self.job.run, event.device, event.sequence or 0, event.base_version
        header = MessageHeader("update", *place)
        return open_update(event.body or b"", header, self._setting.limits.raw)

    def finish(self, step: Step) -> None:
        """Nothing more happens in this step."""
        for reason, number in self.intake.flush(step.batch).items():
            self._count(step, "", GIVEN_UP + reason, number)

    def written(self, batch: JournalEntry) -> None:
        """The journal has it now."""
        self.now = batch.now
        self.last_event += len(batch.events)
        if batch.models:
            self.newest = batch.models[-1]

    # What happens ---------------------------------------------------------------------------

    def tick(self, step: Step) -> None:
        """Close the pool if its deadline has passed."""
        due = self.machine.coordinator.deadline()
        if due is not None and step.batch.now >= due:
            self._move(step, self._event(step, "tick"))

    def take(self, step: Step, message: Message, wall: float) -> None:
        """Take in one message; whatever is wrong with it is counted by name."""
        try:
            read = self.intake.read(message, wall)
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
        connected = device in self.machine.coordinator.connected
        if connected and self._setting.key_of(device, wall) is None:
            self._move(step, self._event(step, "leave", device))

    def _known(self, topic: str) -> str:
        """The device that a topic names, if it ever spoke; else nothing."""
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
        if device.name not in self.machine.coordinator.enrolled:
            self._join(step, device.name)
        try:
            self.machine.admit(properties, self._setting.limits)
            whole = self.intake.assemble(device.name, chunk, step.batch.now)
            if whole is None:
                return
            update, body = self.intake.open(whole, properties)
        except _FINAL as refusal:
            self.machine.coordinator.refused[refusal.reason] += 1
            self._refuse(step, device, read, refusal)
            return
        event = self._about(step, "update", properties, samples=update.samples, body=body)
        try:
            self._move(step, event, update)
        except UpdateRefused as refusal:
            self._refuse(step, device, read, refusal)
        else:
            self._decide(step, device, read, "")

    def _answered(self, step: Step, device: DeviceRecord, read: Read) -> bool:
        """Say again what became of an update, if that is known."""
        properties, header = read.properties, read.properties.header
        found = self._verdict(step, device, header.sequence)
        if found is None:
            return False
        if found.body_sha256 != properties.body_sha256:
            self._count(step, device.name, REFUSED + Replay.reason)
        elif properties.chunk_index == 0:  # not once for each of its chunks
            self._count(step, "", DUPLICATES)
        step.acknowledge(header, found.refusal)
        return True

    def _verdict(self, step: Step, device: DeviceRecord, sequence: int) -> Outcome | None:
        if sequence > device.sequence:
            return None
        found = step.verdicts.get((device.name, sequence))
        return found or self._ledger.verdict(device.name, sequence)

    def _refuse(self, step: Step, device: DeviceRecord, read: Read, refusal: UpdateRefused) -> None:
        """Write a refusal down; the fleet waits no longer for this device's answer."""
        properties, reason = read.properties, refusal.reason
        if read.chunk is not None:
            self.intake.forget(device.name, read.chunk.message)
        self._move(step, self._about(step, "refused", properties, refusal=reason))
        self._count(step, device.name, REFUSED + reason)
        self._decide(step, device, read, reason)

    def _decide(self, step: Step, device: DeviceRecord, read: Read, refusal: str) -> None:
        header = read.properties.header
        device.sequence = max(device.sequence, header.sequence)
        verdict = Outcome(read.properties.body_sha256, refusal)
        step.verdicts[device.name, header.sequence] = verdict
        step.acknowledge(header, refusal)

    def _resume_request(self, step: Step, device: DeviceRecord, read: Read) -> None:
        header = read.properties.header
        found = self._verdict(step, device, header.sequence)
        if found is not None:
            step.acknowledge(header, found.refusal)
            return
        answer = self.intake.resume(device.name, read.body)
        place = replace(header, kind="resume")
        step.answers["resume", device.name, header.sequence] = place, answer.pack()

    def _status(self, step: Step, device: DeviceRecord, read: Read) -> None:
        online, header = open_presence(read.body), read.properties.header
        holds = self.machine.hashes.get(header.base_version) == header.base_hash
        device.held = header.base_version if holds else None
        connected = device.name in self.machine.coordinator.connected
        if online and not connected:
            self._join(step, device.name)
        elif connected and not online:
            self._move(step, self._event(step, "leave", device.name))

    # Events ---------------------------------------------------------------------------------

    def _event(self, step: Step, kind: Kind, device: str = "", **about: Any) -> Event:
        number = self.last_event + len(step.batch.events) + 1
        return Event(number, step.batch.now, kind, device, **about)

    def _about(self, step: Step, kind: Kind, properties: Properties, **more: Any) -> Event:
        """An event that decides what becomes of an update."""
        return self._event(
            step,
            kind,
            properties.header.device,
            sequence=properties.header.sequence,
            base_version=properties.header.base_version,
            body_sha256=properties.body_sha256,
            size=properties.body_size,
            **more,
        )

    def _join(self, step: Step, device: str) -> None:
        self._move(step, self._event(step, "join", device))
        if self.machine.may_start:
            self._move(step, self._event(step, "start"))
            step.publish = True

    def _move(self, step: Step, event: Event, update: Update | None = None) -> None:
        coordinator = self.machine.coordinator
        pooled, began = coordinator.entries, self._setting.timer()
        model = self.machine.move(event, update)
        step.batch.events.append(event)
        if model is None:
            return
        digest = model_hash(model.tensors)
        self.machine.hashes[model.version] = digest
        speakers = tuple(entry.update.client for entry in pooled)
        took_s = self._setting.timer() - began
        step.batch.models.append(
            IssuedModel(model.version, digest, event.at, event.id, speakers, took_s)
        )
        step.snapshot = coordinator.state()
        step.publish = True

    def _count(self, step: Step, device: str, name: str, number: int = 1) -> None:
        self.counts[device, name] += number
        step.batch.counts[device, name] += number


def _job(text: str, file: Path) -> Job:
    try:
        return Job.model_validate_json(text)
    except ValidationError as error:
        raise InputError(
            f"the job in the journal cannot be read ({error.errors()[0]['msg']})",
            hint="use the gradsense that wrote it",
            file=file,
        ) from error
