"""Pools: when does the cloud aggregate?"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import ClassVar, Literal

from pydantic import Field

from gradsense.federation.contributions import Contributions, Remembered
from gradsense.federation.parts import AtLeastOne, NonNegative, Share, part
from gradsense.federation.update import Update


@dataclasses.dataclass(frozen=True)
class PooledUpdate:
    """One entry of the pool, (Δθ_k, time_k, k) of eq 12.

    Attributes:
        update: what arrived.
        arrived_s: when, in the driver's seconds.
        staleness: global versions issued since the update's base, counted on arrival.
    """

    update: Update
    arrived_s: float
    staleness: int


@dataclasses.dataclass(frozen=True)
class Pooled:
    """What is aggregated.

    Attributes:
        updates: at least one, in the order of arrival.
        submissions: updates accepted from each client since the run began, these included.
        contributions: of all clients before these updates, where the rule keeps them.
        clients: N, every client of the fleet; 0 where nobody has counted them.
    """

    updates: Sequence[PooledUpdate]
    submissions: Mapping[str, int]
    contributions: Contributions = dataclasses.field(default_factory=Remembered)
    clients: int = 0


@part
class Pool(ABC):
    """The interface of every pool.

    Attributes:
        synchronous: an update must start from the current model; a later one is refused.
        deadline_s: seconds from the pool's first update after which it is aggregated as it is;
            None: never.
    """

    synchronous: ClassVar[bool] = False
    deadline_s: NonNegative | None = Field(default=None, kw_only=True)

    @abstractmethod
    def needed(self, invited: int) -> int:
        """How many distinct clients, or updates, the pool waits for, of so many invited."""

    @abstractmethod
    def ready(self, pooled: Sequence[PooledUpdate], invited: Collection[str]) -> bool:
        """Whether to aggregate now. ``invited`` is what ``voters`` gave."""

    def voters(self, awaited: Collection[str], enrolled: Collection[str]) -> Collection[str]:
        """The clients among whom ``ready`` counts.

        By default ``awaited``, the connected ones asked to take part whose answer may still come;
        ``enrolled`` are all that ever joined and were not revoked.
        """
        return awaited


def senders(pooled: Sequence[PooledUpdate]) -> set[str]:
    """The distinct clients in a pool."""
    return {entry.update.client for entry in pooled}


@part
class AllInvited(Pool):
    """Wait for everybody who was asked and is still connected: FedAvg, FedOpt."""

    synchronous: ClassVar[bool] = True

    def needed(self, invited: int) -> int:
        return max(1, invited)

    def ready(self, pooled: Sequence[PooledUpdate], invited: Collection[str]) -> bool:
        # Counted first: a fleet of thousands is not compared by name at every update.
        enough = len(pooled) >= self.needed(len(invited))
        return enough and senders(pooled) >= set(invited)


@part
class Quorum(Pool):
    """Wait for a share of distinct clients, 60 % in the paper (eq 12).

    The paper's pool can wait for ever when too few clients ever trigger; ``deadline_s`` ends that.

    Attributes:
        share: of the distinct clients.
        among: ``all`` counts the share over every client of the fleet, also one that is offline,
            as eq 12 does; ``connected`` over those that can answer now.

    >>> Quorum(0.6, deadline_s=30.0).needed(invited=5)
    3
    """

    share: Share = 0.6
    among: Literal["connected", "all"] = "connected"

    def voters(self, awaited: Collection[str], enrolled: Collection[str]) -> Collection[str]:
        return enrolled if self.among == "all" else awaited

    def needed(self, invited: int) -> int:
        # The share as it is written: 0.55 of 100 is 55, although 0.55 * 100 is a little more.
        return max(1, math.ceil(Fraction(repr(self.share)) * invited))

    def ready(self, pooled: Sequence[PooledUpdate], invited: Collection[str]) -> bool:
        needed = self.needed(len(invited))
        return len(pooled) >= needed and len(senders(pooled)) >= needed


@part
class Count(Pool):
    """Wait for K updates, whoever sent them: FedBuff (Nguyen et al. 2022, arXiv 2106.06639).

    A fleet of fewer than K clients would fill its pool with repeats, so K never exceeds it.
    """

    updates: AtLeastOne = 10

    def needed(self, invited: int) -> int:
        return max(1, min(self.updates, invited))

    def ready(self, pooled: Sequence[PooledUpdate], invited: Collection[str]) -> bool:
        return len(pooled) >= self.needed(len(invited))
