"""What one client may do to a run, whatever it signs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from gradsense.federation.pools import PooledUpdate
from gradsense.federation.update import ShapeBounds
from gradsense.learning.learner import Tensors, norm_of

#: So many other clients must have been seen before they say what is usual.
_ENOUGH_OTHERS = 3


@dataclass(frozen=True)
class Bounds:
    """The defaults bound nothing, as in a simulation, where every client is one's own.

    Attributes:
        max_norm: the largest ``Algorithm.norm`` of an update.
        norm_ratio: that norm may be so many times what is usual in this fleet: the median of
            the other clients' largest. Where there are too few others to say so, the largest yet,
            or the model's own norm.
        max_samples: records that a client counts for, at most, whatever it claims.
        interval_s: the least time between two models, in the driver's seconds.
        upload_gap_s: a client may upload once in so many seconds, on average.
        burst: uploads that it may make at once after a pause.
        pooled: updates of one client that may wait in the pool.
        pool_bytes: of tensors that may wait in the pool; a full pool is aggregated as it is.
    """

    max_norm: float = math.inf
    norm_ratio: float = math.inf
    max_samples: int | None = None
    interval_s: float = 0.0
    upload_gap_s: float = 0.0
    burst: int = 1
    pooled: float = math.inf
    pool_bytes: float = math.inf

    def norm(self, client: str, norms: Mapping[str, float], tensors: Tensors) -> float:
        """The largest norm that an update of this client may have.

        Args:
            norms: the largest of each client that was ever pooled.
            tensors: of the global model.
        """
        if math.isinf(self.norm_ratio):
            return self.max_norm
        others = [norm for name, norm in norms.items() if name != client]
        if len(others) >= _ENOUGH_OTHERS:
            usual = median(others)
        else:
            usual = max([norm_of(tensors), *norms.values()])
        return min(self.max_norm, self.norm_ratio * usual) if usual else self.max_norm

    def full(self, pooled: Sequence[PooledUpdate], shapes: ShapeBounds) -> bool:
        """Whether the pool holds all the bytes that it may.

        Args:
            shapes: of an update's tensors, at most.
        """
        most = sum(4 * math.prod(bound.shape) for bound in shapes.values())
        if len(pooled) * most < self.pool_bytes:
            return False  # a large pool is not walked through at every update
        held = sum(t.nbytes for entry in pooled for t in entry.update.delta.values())
        return held >= self.pool_bytes

    def spent(self, whole_at: float, at: float) -> float:
        """When a client's allowance is whole again, if it uploads at ``at``; see ``too_often``."""
        return max(whole_at, at) + self.upload_gap_s

    def too_often(self, whole_at: float, at: float) -> bool:
        """Whether a client's allowance is used up (the generic cell rate algorithm, ITU-T I.371).

        Args:
            whole_at: when it is whole again.
        """
        return whole_at - at > self.burst * self.upload_gap_s - self.upload_gap_s
