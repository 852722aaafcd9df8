"""The operator's measure: what the alerts on a labelled capture were worth, in device-hours.

The terms, all of them about one capture:

- *Device*: a local address, see ``networks_of``. A flow is about the device that an alert on it
  names, ``Networks.device``: its local end, the originator where both ends are local. A flow
  without a local end is about no device. A device with two addresses counts as two.
- *Hour*: an hour of UTC in which a flow began; *day* likewise.
- *Malicious device-hour*: a (device, hour) with a malicious flow of that device, which it
  originated or received. Unlabelled flows are neither malicious nor benign.
- An alert *covers* the hours in which its own flows began, on the device that it names.
- *Found*: share of the malicious device-hours that an alert covers, whatever the alert is about.
- *Right*: share of the malicious device-hours covered by an alert for the right reason: its
  example, most of its labelled flows, and one of its flows in this hour are malicious.
- *False alert*: it covers no malicious device-hour and has no malicious flow. One that has
  unlabelled flows alone is *unjudged* and not false. An alert counts once, however long it is.
- *Benign device-hour*: a (device, hour) with labelled flows, none of them malicious. *False hours*:
  share of these that false alerts cover. It depends neither on how flows are grouped into alerts
  nor on how many hours of a day were captured.
- *Device-day*: a (device, day) with a labelled flow of that device. A capture of ten minutes has
  one device-day for each device: short captures do not multiply their false alerts, and a whole
  day of the same traffic would have more.
- *Minutes*: of each device with a malicious flow, from the start of the first one to the time of
  the first alert that covers a malicious hour of it and goes on to that flow or beyond; 0 if the
  alert was open already. Devices without such an alert are not in the median.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import fmean, median
from typing import Any

import polars as pl

from gradsense.data.datasets.iot23 import BENIGN, BINARY_CLASSES, classed
from gradsense.data.networks import Networks

HOUR_S, DAY_S = 3600.0, 86_400.0
#: IoT-23's captures have no group in their names.
_IOT23 = ("CTU-IoT-Malware-Capture-", "CTU-Honeypot-Capture-")

_DeviceHour = tuple[str, int]


@dataclass(frozen=True)
class RaisedAlert:
    """What any detector reports, as far as the measure needs it.

    Args:
        time: when it was raised, seconds since the epoch.
        device: address that it is about.
        flows: its own flows as rows of the capture's frame, at least one; the first is its
            example.
    """

    time: float
    device: str
    flows: tuple[int, ...]


@dataclass(frozen=True)
class DeviceHours:
    """The measure of one detector on one capture or several; see the module for the terms.

    Args:
        malicious_hours, found_hours, right_hours, benign_hours, false_hours: device-hours.
        device_days: as defined above.
        alerts, false_alerts, unjudged_alerts: numbers of alerts.
        attacked: devices with a malicious flow.
        minutes: to the first alert, one for each of these devices that has one.
    """

    malicious_hours: int = 0
    found_hours: int = 0
    right_hours: int = 0
    benign_hours: int = 0
    false_hours: int = 0
    device_days: int = 0
    alerts: int = 0
    false_alerts: int = 0
    unjudged_alerts: int = 0
    attacked: int = 0
    minutes: tuple[float, ...] = ()

    @property
    def found(self) -> float | None:
        """Share of the malicious device-hours, 0..1; None without any."""
        return _ratio(self.found_hours, self.malicious_hours)

    @property
    def right(self) -> float | None:
        """Share of the malicious device-hours, 0..1; None without any."""
        return _ratio(self.right_hours, self.malicious_hours)

    @property
    def false_a_day(self) -> float | None:
        """False alerts a device-day; None without a device-day."""
        return _ratio(self.false_alerts, self.device_days)

    @property
    def false_share(self) -> float | None:
        """Share of the benign device-hours with a false alert, 0..1; None without any."""
        return _ratio(self.false_hours, self.benign_hours)

    @property
    def median_minutes(self) -> float | None:
        """Over the devices with an alert; None without one."""
        return median(self.minutes) if self.minutes else None

    def to_json(self) -> dict[str, Any]:
        """The rates, and the counts that they were made from."""
        counts = {one.name: getattr(self, one.name) for one in fields(self)[:-1]}
        return {**_rates(self), **counts, "alerted": len(self.minutes)}


def networks_of(flows: pl.DataFrame) -> Networks:
    """The networks whose hosts are a capture's devices.

    Private and link-local addresses are. Where most flows (half or more) have no such address at
    either end, so is the address that is an end of the most of these flows, if it is of half or
    more of them: the server or the campus host that the capture was taken at (two of them where
    they speak with each other alone). An operator names it in the settings file; this stands in
    for that, for the watch and for every rule alike.

    Args:
        flows: all flows of the capture.
    """
    private = Networks()
    outside: Counter[str] = Counter()
    total = 0
    for ends in flows.select("orig_h", "resp_h").iter_rows():
        if not any(map(private.is_local, ends)):
            total += 1
            outside.update({end for end in ends if _of_a_host(end)})
    most = max(outside.values(), default=0)
    if 2 * total < flows.height or 2 * most < total:
        return private
    return Networks([ipaddress.ip_network(end) for end, count in outside.items() if count == most])


def measure(flows: pl.DataFrame, alerts: Sequence[RaisedAlert], networks: Networks) -> DeviceHours:
    """The measure of one detector's alerts on one capture.

    Args:
        flows: all of the capture (FLOW_SCHEMA), labelled.
        alerts: in any order.
        networks: of the capture's devices.
    """
    malicious = _malicious(flows)
    ts: list[float] = flows["ts"].to_list()
    bad_hours: set[_DeviceHour] = set()
    seen_hours: set[_DeviceHour] = set()
    days: set[_DeviceHour] = set()
    first: dict[str, float] = {}
    ends = zip(flows["orig_h"], flows["resp_h"], strict=True)
    for row, (orig_h, resp_h) in enumerate(ends):
        device = networks.device(orig_h, resp_h)
        if malicious[row] is None or not networks.is_local(device):
            continue
        days.add((device, int(ts[row] // DAY_S)))
        seen_hours.add((device, _hour(ts[row])))
        if malicious[row]:
            bad_hours.add((device, _hour(ts[row])))
            first[device] = min(first.get(device, ts[row]), ts[row])
    found: set[_DeviceHour] = set()
    right: set[_DeviceHour] = set()
    false_hours: set[_DeviceHour] = set()
    raised: dict[str, float] = {}
    false = unjudged = 0
    for alert in alerts:
        kinds = [malicious[row] for row in alert.flows]
        covered = {(alert.device, _hour(ts[row])) for row in alert.flows}
        hits = covered & bad_hours
        found |= hits
        if malicious[alert.flows[0]] and kinds.count(True) > kinds.count(False):
            own = {(alert.device, _hour(ts[row])) for row in alert.flows if malicious[row]}
            right |= hits & own
        if hits and max(ts[row] for row in alert.flows) >= first[alert.device]:
            raised[alert.device] = min(raised.get(alert.device, alert.time), alert.time)
        if not hits and True not in kinds:
            if False in kinds:
                false += 1
                false_hours |= covered
            else:
                unjudged += 1
    return DeviceHours(
        malicious_hours=len(bad_hours),
        found_hours=len(found),
        right_hours=len(right),
        benign_hours=len(seen_hours - bad_hours),
        false_hours=len(false_hours & seen_hours),
        device_days=len(days),
        alerts=len(alerts),
        false_alerts=false,
        unjudged_alerts=unjudged,
        attacked=len(first),
        minutes=tuple(max(0.0, raised[one] - first[one]) / 60 for one in sorted(raised)),
    )


def pooled(parts: Iterable[DeviceHours]) -> DeviceHours:
    """All parts as one: counts are summed, minutes joined."""
    parts = tuple(parts)
    counts = {
        one.name: sum(getattr(part, one.name) for part in parts)
        for one in fields(DeviceHours)
        if one.name != "minutes"
    }
    return DeviceHours(**counts, minutes=sum((part.minutes for part in parts), ()))


def group_of(capture: str) -> str:
    """The laboratory or collection of a capture: the part of its name before ``__``.

    >>> group_of("nmap-lab__mikel"), group_of("CTU-IoT-Malware-Capture-20-1"), group_of("porch")
    ('nmap-lab', 'iot23', 'porch')
    """
    return "iot23" if capture.startswith(_IOT23) else capture.partition("__")[0]


def by_group(captures: Mapping[str, DeviceHours]) -> dict[str, DeviceHours]:
    """The captures of each group, pooled; by name of the group."""
    groups: dict[str, list[DeviceHours]] = {}
    for name, part in captures.items():
        groups.setdefault(group_of(name), []).append(part)
    return {name: pooled(groups[name]) for name in sorted(groups)}


def mean_over(groups: Mapping[str, DeviceHours]) -> dict[str, Any]:
    """Every rate as its mean over the groups that have it; the minutes are of all devices.

    Returns:
        the rates of ``DeviceHours.to_json``, and ``groups``, how many have malicious device-hours.
    """
    rates = [_rates(group) for group in groups.values()]
    found: dict[str, Any] = {}
    for name in _rates(DeviceHours()):
        values = [rate for one in rates if (rate := one[name]) is not None]
        found[name] = fmean(values) if values else None
    found["minutes"] = pooled(groups.values()).median_minutes
    return {**found, "groups": sum(one["found"] is not None for one in rates)}


def _rates(part: DeviceHours) -> dict[str, float | None]:
    return {
        "found": part.found,
        "right": part.right,
        "false_a_day": part.false_a_day,
        "false_share": part.false_share,
        "minutes": part.median_minutes,
    }


def _malicious(flows: pl.DataFrame) -> list[bool | None]:
    """Whether each flow is labelled as malicious; None where it carries no label."""
    return (classed(flows, BINARY_CLASSES)["class"] != BENIGN).to_list()


def _of_a_host(address: str) -> bool:
    one = ipaddress.ip_address(address)
    return not (one.is_multicast or one.is_unspecified or address == "255.255.255.255")


def _hour(ts: float) -> int:
    return int(ts // HOUR_S)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
