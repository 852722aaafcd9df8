"""How a run stands, as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gradsense.coordinator.journal import DUPLICATES, GIVEN_UP, REFUSED, DeviceRecord, IssuedModel
from gradsense.coordinator.state import RunState
from gradsense.federation.coordinator import Coordinator


@dataclass(frozen=True)
class PoolStatus:
    """What waits to be aggregated.

    Attributes:
        updates: pooled.
        speakers: distinct devices that sent them.
        invited: connected devices that the pool may wait for.
        needed: how many speakers it waits for; of FedBuff's pool, updates.
        deadline: when it is closed as it is, in the run's time; None: not known yet, or never.
    """

    updates: int
    speakers: int
    invited: int
    needed: int
    deadline: float | None


@dataclass(frozen=True)
class DeviceStatus:
    """One device; ``sequence``, ``seen``, ``bytes`` and ``held`` as in ``rows.Device``.

    Attributes:
        updates: pooled since the run began.
        refused: by name, whatever was refused under this device's topics.
    """

    online: bool
    held: int | None
    sequence: int
    updates: int
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

    def to_json(self) -> dict[str, Any]:
        """JSON-able values under the same names."""
        return asdict(self)


def of(memory: RunState, *, journal_bytes: int) -> RunStatus:
    """How a run stands, as its memory has it."""
    coordinator, devices, counts = memory.coordinator, memory.devices, memory.counts
    version = coordinator.model.version
    online = [devices[name] for name in coordinator.connected]
    return RunStatus(
        run=memory.job.run,
        algorithm=memory.job.algorithm,
        now=memory.now,
        version=version,
        hash=memory.hashes[version],
        started=coordinator.started,
        finished=coordinator.finished,
        pooled=len(coordinator.pooled),
        pool=_pool(coordinator),
        online=len(online),
        current=sum(device.held == version for device in online),
        devices=_devices(devices, coordinator, counts),
        updates=coordinator.submissions.total(),
        duplicates=counts["", DUPLICATES],
        refused=_refused(counts),
        strangers=_refused(counts, strangers=True),
        aggregations=version,
        bytes_in=sum(device.bytes for device in devices.values()),
        waiting_bytes=memory.inbox.held,
        journal_bytes=journal_bytes,
        given_up=_given_up(counts),
        last=_last(memory.newest),
    )


def _pool(coordinator: Coordinator) -> PoolStatus:
    """How far the pool is."""
    entries, invited = coordinator.pooled, len(coordinator.awaited())
    speakers = {entry.update.client for entry in entries}
    needed = coordinator.algorithm.pool.needed(invited)
    return PoolStatus(len(entries), len(speakers), invited, needed, coordinator.deadline())


def _devices(
    devices: Mapping[str, DeviceRecord], coordinator: Coordinator, counts: Counter[tuple[str, str]]
) -> dict[str, DeviceStatus]:
    """Every device that ever sent anything, by name."""
    refused: dict[str, dict[str, int]] = {}
    for (device, name), value in counts.items():
        if name.startswith(REFUSED):
            refused.setdefault(device, {})[name.removeprefix(REFUSED)] = value
    return {
        name: DeviceStatus(
            online=name in coordinator.connected,
            held=device.held,
            sequence=device.sequence,
            updates=coordinator.submissions.get(name, 0),
            refused=refused.get(name, {}),
            bytes=device.bytes,
            seen=device.seen,
        )
        for name, device in devices.items()
    }


def _refused(counts: Counter[tuple[str, str]], *, strangers: bool = False) -> dict[str, int]:
    """Messages refused, by name; of everybody, or of strangers alone."""
    found: Counter[str] = Counter()
    for (device, name), value in counts.items():
        if name.startswith(REFUSED) and not (strangers and device):
            found[name.removeprefix(REFUSED)] += value
    return dict(found)


def _given_up(counts: Counter[tuple[str, str]]) -> dict[str, int]:
    """Uploads given up, by reason."""
    return {
        name.removeprefix(GIVEN_UP): value
        for (_, name), value in counts.items()
        if name.startswith(GIVEN_UP)
    }


def _last(newest: IssuedModel) -> LastAggregation | None:
    """None while version 0 is the newest."""
    if newest.version == 0:
        return None
    return LastAggregation(newest.version, newest.at, newest.contributors, newest.took_s)
