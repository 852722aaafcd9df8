"""How a run stands: what its coordinator shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PoolStatus:
    """What waits to be aggregated.

    Attributes:
        updates: pooled.
        clients: distinct devices that sent them.
        invited: devices among whom the pool counts: those connected that it may wait for, or all.
        needed: how many clients it waits for; of FedBuff's pool, updates.
        deadline: when it is closed as it is, in the run's time; None: not known yet, or never.
    """

    updates: int
    clients: int
    invited: int
    needed: int
    deadline: float | None


@dataclass(frozen=True)
class DeviceStatus:
    """One device; ``sequence``, ``seen``, ``bytes`` and ``held`` as in ``records.DeviceRecord``.

    Attributes:
        updates: pooled since the run began.
        records: that its part of the run's sum is of; 0 where the algorithm keeps no sum.
        refused: by name, whatever was refused under this device's topics.
    """

    online: bool
    held: int | None
    sequence: int
    updates: int
    records: float
    refused: Mapping[str, int]
    bytes: int
    seen: float


@dataclass(frozen=True)
class LastAggregation:
    """The newest model's making; ``at`` in the run's time."""

    version: int
    at: float
    contributors: tuple[str, ...]
    took_s: float


@dataclass(frozen=True)
class RunStatus:
    """A run at one moment.

    Attributes:
        now: the run's time, as last written down.
        hash: of the newest model.
        started: enough devices came, so version 0 was issued.
        finished: all models that the job asked for are made.
        pooled: updates that wait in the pool.
        online, current: devices connected, and those of them that hold the newest model.
        updates: pooled since the run began.
        duplicates: updates that came again.
        refused: messages by name, unknown senders' too.
        strangers: of these, those whose topic names no device that ever sent anything.
        bytes_in: payload of all verified messages.
        waiting_bytes: chunks that wait for the rest of their message.
        given_up: uploads that were given up unfinished.
    """

    run: str
    algorithm: str
    now: float
    version: int
    hash: str
    started: bool
    finished: bool
    pooled: int
    pool: PoolStatus
    online: int
    current: int
    devices: Mapping[str, DeviceStatus]
    updates: int
    duplicates: int
    refused: Mapping[str, int]
    strangers: Mapping[str, int]
    aggregations: int
    bytes_in: int
    waiting_bytes: int
    journal_bytes: int
    given_up: Mapping[str, int] = field(default_factory=dict)
    last: LastAggregation | None = None
