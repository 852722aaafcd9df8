"""Groups many flows of one kind from one device into one alert that counts and describes them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from pydantic import AliasChoices, Field, TypeAdapter

from gradsense.gateway.alerting.alert import NOVEL, Alert, Example, State
from gradsense.tasks.task import Severity, get_task

#: Distinct peers, ports and prompts that an open alert keeps; beyond, it only counts flows.
MAX_PEERS, MAX_PORTS, MAX_PROMPTS = 256, 64, 32
#: Most open alerts. One more closes the one that has been quiet longest.
MAX_OPEN = 10_000
#: A growing alert is updated at every tenfold of its flows, and at least so often (log seconds).
REPEAT_S = 3600.0

_TASK = get_task()


class Alarm(NamedTuple):
    """One flow that raises an alert or joins an open one.

    Args:
        label: the class, or ``Novel``.
        clock: log time when it was read, monotonic seconds since the epoch.
        ts, port: when the flow began, and the responder's port.
        probability, novelty: of the verdict.
        prompt: the bytes of its phrase ids, which feedback on the alert labels.
        example: returns the flow itself; called for the first flow of an alert only.
    """

    device: str
    peer: str
    label: str
    clock: float
    ts: float
    port: int | None
    probability: float
    novelty: float | None
    prompt: bytes
    example: Callable[[], Example]


@dataclass(slots=True)
class Group:
    """An open alert with all its state; ``GROUP`` converts it to JSON, for a restart."""

    id: str
    device: str
    label: str
    opened: float  # log time
    first_ts: float
    last_ts: float
    seen: float  # log time of its last flow's arrival
    #: Log time of its last message.
    reported: Annotated[float, Field(validation_alias=AliasChoices("reported", "told"))]
    why: tuple[str, ...]
    example: Example
    revision: int = 0
    next_flows: int = 10  # update at so many
    flows: int = 0
    peers: set[str] = field(default_factory=set)
    ports: dict[int, int] = field(default_factory=dict)
    prompts: dict[str, int] = field(default_factory=dict)  # phrase ids in hex, with their flows
    probability: float = 0.0
    novelty: float | None = None


GROUP = TypeAdapter(Group)

Explain = Callable[[bytes], tuple[str, ...]]


class Grouper:
    """Groups alarms by device and label; ``window_s`` of log time without one closes the alert.

    The clock is passed in, and groups are plain values, so a restart continues where it stopped.

    Args:
        sensor: name of the gateway.
        model: ``Manifest.id``.
        window_s, max_s: as in ``Settings``, in log seconds.
        explain: reasons for the verdict on a prompt, in words; called once for each alert.
    """

    def __init__(
        self, sensor: str, model: str, *, window_s: float, max_s: float, explain: Explain
    ) -> None:
        self.sensor, self.model = sensor, model
        self.window_s, self.max_s = window_s, max_s
        self._explain = explain
        self._groups: dict[tuple[str, str], Group] = {}  # in order of their last flow
        self._touched: set[tuple[str, str]] = set()
        self._ended: list[Group] = []

    def add(self, alarms: Iterable[Alarm]) -> list[Alert]:
        """Add alarms in the order of their clocks; returns the messages that are due."""
        messages = []
        for alarm in alarms:
            key = alarm.device, alarm.label
            if key in self._groups and self._over(self._groups[key], alarm.clock):
                messages.append(self._close(key, alarm.clock))
            fresh = key not in self._groups
            group = self._open(alarm) if fresh else self._groups.pop(key)
            self._groups[key] = group  # now the last
            self._touched.add(key)
            _take(group, alarm)
            if fresh:
                messages.append(self._message(group, "open", alarm.clock))
            elif group.flows >= group.next_flows or alarm.clock - group.reported > REPEAT_S:
                messages.append(self._message(group, "update", alarm.clock))
        while len(self._groups) > MAX_OPEN:
            messages.append(self._close(next(iter(self._groups))))
        return messages

    def tick(self, clock: float) -> list[Alert]:
        """Close the alerts that have been quiet; returns their messages."""
        over = [key for key, group in self._groups.items() if self._over(group, clock)]
        return [self._close(key, clock) for key in over]

    def close_all(self) -> list[Alert]:
        """Close every alert, at the end of a batch."""
        return [self._close(key) for key in list(self._groups)]

    def changed(self) -> list[Group]:
        """Groups that changed or ended since the last call."""
        touched, self._touched = self._touched, set()
        ended, self._ended = self._ended, []
        return ended + [group for key, group in self._groups.items() if key in touched]

    def restore(self, groups: Iterable[Group]) -> None:
        """Continue with these open groups."""
        ordered = sorted(groups, key=lambda group: group.seen)
        self._groups = {(group.device, group.label): group for group in ordered}

    def __len__(self) -> int:
        return len(self._groups)

    def _over(self, group: Group, clock: float) -> bool:
        return clock - group.seen > self.window_s or clock - group.opened > self.max_s

    def _open(self, alarm: Alarm) -> Group:
        example = alarm.example()
        parts = (self.sensor, alarm.device, alarm.label, example.log, example.line, example.ts)
        name = "\0".join(map(str, (*parts, example.uid)))
        return Group(
            id=hashlib.sha256(name.encode()).hexdigest()[:16],
            device=alarm.device,
            label=alarm.label,
            opened=alarm.clock,
            first_ts=example.ts,
            last_ts=example.ts,
            seen=alarm.clock,
            reported=alarm.clock,
            why=self._explain(alarm.prompt),
            example=example,
        )

    def _close(self, key: tuple[str, str], clock: float | None = None) -> Alert:
        group = self._groups.pop(key)
        self._ended.append(group)
        return self._message(group, "closed", group.seen if clock is None else clock)

    def _message(self, group: Group, state: State, clock: float) -> Alert:
        if state != "open":
            group.revision += 1
        group.reported = clock
        while group.next_flows <= group.flows:
            group.next_flows *= 10
        ports = sorted(group.ports.items(), key=lambda item: (-item[1], item[0]))[:5]
        known: dict[str, Any] = {
            "device": group.device,
            "flows": group.flows,
            "peers": len(group.peers),
            "ports": tuple(ports),
            "first_ts": group.first_ts,
            "last_ts": group.last_ts,
        }
        words = describe(group.label, more_peers=len(group.peers) >= MAX_PEERS, **known)
        return Alert(
            id=group.id,
            state=state,
            revision=group.revision,
            sensor=self.sensor,
            label=group.label,
            probability=group.probability,
            novelty=group.novelty,
            why=group.why,
            model=self.model,
            example=group.example,
            **known,
            **words._asdict(),
        )


def _take(group: Group, alarm: Alarm) -> None:
    """Add one flow to a group."""
    group.flows += 1
    group.seen = alarm.clock
    group.first_ts = min(group.first_ts, alarm.ts)
    group.last_ts = max(group.last_ts, alarm.ts)
    group.probability = max(group.probability, alarm.probability)
    if alarm.novelty is not None:
        group.novelty = max(alarm.novelty, group.novelty or alarm.novelty)
    if len(group.peers) < MAX_PEERS:
        group.peers.add(alarm.peer)
    port = alarm.port
    if port is not None and (port in group.ports or len(group.ports) < MAX_PORTS):
        group.ports[port] = group.ports.get(port, 0) + 1
    prompt = alarm.prompt.hex()
    if prompt in group.prompts or len(group.prompts) < MAX_PROMPTS:
        group.prompts[prompt] = group.prompts.get(prompt, 0) + 1


class Advice(NamedTuple):
    """The words of one alert; see ``Alert`` for the fields."""

    severity: Severity
    title: str
    sentence: str
    advice: str
    technique: str | None


def describe(
    label: str,
    *,
    device: str,
    flows: int,
    peers: int,
    ports: Sequence[tuple[int, int]],
    first_ts: float,
    last_ts: float,
    more_peers: bool = False,
) -> Advice:
    """The words for an alert so far.

    The task has the words of each class (``Task.advice``); the counts are the alert's own.

    Args:
        label: a model's class or ``NOVEL``; an unknown one gets general words.
        device: address of the device that it is about.
        flows, peers: connections, and distinct addresses at the other end.
        ports: (responder port, flows), most frequent first; may be shortened.
        first_ts, last_ts: seconds since the epoch.
        more_peers: ``peers`` is a lower bound.
    """
    known = _TASK.novel if label == NOVEL else _TASK.advice.get(label, _TASK.other)
    title, meaning = (text.replace("{label}", label) for text in (known.title, known.meaning))
    span = f" {_span(last_ts - first_ts)}" if flows > 1 else ""
    others = f"at least {peers:,} addresses" if more_peers else _count(peers, "address", "es")
    what = f"{device} sent {_count(flows, 'connection')} to {others}{_ports(ports, flows)}{span}"
    return Advice(known.severity, title, f"{what}: {meaning}.", known.advice, known.technique)


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def _ports(ports: Sequence[tuple[int, int]], flows: int) -> str:
    """For example `` (ports 23, 2323 and others)``."""
    if not ports:
        return ""
    names = ", ".join(str(port) for port, _ in ports)
    others = " and others" if sum(count for _, count in ports) < flows else ""
    return f" (port{'s' if len(ports) > 1 or others else ''} {names}{others})"


def _span(seconds: float) -> str:
    """For example ``within 3 minutes``, rounded up."""
    for unit, size, limit in (("second", 1, 120), ("minute", 60, 7_200), ("hour", 3_600, 172_800)):
        if seconds <= limit:
            return f"within {_count(max(1, math.ceil(seconds / size)), unit)}"
    return f"within {_count(math.ceil(seconds / 86_400), 'day')}"


class LogClock:
    """Log time: the latest end of a flow so far; while nothing is logged it follows real time.

    Grouping follows the log's own times, so it does not depend on when a log is read. On a live
    log the last alert closes even if nothing more is ever logged.
    """

    def __init__(self, value: float = 0.0) -> None:
        self.value = value
        self._real: float | None = None

    def advance(self, ends: float) -> float:
        """A flow ended at ``ends``; returns the clock."""
        self.value = max(self.value, ends)
        return self.value

    def run_on(self, now: float) -> float:
        """Real time is ``now`` (monotonic seconds); returns the clock."""
        if self._real is not None and self.value:
            self.value += max(0.0, now - self._real)
        self._real = now
        return self.value
