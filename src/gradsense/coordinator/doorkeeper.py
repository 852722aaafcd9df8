"""Whose messages wait, whose turn it is, and who has sent too much: between broker and runs.

A broker passes on whatever comes, in the order in which it comes. So the messages of each device
wait apart, few of them, and are taken in turn; and a device that sends faster than any honest one
is shut out for a while, longer each time. What is turned away is counted by device and name.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from gradsense.transport.pacing import Rate

T = TypeVar("T")

#: Names of what is turned away here.
FLOODING, SHUT_OUT, QOS_0, RETAINED = "flooding", "shut-out", "qos-0", "retained"
#: Devices that are remembered, so that invented names cannot fill the memory.
_MOST_DEVICES = 20_000


@dataclass(frozen=True)
class Allowance:
    """What a device may send; far more than an honest one does.

    Attributes:
        messages_per_s, burst_messages: a resumed upload comes in a burst of chunks.
        bytes_per_s, burst_bytes: of topic, properties and payload.
        waiting: messages of one device that wait for their turn.
        waiting_bytes: of all devices.
        shut_out_s, longest_s: seconds for which one that sent more is shut out the first time,
            and at most; twice as long each time in between.
    """

    messages_per_s: float = 100.0
    burst_messages: int = 1000
    bytes_per_s: float = 4 << 20
    burst_bytes: int = 32 << 20
    waiting: int = 256
    waiting_bytes: int = 96 << 20
    shut_out_s: float = 60.0
    longest_s: float = 3600.0


def device_of(topic: str) -> str:
    """The device that a topic seems to name; its run checks the rest of it."""
    parts = topic.split("/", 5)
    return parts[4][:64] if len(parts) > 4 else ""


class _Sender(Generic[T]):
    def __init__(self, allowance: Allowance) -> None:
        self.messages = Rate(allowance.messages_per_s, allowance.burst_messages)
        self.bytes = Rate(allowance.bytes_per_s, allowance.burst_bytes)
        self.waiting: deque[tuple[T, int]] = deque()
        self.shut_until, self.times = -math.inf, 0


class Doorkeeper(Generic[T]):
    """Takes messages from one thread and gives them to another, a device's turn at a time.

    Args:
        allowance: of every device.

    Attributes:
        turned_away: (device, name) to number.

    >>> door = Doorkeeper[str](Allowance(messages_per_s=1.0, burst_messages=2))
    >>> [door.arrive("cam", 10, text, now=0.0) for text in "abc"]
    ['', '', 'flooding']
    >>> door.arrive("bell", 10, "d", now=0.0), door.shut_out(now=0.0)
    ('', {'cam': 60.0})
    >>> door.take(0.0), door.take(0.0), door.take(0.0), door.take(0.0)
    ('a', 'd', 'b', None)
    """

    def __init__(self, allowance: Allowance | None = None) -> None:
        self._allowance = allowance or Allowance()
        self._senders: OrderedDict[str, _Sender[T]] = OrderedDict()
        self._turns: OrderedDict[str, _Sender[T]] = OrderedDict()  # those with messages waiting
        self._bytes = 0
        self._news = threading.Condition()
        self.turned_away: Counter[tuple[str, str]] = Counter()

    def expect(self, body: int) -> None:
        """Honest devices upload bodies of so many bytes: a few at once are no flood."""
        with self._news:
            burst = max(self._allowance.burst_bytes, 4 * body)
            self._allowance = replace(self._allowance, burst_bytes=burst)

    def arrive(self, device: str, size: int, message: T, now: float) -> str:
        """Let a message in, or say under which name it is turned away.

        Args:
            device: the one that the topic names; the broker lets nobody else publish there.
            size: bytes.
            now: monotonic seconds.
        """
        with self._news:
            reason = self._refusal(device, size, now)
            if reason:
                self._count(device, reason)
                return reason
            sender = self._senders[device]
            sender.waiting.append((message, size))
            self._bytes += size
            self._turns.setdefault(device, sender)
            self._news.notify()
        return ""

    def refuse(self, device: str, size: int, name: str, now: float) -> None:
        """Count a message that is turned away for another reason; as many shut its sender out."""
        with self._news:
            self._refusal(device, size, now)
            self._count(device, name)

    def _count(self, device: str, name: str) -> None:
        known = (device, name) in self.turned_away or len(self.turned_away) < _MOST_DEVICES
        self.turned_away[device if known else "", name] += 1

    def _refusal(self, device: str, size: int, now: float) -> str:
        allowance, sender = self._allowance, self._sender(device)
        if now < sender.shut_until:
            return SHUT_OUT
        fits = size <= allowance.burst_bytes and sender.bytes.take(size, now)
        if not (fits and sender.messages.take(1, now)):
            pause = min(allowance.longest_s, allowance.shut_out_s * 2**sender.times)
            calm = now - sender.shut_until > allowance.longest_s
            sender.times = 1 if calm else min(sender.times + 1, 16)
            sender.shut_until = now + (allowance.shut_out_s if calm else pause)
            return FLOODING
        if len(sender.waiting) >= allowance.waiting:
            return FLOODING
        return FLOODING if self._bytes + size > allowance.waiting_bytes else ""

    def _sender(self, device: str) -> _Sender[T]:
        sender = self._senders.get(device)
        if sender is None:
            sender = self._senders[device] = _Sender(self._allowance)
            while len(self._senders) > _MOST_DEVICES:
                oldest = next(iter(self._senders))
                if oldest in self._turns:
                    break
                del self._senders[oldest]
        self._senders.move_to_end(device)
        return sender

    def take(self, wait_s: float) -> T | None:
        """The next message, of the device whose turn it is; None: none came in so many seconds."""
        with self._news:
            if not self._turns and not self._news.wait_for(lambda: self._turns, wait_s):
                return None
            device, sender = self._turns.popitem(last=False)
            message, size = sender.waiting.popleft()
            self._bytes -= size
            if sender.waiting:
                self._turns[device] = sender
            return message

    def counted(self) -> dict[str, dict[str, int]]:
        """Device to name to the number of its messages that were turned away."""
        found: dict[str, dict[str, int]] = {}
        with self._news:
            for (device, name), number in self.turned_away.items():
                found.setdefault(device, {})[name] = number
        return found

    def shut_out(self, now: float) -> Mapping[str, float]:
        """The devices that are shut out, and for how many seconds still."""
        with self._news:
            return {
                device: round(sender.shut_until - now, 3)
                for device, sender in self._senders.items()
                if sender.shut_until > now
            }
