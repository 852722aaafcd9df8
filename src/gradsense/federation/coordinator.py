"""The coordinator: the cloud's role, as a state machine without clock, socket or file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np

from gradsense import errors
from gradsense.federation import events
from gradsense.federation.algorithm import Algorithm
from gradsense.federation.bounds import Bounds
from gradsense.federation.contributions import Contribution, MutableContributions, Remembered
from gradsense.federation.pools import Pooled, PooledUpdate
from gradsense.federation.rules.rule import Aggregated, SumRule
from gradsense.federation.sequences import pass_over, seen
from gradsense.federation.update import GlobalModel, Update
from gradsense.learning.learner import Array, Tensors

#: Refusals after which the coordinator still waits for the client's update.
_STILL_AWAITED = {errors.Replay.reason, errors.RunFinished.reason}

#: Refusals of what may be sent again.
_FOR_NOW = {errors.TooOften.reason, errors.PoolFull.reason}

#: Attributes that a snapshot saves unchanged.
_PLAIN = (
    *("started", "last_sequence", "skipped", "submissions", "refused"),
    *("issued_at", "oldest_base", "norms", "allowances"),
)


class Coordinator:
    """Pools updates, aggregates them, and issues the next global model.

    ``handle`` is all that moves it. The same events in the same order give the same models, bit
    for bit.

    Args:
        weights: of the first global model, version 0.
        algorithm: whose server half decides.
        seed: draws the invited clients.
        participation: share of the connected clients invited to each synchronous round.
        min_clients: version 0 is issued once so many have joined.
        rounds: aggregations until the run is over; None: it never is.
        max_staleness: an asynchronous update may start this many versions back.
        bounds: on what one client may do.
        contributions: where what each client contributed is kept, if not in memory. It is then
            in no snapshot.

    Attributes:
        model: the newest global model.
        shape_bounds: the tensors that an update may have; they stay the same.
        started: version 0 was issued.
        connected: clients that are there, in the order in which they joined.
        enrolled: clients that ever joined.
        pooled: what waits to be aggregated.
        last_sequence, skipped: the largest of each client's pooled updates; what may come below it.
        submissions: updates pooled from each client.
        refused: updates refused, by reason.
        excused: refused in this round: not waited for any longer.
        issued_at: when the newest model was made, in the driver's seconds.
        oldest_base: updates that start from a version before this one are refused.
        norms: the largest of each client, pooled or refused for it.
        allowances: when each client's is whole again, see ``Bounds``.

    >>> from gradsense.federation import get_algorithm
    >>> weights = {"w": np.zeros(1, np.float32)}
    >>> coordinator = Coordinator(weights, get_algorithm("fedavg"), seed=0)
    >>> [type(effect).__name__ for effect in coordinator.handle(events.Joined("site"))]
    ['Broadcast']
    >>> moved = {"w": np.ones(1, np.float32)}
    >>> update = Update("site", 0, sequence=1, samples=10, reason="round", delta=moved)
    >>> [broadcast] = coordinator.handle(events.Arrived(update, at=3.5))
    >>> broadcast.model.version, broadcast.model.tensors["w"].tolist()
    (1, [1.0])
    """

    def __init__(
        self,
        weights: Tensors,
        algorithm: Algorithm[Any],
        *,
        seed: int,
        participation: float = 1.0,
        min_clients: int = 1,
        rounds: int | None = None,
        max_staleness: int = 20,
        bounds: Bounds | None = None,
        contributions: MutableContributions | None = None,
    ) -> None:
        tensors = algorithm.opened(weights)
        self.algorithm, self.seed, self.participation = algorithm, seed, participation
        self.min_clients, self.rounds = min_clients, rounds
        self.max_staleness, self.bounds = max_staleness, bounds or Bounds()
        self.server_state = algorithm.rule.init(tensors)
        self._kept_outside = contributions is not None
        self.contributions = Remembered() if contributions is None else contributions
        self.model = GlobalModel(0, tensors)
        self.shape_bounds = algorithm.shape_bounds(tensors, self.server_state)
        self.started = False
        self.enrolled: set[str] = set()
        self.connected: dict[str, None] = {}  # a dict, for an order that does not vary
        self.pooled: list[PooledUpdate] = []
        self.last_sequence: dict[str, int] = {}
        self.skipped: dict[str, list[int]] = {}
        self.submissions, self.refused = Counter[str](), Counter[str]()
        self.excused: set[str] = set()
        self.issued_at, self.oldest_base = 0.0, 0
        self.norms: dict[str, float] = {}
        self.allowances: dict[str, float] = {}

    # Events ---------------------------------------------------------------------------------

    def handle(self, event: events.Event) -> list[events.Effect]:
        """Handle an event; the effects, in order."""
        match event:
            case events.Joined():
                effects = self._join(event.client)
            case events.Left():
                self.connected.pop(event.client, None)
                effects = self._aggregate_if_ready(event.at)
            case events.Arrived():
                effects = self._receive(event.update, event.at)
            case events.TurnedAway():
                effects = self._turn_away(event.client, event.reason, event.at)
            case events.Ticked():
                deadline = self.deadline()
                due = deadline is not None and event.at >= deadline
                effects = self._aggregate(event.at) if due else []
            case events.Revoked():
                effects = self._revoke(event.client, event.at)
            case events.RolledBack():
                self.pooled, self.oldest_base = [], self.model.version + 1
                effects = self._issue((dict(event.tensors), event.state), (), event.at)
        return effects

    def _join(self, client: str) -> list[events.Effect]:
        self.connected[client] = None
        self.enrolled.add(client)
        if self.started:
            return [events.Send(client, self.model)]
        if len(self.enrolled) < self.min_clients:
            return []
        self.started = True
        self.model = GlobalModel(0, self.model.tensors, self._invite())
        return [events.Broadcast(self.model)]

    def _invite(self) -> frozenset[str] | None:
        if self.participation >= 1 or not self.algorithm.pool.synchronous:
            return None
        names = list(self.connected)
        count = max(1, round(self.participation * len(names)))
        rng = np.random.default_rng([self.seed, self.model.version + 1])
        return frozenset(names[i] for i in rng.choice(len(names), size=count, replace=False))

    def _receive(self, update: Update, at: float) -> list[events.Effect]:
        try:
            self.check(update, at)
        except errors.UpdateRefused as refusal:
            turned_away = self._turn_away(update.client, refusal.reason, at)
            return [events.Refuse(update, refusal), *turned_away]
        pass_over(self.last_sequence, self.skipped, update.client, update.sequence)
        self.submissions[update.client] += 1
        self._spend(update.client, at)
        staleness = max(0, self.model.version - update.base_version)
        if self.bounds.max_samples is not None:
            update = replace(update, samples=min(update.samples, self.bounds.max_samples))
        self.pooled.append(PooledUpdate(update, at, staleness))
        effects = self._aggregate_if_ready(at)
        deadline = self.deadline()
        if deadline is not None and len(self.pooled) == 1:
            effects.append(events.WakeAt(deadline))
        return effects

    def _turn_away(self, client: str, reason: str, at: float) -> list[events.Effect]:
        """Count a refusal, and wait no longer for this client's answer to the current model.

        It may never send a better one; it is asked again with the next model.
        """
        self.refused[reason] += 1
        if client not in self.enrolled or reason in _FOR_NOW:
            return []
        self._spend(client, at)
        if reason in _STILL_AWAITED:
            return []
        self.excused.add(client)
        return self._aggregate_if_ready(at)

    def _spend(self, client: str, at: float) -> None:
        if self.bounds.upload_gap_s:
            whole_at = self.allowances.get(client, at)
            self.allowances[client] = self.bounds.spent(whole_at, at)

    def _revoke(self, client: str, at: float) -> list[events.Effect]:
        """Forget a client, what of it waits in the pool, and what it added to a sum."""
        self.connected.pop(client, None)
        self.pooled = [entry for entry in self.pooled if entry.update.client != client]
        for known in (self.submissions, self.norms):
            known.pop(client, None)
        self.excused.discard(client)
        self.enrolled.discard(client)
        rule = self.algorithm.rule
        if client not in self.contributions or not isinstance(rule, SumRule):
            return self._aggregate_if_ready(at)
        gone = {client: None}
        rest = rule.changed(self.model.tensors, self.server_state, self.contributions, gone)
        del self.contributions[client]
        return self._issue(rest, (), at)

    # What may be pooled ---------------------------------------------------------------------

    def admit(self, client: str, sequence: int, at: float) -> None:
        """Whether an update may be pooled by its number and its time alone, before it is read.

        Raises:
            errors.UpdateRefused: ``replay`` or ``run-finished``; ``too-often`` or ``pool-full``
                for now.
        """
        who = f"update {sequence} of client '{client}'"
        if seen(self.last_sequence, self.skipped, client, sequence):
            raise errors.Replay(f"{who}: that sequence number was seen before")
        if self.finished:
            raise errors.RunFinished(f"{who}: the run ended with version {self.model.version}")
        if self.bounds.too_often(self.allowances.get(client, at), at):
            raise errors.TooOften(
                f"{who}: {self.bounds.burst} came at once or soon after each other"
            )
        if len(self.pooled) >= self.bounds.pooled:
            waiting = sum(entry.update.client == client for entry in self.pooled)
            if waiting >= self.bounds.pooled:
                raise errors.PoolFull(f"{who}: {waiting} of its updates wait to be aggregated")
        if self.bounds.full(self.pooled, self.shape_bounds):
            raise errors.PoolFull(f"{who}: the pool is full until the next model")

    def check(self, update: Update, at: float) -> None:
        """Raise ``UpdateRefused`` for what may not be pooled; the cheap questions come first."""
        who = f"update {update.sequence} of client '{update.client}'"
        if update.client not in self.enrolled or not self.model.invites(update.client):
            raise errors.NotInvited(
                f"{who}: not asked to take part in version {self.model.version}"
            )
        self.admit(update.client, update.sequence, at)
        if update.samples < 1:
            raise errors.BadSampleCount(f"{who}: {update.samples} samples")
        version = self.model.version
        allowed = self.algorithm.versions_back(version, self.max_staleness)
        oldest = max(version - allowed, self.oldest_base)
        if self.algorithm.trains and not oldest <= update.base_version <= version:
            raise errors.UnknownBase(
                f"{who}: base version {update.base_version}, the current one is "
                f"{version}, and {oldest} the oldest that is accepted"
            )
        if not update.delta:
            raise errors.UnknownTensor(f"{who}: no tensors")
        try:
            for name, delta in update.delta.items():
                self._check_tensor(name, delta)
            norm = self.algorithm.norm(update, self.model.tensors)
        except errors.UpdateRefused as refusal:
            raise type(refusal)(f"{who}: {refusal}") from None
        allowed_norm = self.bounds.norm(update.client, self.norms, self.model.tensors)
        # Also of what is refused: the first to speak must not decide for ever what is usual.
        self.norms[update.client] = max(norm, self.norms.get(update.client, 0.0))
        if norm > allowed_norm:
            raise errors.NormTooLarge(f"{who}: a norm of {norm:.4g}; {allowed_norm:.4g} is allowed")

    def _check_tensor(self, name: str, delta: Array) -> None:
        if name not in self.shape_bounds:
            raise errors.UnknownTensor(f"'{name}' is none of the tensors expected")
        self.shape_bounds[name].check(name, delta.shape)
        if delta.dtype != np.float32:
            raise errors.WrongDtype(f"'{name}' is {delta.dtype}, not float32")
        if not np.isfinite(delta).all():
            raise errors.NotFinite(f"'{name}' holds NaN or infinity")

    # Aggregation ----------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether the run has made all its aggregations."""
        return self.rounds is not None and self.model.version >= self.rounds

    def deadline(self) -> float | None:
        """When ``Ticked`` will aggregate, in the driver's seconds; None: not known yet."""
        seconds = self.algorithm.pool.deadline_s
        if not self.pooled:
            return None
        if self.bounds.interval_s and self._ready():
            return self._earliest()
        if seconds is None:
            return None
        return max(self.pooled[0].arrived_s + seconds, self._earliest())

    def _earliest(self) -> float:
        """When the next model may be made."""
        waits = self.bounds.interval_s and self.model.version
        return self.issued_at + self.bounds.interval_s if waits else -math.inf

    def awaited(self) -> Collection[str]:
        """The connected clients whose answer to the current model the pool may wait for."""
        if self.model.participants is None and not self.excused:
            return self.connected  # not walked through at every update of a large fleet
        return [
            client
            for client in self.connected
            if self.model.invites(client) and client not in self.excused
        ]

    def _ready(self) -> bool:
        pool = self.algorithm.pool
        voters = pool.voters(self.awaited(), self.enrolled)
        return pool.ready(self.pooled, voters) or self.bounds.full(self.pooled, self.shape_bounds)

    def _aggregate_if_ready(self, at: float) -> list[events.Effect]:
        if not self.pooled or not self._ready():
            return []
        earliest = self._earliest()
        return self._aggregate(at) if at >= earliest else [events.WakeAt(earliest)]

    def _aggregate(self, at: float) -> list[events.Effect]:
        rule, tensors = self.algorithm.rule, self.model.tensors
        clients = len(self.enrolled)
        pooled = Pooled(self.pooled, self.submissions, self.contributions, clients)
        self.pooled = []
        if isinstance(rule, SumRule):
            contributed = rule.contributions(tensors, pooled)
            made = rule.changed(tensors, self.server_state, self.contributions, contributed)
            self.contributions.update(contributed)
        else:
            made = rule.apply(tensors, pooled, self.server_state)
        return self._issue(made, tuple(entry.update.client for entry in pooled.updates), at)

    def _issue(
        self, made: Aggregated, contributors: tuple[str, ...], at: float
    ) -> list[events.Effect]:
        tensors, self.server_state = made
        self.excused = set()
        self.issued_at = at
        self.model = GlobalModel(self.model.version + 1, tensors, self._invite())
        return [events.Broadcast(self.model, contributors)]

    # Snapshots ------------------------------------------------------------------------------

    def snapshot(self) -> tuple[dict[str, Any], dict[str, Mapping[str, Array]]]:
        """All that a resumed coordinator needs: JSON-able values, and named groups of tensors."""
        values = {
            **self.model.values(),
            "connected": list(self.connected),
            "enrolled": sorted(self.enrolled),
            "pooled": [
                {
                    **entry.update.values(),
                    "arrived_s": entry.arrived_s,
                    "staleness": entry.staleness,
                }
                for entry in self.pooled
            ],
            "excused": sorted(self.excused),
        }
        values |= {name: copy(getattr(self, name)) for name in _PLAIN}
        groups = {"model": self.model.tensors, "server": self.server_state}
        groups |= {f"pooled{i}": entry.update.delta for i, entry in enumerate(self.pooled)}
        if isinstance(self.algorithm.rule, SumRule):
            groups["server"] = {}  # follows from the contributions
        kept = Remembered() if self._kept_outside else self.contributions
        values["contributions"] = [[name, own.updates, own.records] for name, own in kept.items()]
        groups |= {f"contribution{i}": own.tensors for i, own in enumerate(kept.values())}
        return values, groups

    def restore(self, values: Mapping[str, Any], groups: Mapping[str, Tensors]) -> None:
        """Continue exactly where ``snapshot`` was taken."""
        self.model = GlobalModel.restored(values, groups["model"])
        if not self._kept_outside:
            self.contributions = Remembered(
                (name, Contribution(updates, records, groups[f"contribution{i}"]))
                for i, (name, updates, records) in enumerate(values["contributions"])
            )
        rule = self.algorithm.rule
        self.server_state = (
            rule.total(self.model.tensors, self.contributions)
            if isinstance(rule, SumRule)
            else dict(groups["server"])
        )
        self.connected = dict.fromkeys(values["connected"])
        self.enrolled, self.excused = set(values["enrolled"]), set(values["excused"])
        for name in values.keys() & _PLAIN:  # ``skipped`` is newer than the others
            setattr(self, name, type(getattr(self, name))(values[name]))
        self.pooled = []
        for index, saved in enumerate(values["pooled"]):
            rest = dict(saved)
            arrived_s, staleness = rest.pop("arrived_s"), rest.pop("staleness")
            update = Update(**rest, delta=groups[f"pooled{index}"])
            self.pooled.append(PooledUpdate(update, arrived_s, staleness))
