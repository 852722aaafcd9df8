"""Numbers of a client's updates that came out of order.

A client sends its updates in order. Only after the coordinator was restored from a backup may an
older one come behind a newer: the client offers again what the backup does not know.
"""

from __future__ import annotations

from collections.abc import Mapping

#: Numbers of one client that are remembered as skipped; a client keeps as many updates.
MOST_SKIPPED = 128


def seen(
    last: Mapping[str, int], skipped: Mapping[str, list[int]], client: str, sequence: int
) -> bool:
    """Whether this number may be pooled no more."""
    return sequence <= last.get(client, 0) and sequence not in skipped.get(client, ())


def pass_over(
    last: dict[str, int], skipped: dict[str, list[int]], client: str, sequence: int
) -> None:
    """Note that this update was pooled, and which numbers before it have not come.

    >>> last, skipped = {}, {}
    >>> for number in (1, 4, 2):
    ...     pass_over(last, skipped, "cam", number)
    >>> last, skipped
    ({'cam': 4}, {'cam': [3]})
    """
    before, missing = last.get(client, 0), skipped.get(client, [])
    if sequence > before:
        first = max(before + 1, sequence - MOST_SKIPPED)
        missing = [*missing, *range(first, sequence)][-MOST_SKIPPED:]
    else:
        missing = [number for number in missing if number != sequence]
    last[client] = max(before, sequence)
    skipped.pop(client, None)
    if missing:
        skipped[client] = missing
