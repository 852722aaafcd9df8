"""The limits of escalation: bytes per minute, and the time of one request."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ByteBudget:
    """A token bucket of at most ``per_minute`` bytes, refilled evenly over a minute.

    In any span of t seconds it grants at most ``per_minute`` · (1 + t / 60) bytes. A clock that
    is set back refills nothing.
    """

    per_minute: int
    _left: float = field(init=False)
    _at: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._left = float(self.per_minute)

    def left(self, now: float) -> int:
        """Bytes that ``take`` would grant at ``now`` (seconds of any monotonic clock)."""
        if self._at is None or now > self._at:
            since = 0.0 if self._at is None else now - self._at
            self._left = min(self.per_minute, self._left + since * self.per_minute / 60)
            self._at = now
        return int(self._left)

    def take(self, size: int, now: float) -> bool:
        """Spend ``size`` bytes if they are there; otherwise nothing is spent."""
        if size > self.left(now):
            return False
        self._left -= size
        return True


@dataclass(frozen=True)
class TimeBudget:
    """The deadline of one request, in monotonic seconds."""

    ends: float

    @classmethod
    def of(cls, seconds: float, now: float) -> TimeBudget:
        """``seconds`` from ``now`` on."""
        return cls(now + seconds)

    def left(self, now: float) -> float:
        """Seconds that are left, never below 0."""
        return max(0.0, self.ends - now)
