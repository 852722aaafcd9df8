"""The coordinator: the cloud's role, as a state machine without clock, socket or file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from gradsense.errors import (
    BadSampleCount,
    NormTooLarge,
    NotFinite,
    NotInvited,
    Replay,
    UnknownBase,
    UnknownTensor,
    UpdateRefused,
    WrongDtype,
    WrongShape,
)
from gradsense.federation.pool import PooledUpdate
from gradsense.federation.scaffold import with_controls
from gradsense.federation.strategies import Strategy
from gradsense.federation.update import GlobalModel, Update
from gradsense.learning.learner import Array, Tensors
from gradsense.learning.statistics import HEAD_BIAS, MOMENTS

#: A lossy codec rounds moments, up as well as down: of one flow alone by up to 28 %.
_ROUNDED = 2.0


class Coordinator:
    """Pools updates, aggregates them, and issues the next global model.

    ``receive``, ``tick`` and ``leave`` return a new ``GlobalModel`` when they bring about an
    aggregation, else None. The engine tells it the time; it holds none.

    Args:
        tensors: the first global model, version 0.
        strategy: whose pool and aggregator rule.
        participation: share of the connected clients invited to each synchronous round.
        max_staleness: an asynchronous update may start this many versions back. Moments may start
            from any: their sum has no order, and a site that was away for long is still news.
        max_norm: largest L2 norm of an update's delta; of moments, of the root of the mean square
            of its flows.
        seed: draws the invited clients.
    """

    def __init__(
        self,
        tensors: Tensors,
        strategy: Strategy,
        *,
        seed: int,
        participation: float = 1.0,
        max_staleness: int = 20,
        max_norm: float = math.inf,
    ) -> None:
        tensors = with_controls(tensors) if strategy.controls else tensors
        self.strategy = strategy
        self.participation = participation
        self.max_staleness = max_staleness
        self.max_norm = max_norm
        self.seed = seed
        self.server_state = strategy.aggregator.init(tensors)
        self.model = GlobalModel(0, tensors)
        self.enrolled: set[str] = set()
        self.connected: dict[str, None] = {}  # a dict, for an order that does not vary
        self.entries: list[PooledUpdate] = []
        self.last_sequence: dict[str, int] = {}
        self.submissions: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.excused: set[str] = set()  # refused in this round: not waited for any longer

    # The fleet ------------------------------------------------------------------------------

    def enrol(self, clients: Iterable[str]) -> GlobalModel:
        """Connect the first clients and issue version 0."""
        self.connected |= dict.fromkeys(clients)
        self.enrolled |= set(self.connected)
        self.model = GlobalModel(0, self.model.tensors, self._invite())
        return self.model

    def join(self, client: str) -> GlobalModel:
        """A client came, or came back. Returns the model that it should adopt."""
        self.connected[client] = None
        self.enrolled.add(client)
        return self.model

    def leave(self, client: str) -> GlobalModel | None:
        """A client went. The pool no longer waits for it; what it sent still counts."""
        self.connected.pop(client, None)
        return self._aggregate_if_ready()

    def _invite(self) -> frozenset[str] | None:
        if self.participation >= 1 or not self.strategy.pool.synchronous:
            return None
        names = list(self.connected)
        count = max(1, round(self.participation * len(names)))
        rng = np.random.default_rng([self.seed, self.model.version + 1])
        return frozenset(names[i] for i in rng.choice(len(names), size=count, replace=False))

    # Updates --------------------------------------------------------------------------------

    def receive(self, update: Update, now: float) -> GlobalModel | None:
        """Check an update and pool it.

        Raises:
            UpdateRefused: one of its named kinds; counted in ``refused``, nothing pooled. The
                engine then calls ``excuse``, so that nobody waits for that client's answer.
        """
        try:
            self._check(update)
        except UpdateRefused as refusal:
            self.refused[refusal.reason] += 1
            raise
        self.last_sequence[update.client] = update.sequence
        self.submissions[update.client] += 1
        staleness = self.model.version - update.base_version
        self.entries.append(PooledUpdate(update, now, staleness))
        return self._aggregate_if_ready()

    def excuse(self, client: str) -> GlobalModel | None:
        """Wait no longer for this client's answer to the current model.

        A site whose update was refused may never send a better one, and one site's NaN must not
        stop the fleet. It is asked again with the next model.
        """
        self.excused.add(client)
        return self._aggregate_if_ready()

    def _check(self, update: Update) -> None:
        """Whether this update may be pooled; the cheap questions first."""
        who = f"update {update.sequence} of client '{update.client}'"
        if update.client not in self.enrolled or not self.model.invites(update.client):
            raise NotInvited(f"{who}: not asked to take part in version {self.model.version}")
        if update.sequence <= self.last_sequence.get(update.client, 0):
            raise Replay(f"{who}: that sequence number was seen before")
        if update.samples < 1:
            raise BadSampleCount(f"{who}: {update.samples} samples")
        allowed = self._versions_back()
        if not 0 <= self.model.version - update.base_version <= allowed:
            raise UnknownBase(
                f"{who}: base version {update.base_version}, the current one is "
                f"{self.model.version} and {allowed} versions back are accepted"
            )
        if not update.delta:
            raise UnknownTensor(f"{who}: no tensors")
        for name, delta in update.delta.items():
            expected = self._expected_shape(name, delta, who)
            if delta.shape != expected:
                raise WrongShape(f"{who}: '{name}' is {delta.shape}, not {expected}")
            if delta.dtype != np.float32:
                raise WrongDtype(f"{who}: '{name}' is {delta.dtype}, not float32")
            if not np.isfinite(delta).all():
                raise NotFinite(f"{who}: '{name}' holds NaN or infinity")
        self._check_norm(update, who)

    def _versions_back(self) -> int:
        """How many versions back an update may start."""
        if self.strategy.payload == "moments":
            return self.model.version
        return 0 if self.strategy.pool.synchronous else self.max_staleness

    def _check_norm(self, update: Update, who: str) -> None:
        """Whether no site speaks louder than it may.

        Of moments R the squares of the last columns are counts: the constant's and, together, the
        labels' are the flows that R is of. So a site that says it read ten flows cannot weigh as
        much as a hundred.
        """
        norm = math.sqrt(
            sum(float(np.square(d, dtype=np.float64).sum()) for d in update.delta.values())
        )
        if self.strategy.payload == "moments":
            classes = len(self.model.tensors[HEAD_BIAS])
            squares = np.square(update.delta[MOMENTS], dtype=np.float64)
            counts = squares[:, -classes - 1].sum(), squares[:, -classes:].sum()
            if max(counts) > _ROUNDED * update.samples:
                raise NormTooLarge(
                    f"{who}: moments of {max(counts):.0f} flows, where it read {update.samples}"
                )
            norm /= math.sqrt(update.samples)
        if norm > self.max_norm:
            raise NormTooLarge(f"{who}: a norm of {norm:.4g}; {self.max_norm:.4g} is allowed")

    def _expected_shape(self, name: str, delta: Array, who: str) -> tuple[int, ...]:
        if self.strategy.payload == "moments":
            if name != MOMENTS:
                raise UnknownTensor(f"{who}: '{name}' where moments were expected")
            width = len(self.server_state[MOMENTS])
            # As many rows as the site saw directions, but never more than there are.
            return (min(max(1, len(delta)), width), width) if delta.ndim else (1, width)
        if name not in self.model.tensors:
            raise UnknownTensor(f"{who}: the global model has no tensor '{name}'")
        return self.model.tensors[name].shape

    # Aggregation ----------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When ``tick`` will have something to do, in the engine's seconds; None: not yet known."""
        seconds = self.strategy.pool.deadline_s
        if seconds is None or not self.entries:
            return None
        return self.entries[0].arrived_s + seconds

    def tick(self, now: float) -> GlobalModel | None:
        """Aggregate what is pooled if the deadline has passed."""
        deadline = self.deadline()
        return self._aggregate() if deadline is not None and now >= deadline else None

    def waited_for(self) -> Collection[str]:
        """The connected clients whose answer to the current model the pool may wait for."""
        if self.model.participants is None and not self.excused:
            return self.connected  # not walked through at every update of a large fleet
        return [
            client
            for client in self.connected
            if self.model.invites(client) and client not in self.excused
        ]

    def _aggregate_if_ready(self) -> GlobalModel | None:
        ready = self.strategy.pool.ready(self.entries, self.waited_for())
        return self._aggregate() if ready else None

    def _aggregate(self) -> GlobalModel:
        tensors, self.server_state = self.strategy.aggregator.apply(
            self.model.tensors, self.entries, self.submissions, self.server_state
        )
        self.entries = []
        self.excused = set()
        self.model = GlobalModel(self.model.version + 1, tensors, self._invite())
        return self.model

    # Rest -----------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Any], dict[str, Mapping[str, Array]]]:
        """All that a resumed coordinator needs: JSON-able values, and named groups of tensors."""
        participants = self.model.participants
        entries = [
            {
                "client": entry.update.client,
                "base_version": entry.update.base_version,
                "sequence": entry.update.sequence,
                "samples": entry.update.samples,
                "reason": entry.update.reason,
                "score": entry.update.score,
                "arrived_s": entry.arrived_s,
                "staleness": entry.staleness,
            }
            for entry in self.entries
        ]
        values = {
            "version": self.model.version,
            "participants": None if participants is None else sorted(participants),
            "connected": list(self.connected),
            "enrolled": sorted(self.enrolled),
            "entries": entries,
            "last_sequence": dict(self.last_sequence),
            "submissions": dict(self.submissions),
            "refused": dict(self.refused),
            "excused": sorted(self.excused),
        }
        groups = {"model": self.model.tensors, "server": self.server_state}
        groups |= {f"entry{i}": entry.update.delta for i, entry in enumerate(self.entries)}
        return values, groups

    def restore(self, values: Mapping[str, Any], groups: Mapping[str, Tensors]) -> None:
        """Continue exactly where ``state`` was taken."""
        invited = values["participants"]
        participants = None if invited is None else frozenset(invited)
        self.model = GlobalModel(values["version"], groups["model"], participants)
        self.server_state = dict(groups["server"])
        self.connected = dict.fromkeys(values["connected"])
        self.enrolled = set(values["enrolled"])
        self.last_sequence = dict(values["last_sequence"])
        self.submissions = Counter(values["submissions"])
        self.refused = Counter(values["refused"])
        self.excused = set(values["excused"])
        self.entries = []
        for index, saved in enumerate(values["entries"]):
            fields = dict(saved)
            arrived_s, staleness = fields.pop("arrived_s"), fields.pop("staleness")
            update = Update(**fields, delta=groups[f"entry{index}"])
            self.entries.append(PooledUpdate(update, arrived_s, staleness))
