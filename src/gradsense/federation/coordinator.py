"""The coordinator: the cloud's role, as a state machine without clock, socket or file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from copy import copy
from typing import Any

import numpy as np

from gradsense import errors
from gradsense.federation import events
from gradsense.federation.algorithm import Algorithm
from gradsense.federation.pools import Pooled, PooledUpdate
from gradsense.federation.update import GlobalModel, Update
from gradsense.learning.learner import Array, Tensors

#: Refusals after which the coordinator still waits for the client's update.
_STILL_AWAITED = {errors.Replay.reason, errors.RunFinished.reason}

#: Attributes that a snapshot saves unchanged.
_PLAIN = ("started", "last_sequence", "submissions", "refused")


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
        max_norm: the largest ``Algorithm.norm`` of an update.

    Attributes:
        model: the newest global model.
        bounds: the tensors that an update may have; they stay the same.
        started: version 0 was issued.
        connected: clients that are there, in the order in which they joined.
        enrolled: clients that ever joined.
        pooled: what waits to be aggregated.
        last_sequence: of each client's last pooled update.
        submissions: updates pooled from each client.
        refused: updates refused, by reason.
        excused: refused in this round: not waited for any longer.

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
        max_norm: float = math.inf,
    ) -> None:
        tensors = algorithm.opened(weights)
        self.algorithm, self.seed, self.participation = algorithm, seed, participation
        self.min_clients, self.rounds = min_clients, rounds
        self.max_staleness, self.max_norm = max_staleness, max_norm
        self.server_state = algorithm.rule.init(tensors)
        self.model = GlobalModel(0, tensors)
        self.bounds = algorithm.bounds(tensors, self.server_state)
        self.started = False
        self.enrolled: set[str] = set()
        self.connected: dict[str, None] = {}  # a dict, for an order that does not vary
        self.pooled: list[PooledUpdate] = []
        self.last_sequence: dict[str, int] = {}
        self.submissions: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.excused: set[str] = set()

    # Events ---------------------------------------------------------------------------------

    def handle(self, event: events.Event) -> list[events.Effect]:
        """Handle an event; the effects, in order."""
        match event:
            case events.Joined():
                return self._join(event.client)
            case events.Left():
                self.connected.pop(event.client, None)
                return self._aggregate_if_ready()
            case events.Arrived():
                return self._receive(event.update, event.at)
            case events.TurnedAway():
                return self._turn_away(event.client, event.reason)
            case events.Ticked():
                deadline = self.deadline()
                due = deadline is not None and event.at >= deadline
                return self._aggregate() if due else []

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
            self._check(update)
        except errors.UpdateRefused as refusal:
            return [events.Refuse(update, refusal), *self._turn_away(update.client, refusal.reason)]
        self.last_sequence[update.client] = update.sequence
        self.submissions[update.client] += 1
        staleness = self.model.version - update.base_version
        self.pooled.append(PooledUpdate(update, at, staleness))
        effects = self._aggregate_if_ready()
        deadline = self.deadline()
        if deadline is not None and len(self.pooled) == 1:
            effects.append(events.WakeAt(deadline))
        return effects

    def _turn_away(self, client: str, reason: str) -> list[events.Effect]:
        """Count a refusal, and wait no longer for this client's answer to the current model.

        A site whose update was refused may never send a better one, and one site's NaN must not
        stop the fleet. It is asked again with the next model.
        """
        self.refused[reason] += 1
        if reason in _STILL_AWAITED or client not in self.enrolled:
            return []
        self.excused.add(client)
        return self._aggregate_if_ready()

    # What may be pooled ---------------------------------------------------------------------

    def admit(self, client: str, sequence: int) -> None:
        """Whether an update may be pooled by its number alone, before it is read.

        Raises:
            errors.UpdateRefused: ``replay`` or ``run-finished``.
        """
        who = f"update {sequence} of client '{client}'"
        if sequence <= self.last_sequence.get(client, 0):
            raise errors.Replay(f"{who}: that sequence number was seen before")
        if self.finished:
            raise errors.RunFinished(f"{who}: the run ended with version {self.model.version}")

    def _check(self, update: Update) -> None:
        """Whether this update may be pooled; the cheap questions first."""
        who = f"update {update.sequence} of client '{update.client}'"
        if update.client not in self.enrolled or not self.model.invites(update.client):
            raise errors.NotInvited(
                f"{who}: not asked to take part in version {self.model.version}"
            )
        self.admit(update.client, update.sequence)
        if update.samples < 1:
            raise errors.BadSampleCount(f"{who}: {update.samples} samples")
        version = self.model.version
        allowed = self.algorithm.versions_back(version, self.max_staleness)
        if not 0 <= version - update.base_version <= allowed:
            raise errors.UnknownBase(
                f"{who}: base version {update.base_version}, the current one is "
                f"{version} and {allowed} versions back are accepted"
            )
        if not update.delta:
            raise errors.UnknownTensor(f"{who}: no tensors")
        try:
            for name, delta in update.delta.items():
                self._check_tensor(name, delta)
            norm = self.algorithm.norm(update, self.model.tensors)
        except errors.UpdateRefused as refusal:
            raise type(refusal)(f"{who}: {refusal}") from None
        if norm > self.max_norm:
            raise errors.NormTooLarge(
                f"{who}: a norm of {norm:.4g}; {self.max_norm:.4g} is allowed"
            )

    def _check_tensor(self, name: str, delta: Array) -> None:
        if name not in self.bounds:
            raise errors.UnknownTensor(f"'{name}' is none of the tensors expected")
        self.bounds[name].check(name, delta.shape)
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
        if seconds is None or not self.pooled:
            return None
        return self.pooled[0].arrived_s + seconds

    def awaited(self) -> Collection[str]:
        """The connected clients whose answer to the current model the pool may wait for."""
        if self.model.participants is None and not self.excused:
            return self.connected  # not walked through at every update of a large fleet
        return [
            client
            for client in self.connected
            if self.model.invites(client) and client not in self.excused
        ]

    def _aggregate_if_ready(self) -> list[events.Effect]:
        ready = self.algorithm.pool.ready(self.pooled, self.awaited())
        return self._aggregate() if ready else []

    def _aggregate(self) -> list[events.Effect]:
        pooled = Pooled(self.pooled, self.submissions)
        self.pooled, self.excused = [], set()
        tensors, self.server_state = self.algorithm.rule.apply(
            self.model.tensors, pooled, self.server_state
        )
        self.model = GlobalModel(self.model.version + 1, tensors, self._invite())
        return [
            events.Broadcast(self.model, tuple(entry.update.client for entry in pooled.updates))
        ]

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
        return values, groups

    def restore(self, values: Mapping[str, Any], groups: Mapping[str, Tensors]) -> None:
        """Continue exactly where ``snapshot`` was taken."""
        self.model = GlobalModel.restored(values, groups["model"])
        self.server_state = dict(groups["server"])
        self.connected = dict.fromkeys(values["connected"])
        self.enrolled, self.excused = set(values["enrolled"]), set(values["excused"])
        for name in _PLAIN:
            setattr(self, name, type(getattr(self, name))(values[name]))
        self.pooled = []
        for index, saved in enumerate(values["pooled"]):
            rest = dict(saved)
            arrived_s, staleness = rest.pop("arrived_s"), rest.pop("staleness")
            update = Update(**rest, delta=groups[f"pooled{index}"])
            self.pooled.append(PooledUpdate(update, arrived_s, staleness))
