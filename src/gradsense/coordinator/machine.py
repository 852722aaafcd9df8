"""The pure coordinator under a run's rules: restored from a snapshot, moved by events.

Live and replayed events take the same way through ``move``, so that a restarted coordinator is
the one that was killed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping

from gradsense.coordinator.journal import Event, IssuedModel
from gradsense.errors import InputError, Replay, UnknownBase, UpdateRefused
from gradsense.federation.coordinator import Coordinator
from gradsense.federation.scaffold import weights_of
from gradsense.federation.update import GlobalModel, Update
from gradsense.fleet.jobs import Job
from gradsense.learning.learner import Tensors
from gradsense.transport.protocol import Properties, SizeLimits, TooLarge


class RunFinished(UpdateRefused):
    """The run has made all the models that its job asked for."""

    reason = "run-finished"


#: Who is refused so has not failed to answer the current model.
_UNEXCUSED = {Replay.reason, RunFinished.reason}


def fresh(job: Job, tensors: Tensors) -> Coordinator:
    """The coordinator of a run that begins."""
    return Coordinator(
        tensors,
        job.rules,
        seed=job.seed,
        participation=job.participation,
        max_staleness=job.max_staleness,
        max_norm=job.max_norm,
    )


class RunMachine:
    """A run's state in memory.

    Args:
        newest: the last model issued, with its state.
        groups: its snapshot.
        hashes: version to hash of every model issued; ``move`` adds none.

    Attributes:
        started: enough devices came, so version 0 was issued.
    """

    def __init__(
        self, job: Job, newest: IssuedModel, groups: Mapping[str, Tensors], hashes: dict[int, str]
    ) -> None:
        self.job, self.hashes = job, hashes
        self.coordinator = fresh(job, weights_of(groups["model"]))
        self.coordinator.restore(json.loads(newest.state or ""), groups)
        self.started = newest.version > 0

    @property
    def finished(self) -> bool:
        """All the models that the job asked for are made."""
        return self.job.rounds is not None and self.coordinator.model.version >= self.job.rounds

    @property
    def may_start(self) -> bool:
        """Enough devices have come for version 0 to be issued."""
        return not self.started and len(self.coordinator.enrolled) >= self.job.min_devices

    def admit(self, properties: Properties, limits: SizeLimits) -> None:
        """What an update's signed properties alone decide, before any of it is kept.

        Raises:
            UpdateRefused: ``too-large``, ``replay``, ``run-finished`` or ``unknown-base``.
        """
        header = properties.header
        who = f"update {header.sequence} of '{header.device}'"
        if properties.body_size > limits.body:
            raise TooLarge(f"{who}: a body of {properties.body_size} bytes")
        if header.sequence <= self.coordinator.last_sequence.get(header.device, 0):
            raise Replay(f"{who}: a later one was pooled")
        if self.finished:
            raise RunFinished(f"{who}: the run ended with version {self.coordinator.model.version}")
        if not self.started or self.hashes.get(header.base_version) != header.base_hash:
            raise UnknownBase(f"{who}: base version {header.base_version} has another hash")

    def move(self, event: Event, update: Update | None = None) -> GlobalModel | None:
        """Let an event happen; the new model if it brought about an aggregation.

        Args:
            update: of an ``update``.

        Raises:
            UpdateRefused: the update may not be pooled; nothing happened.
        """
        coordinator = self.coordinator
        match event.kind:
            case "start":
                coordinator.enrol(list(coordinator.connected))
                self.started = True
            case "join":
                coordinator.join(event.device)
            case "leave":
                return coordinator.leave(event.device)
            case "update" if update is not None:
                return coordinator.receive(update, event.at)
            case "refused" if event.refusal not in _UNEXCUSED:
                return coordinator.excuse(event.device)
            case "tick":
                return coordinator.tick(event.at)
        return None

    def replay(self, events: Iterable[Event], opened: Callable[[Event], Update]) -> None:
        """Let happen again what came after the snapshot.

        Args:
            opened: the update of an ``update``'s body.

        Raises:
            InputError: the events lead elsewhere than they once did.
        """
        for event in events:
            try:
                model = self.move(event, opened(event) if event.kind == "update" else None)
            except UpdateRefused as refusal:
                raise _elsewhere(event, f"refused as {refusal.reason}") from refusal
            if model is not None:  # every aggregation makes a snapshot, so none can follow it
                raise _elsewhere(event, f"gave version {model.version}")
            if event.kind == "refused":
                self.coordinator.refused[event.refusal] += 1


def _elsewhere(event: Event, what: str) -> InputError:
    return InputError(
        f"event {event.id} ({event.kind}), played again, {what}",
        hint="use the gradsense that wrote the journal, or restore the run from its backup",
    )
