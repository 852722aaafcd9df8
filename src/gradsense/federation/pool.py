"""When does the cloud aggregate? The second column of the strategy table."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from gradsense.federation.update import Update


@dataclass(frozen=True)
class PooledUpdate:
    """One pooled update, (Δθ_k, time_k, k) of eq 12.

    Attributes:
        update: what arrived.
        arrived_s: when, in the engine's seconds.
        staleness: global versions issued since the update's base, counted on arrival.
    """

    update: Update
    arrived_s: float
    staleness: int


class Pool(Protocol):
    """The interface of every pool policy."""

    @property
    def synchronous(self) -> bool:
        """Whether an update must start from the current model; a later one is refused."""
        ...

    @property
    def deadline_s(self) -> float | None:
        """Seconds after which a pool that is not empty is aggregated as it is; None: never."""
        ...

    def needed(self, invited: int) -> int:
        """How many distinct clients it waits for, or updates, of so many that are invited."""
        ...

    def ready(self, entries: Sequence[PooledUpdate], invited: Collection[str]) -> bool:
        """Whether to aggregate now. ``invited`` are the connected clients asked to take part."""
        ...


def _speakers(entries: Sequence[PooledUpdate]) -> set[str]:
    return {entry.update.client for entry in entries}


@dataclass(frozen=True)
class AllInvited:
    """Wait for everybody who was asked and is still connected: FedAvg, FedOpt."""

    deadline_s: float | None = None
    synchronous: bool = True

    def needed(self, invited: int) -> int:
        return max(1, invited)

    def ready(self, entries: Sequence[PooledUpdate], invited: Collection[str]) -> bool:
        # Counted first: a fleet of thousands is not compared by name at every update.
        enough = len(entries) >= self.needed(len(invited))
        return enough and _speakers(entries) >= set(invited)


@dataclass(frozen=True)
class Quorum:
    """Wait for a share of distinct clients, 60 % in the paper (eq 12).

    The paper's pool can wait for ever when too few clients ever trigger; ``deadline_s`` ends
    that. It counts from the pool's first update.
    """

    share: float = 0.6
    deadline_s: float | None = None
    synchronous: bool = False

    def needed(self, invited: int) -> int:
        # The epsilon keeps 0.6 × 5 = 3.0000000000000004 from asking for a fourth client.
        return max(1, math.ceil(self.share * invited - 1e-9))

    def ready(self, entries: Sequence[PooledUpdate], invited: Collection[str]) -> bool:
        needed = self.needed(len(invited))
        return len(entries) >= needed and len(_speakers(entries)) >= needed


@dataclass(frozen=True)
class Count:
    """Wait for K updates, whoever sent them: FedBuff (Nguyen et al. 2022, arXiv 2106.06639).

    A fleet of fewer than K clients would fill its pool with repeats, so K never exceeds it.
    """

    updates: int = 10
    deadline_s: float | None = None
    synchronous: bool = False

    def needed(self, invited: int) -> int:
        return max(1, min(self.updates, invited))

    def ready(self, entries: Sequence[PooledUpdate], invited: Collection[str]) -> bool:
        return len(entries) >= self.needed(len(invited))
