"""When something may happen: a cap on bytes a second, and the pauses between attempts.

Time and randomness are arguments.
"""

from __future__ import annotations

import random

#: A connection that held for so long was a good one.
_STEADY_S = 2.0


class Rate:
    """Lets at most ``burst + bytes_per_s * t`` bytes pass in any ``t`` seconds: a token bucket.

    Args:
        bytes_per_s: tokens that come in each second; None: no cap.
        burst: bytes that may pass at once after a pause, so no message may be larger.

    Raises:
        ValueError: the rate or the burst is not positive.

    >>> rate = Rate(bytes_per_s=1000.0, burst=4000)
    >>> rate.take(4000, now=0.0), rate.wait_s(500, now=0.0)
    (True, 0.5)
    """

    def __init__(self, bytes_per_s: float | None, burst: int) -> None:
        if burst <= 0 or (bytes_per_s is not None and not bytes_per_s > 0):
            raise ValueError("a rate and its burst are positive")
        self._rate, self._burst = bytes_per_s, burst
        self._tokens, self._at = float(burst), float("-inf")

    def wait_s(self, size: int, now: float) -> float:
        """Seconds from ``now`` until ``size`` bytes may pass; 0: they may.

        Raises:
            ValueError: they never may, being more than the burst.
        """
        if self._rate is None:
            return 0.0
        if size > self._burst:
            raise ValueError(f"{size} bytes never pass a burst of {self._burst}")
        return max(0.0, (size - self._available(self._rate, now)) / self._rate)

    def take(self, size: int, now: float) -> bool:
        """Let ``size`` bytes pass; False, and nothing is taken, if it is too early.

        Raises: as ``wait_s``.
        """
        if self.wait_s(size, now) > 0:
            return False
        if self._rate is not None:
            self._tokens = self._available(self._rate, now) - size
            self._at = max(self._at, now)
        return True

    def _available(self, rate: float, now: float) -> float:
        passed = max(0.0, now - self._at)  # ignore a clock that runs backwards
        return min(float(self._burst), self._tokens + rate * passed)


class Backoff:
    """How long to wait before the next attempt: longer each time, and for everybody different.

    From 1 s to 8 s, of which a random part of at least a tenth, so that a fleet does not come back
    to a restarted broker all at once, and yet within seconds.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._failures = rng, 0

    def wait_s(self, held_s: float) -> float:
        """Seconds to wait after a connection that held for ``held_s``; 0: there was none."""
        self._failures = 0 if held_s >= _STEADY_S else self._failures
        wait = self._rng.uniform(0.1, 1.0) * min(8.0, 2.0**self._failures)
        self._failures = min(self._failures + 1, 8)
        return wait
