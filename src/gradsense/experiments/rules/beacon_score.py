"""The beacon score of RITA v5 (activecm/rita, ``analysis/beacons.go``), on conn.log alone.

The mean of four scores from 0 to 1 of the connections from one local to one outside address within
24 hours: regular times between them, equal sizes, a flat or two-level histogram of 24 bins, and
duration. Weights and thresholds are those of its default configuration (``config/config.go``).
RITA also scores host names from http and ssl logs, and modifies its threat score by prevalence,
first sight and threat lists; a conn.log has none of these. It analyses after every imported hour.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, median, pstdev

import polars as pl

from gradsense.data.networks import Networks
from gradsense.experiments.device_hours import DAY_S, HOUR_S, RaisedAlert
from gradsense.experiments.rules.published import PublishedRule

ALERT_AT = 0.8
_LEAST_TIMES, _MOST_CONNECTIONS = 4, 86_400
_BINS, _MODE_SENSITIVITY, _OUTLIERS, _BIMODAL_BARS = 24, 0.05, 1, 11
_DURATION_BARS, _IDEAL_RUN = 6, 12
#: Of the interquartile range, seconds or bytes: below it a skew means nothing.
_LEAST_SPREAD = 10


def raised(flows: pl.DataFrame, networks: Networks) -> list[RaisedAlert]:
    """One alert for a pair of addresses and a run of hours in which it scores ``ALERT_AT`` or more.

    The alert has the connections of the pair that were scored, and is raised at the end of the
    first of these hours. After an hour in which the pair was scored below, the next is another.
    """
    order = flows.with_row_index("row").sort("ts", maintain_order=True)
    columns = ("row", "ts", "orig_h", "resp_h", "orig_ip_bytes")
    pairs: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    hours: dict[int, dict[tuple[str, str], int]] = {}
    latest: dict[int, float] = {}
    earliest = math.inf
    for row, ts, orig_h, resp_h, size in order.select(columns).iter_rows():
        if not networks.is_local(orig_h) or networks.is_local(resp_h) or not _routed(resp_h):
            continue
        one = pairs.setdefault((orig_h, resp_h), [])
        one.append((row, ts, float(size or 0)))
        hour = int(ts // HOUR_S)
        hours.setdefault(hour, {})[orig_h, resp_h] = len(one)
        latest[hour], earliest = ts, min(earliest, ts)
    found: list[tuple[float, str, dict[int, None]]] = []
    open_: dict[tuple[str, str], dict[int, None]] = {}
    for hour, active in hours.items():
        end = latest[hour]
        begin = max(earliest, end - DAY_S)
        floor = begin // HOUR_S * HOUR_S
        for pair, count in active.items():
            recent = [one for one in pairs[pair][:count] if one[1] >= floor]
            times = [int(ts) for _, ts, _ in recent]
            score = beacon_score(times, [size for *_, size in recent], int(begin), int(end))
            if score is None or score < ALERT_AT:
                open_.pop(pair, None)
                continue
            if pair not in open_:
                open_[pair] = {}
                found.append(((hour + 1) * HOUR_S, pair[0], open_[pair]))
            open_[pair].update(dict.fromkeys(row for row, *_ in recent))
    return [RaisedAlert(time, device, tuple(rows)) for time, device, rows in found]


def beacon_score(
    times: Sequence[int], sizes: Sequence[float], begin: int, end: int
) -> float | None:
    """The score of one pair, 0..1; None for too few connections, or so many that it is no beacon.

    Args:
        times: whole seconds since the epoch when the connections began, in order.
        sizes: IP bytes from the originator, one a connection.
        begin, end: of the data, at most 24 hours apart.
    """
    gaps = sorted(b - a for a, b in pairwise(times) if b > a)
    if len(gaps) < _LEAST_TIMES - 1 or len(times) >= _MOST_CONNECTIONS or end <= begin:
        return None
    bars = _histogram(times, begin, end)
    parts = (
        _regularity(gaps, 1.0),
        _regularity(sorted(sizes), 0.0),
        max(_flatness(bars), _two_levels(bars)),
        _duration(times, bars, begin, end),
    )
    return round(fmean(parts), 3)


def _regularity(values: Sequence[float], if_small: float) -> float:
    """How symmetric and how narrow sorted values are; ``if_small`` where the median is below 1."""
    half = len(values) // 2
    low, middle, high = median(values[:half]), median(values), median(values[-half:])
    skew = 0.0
    if high - low >= _LEAST_SPREAD and middle not in (low, high):
        skew = (low + high - 2 * middle) / (high - low)
    spread = median(abs(value - middle) for value in values)
    narrow = max(0.0, (middle - spread) / middle) if middle >= 1 else if_small
    return round((1 - abs(skew) + narrow) / 2, 3)


def _histogram(times: Sequence[int], begin: int, end: int) -> list[int]:
    step = (end - begin) / _BINS
    places = Counter(min(_BINS - 1, max(0, int((time - begin) / step))) for time in times)
    return [places[place] for place in range(_BINS)]


def _flatness(bars: Sequence[int]) -> float:
    return round(max(0.0, 1 - pstdev(bars) / fmean(bars)), 3)


def _two_levels(bars: Sequence[int]) -> float:
    """Share of the bars at the two most frequent heights."""
    full = [bar for bar in bars if bar]
    if len(full) < _BIMODAL_BARS:
        return 0.0
    width = math.ceil(max(full) * _MODE_SENSITIVITY)
    heights = Counter(bar // width for bar in full).most_common(2)
    return min(1.0, round(sum(count for _, count in heights) / max(len(full) - _OUTLIERS, 1), 3))


def _duration(times: Sequence[int], bars: Sequence[int], begin: int, end: int) -> float:
    if sum(bar > 0 for bar in bars) < _DURATION_BARS:
        return 0.0
    run = longest = 0
    for bar in (*bars, *bars):  # a run may go on from the end to the start
        run = run + 1 if bar else 0
        longest = min(_BINS, max(longest, run))
    coverage = (times[-1] - times[0]) / (end - begin)
    return min(1.0, max(_up(coverage), _up(longest / _IDEAL_RUN)))


def _up(value: float) -> float:
    return math.ceil(value * 1000) / 1000


def _routed(address: str) -> bool:
    """RITA never imports multicast, broadcast and unspecified addresses."""
    first = address.partition(".")[0]
    if ":" in address:
        return address != "::" and not address.lower().startswith("ff")
    return not (first.isdecimal() and 224 <= int(first) < 240) and address not in (
        "255.255.255.255",
        "0.0.0.0",
    )


RULE = PublishedRule(
    "rita-beacon",
    f"RITA beacon ≥ {ALERT_AT}",
    "activecm/rita v5, analysis/beacons.go",
    raised,
)
