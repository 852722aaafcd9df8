"""Times of a log as other formats write them."""

from __future__ import annotations

from datetime import UTC, datetime

#: The last second that ``datetime`` knows. A broken log may claim a later one, and an alert about
#: it must still go out.
_LAST = 253_402_300_799.0


def milliseconds(ts: float) -> int:
    """Whole milliseconds since the epoch."""
    return round(min(max(ts, 0.0), _LAST) * 1000)


def iso(ts: float) -> str:
    """For example ``2018-12-21T15:50:14.182Z`` (ISO 8601 and RFC 3339)."""
    seconds, rest = divmod(milliseconds(ts), 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"
