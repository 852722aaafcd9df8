"""A crowd of light devices in a few processes, each with one event loop for hundreds of them."""

from __future__ import annotations

import heapq
import multiprocessing
import random
import selectors
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.fleet.light import Light, Part, Seen, Wire

#: Between looks at all connections for the keepalive, and at nothing.
_MISC_S, _POLL_S = 2.0, 0.5
#: For an answer of a process.
PATIENCE_S = 120.0


class Crowd:
    """Devices in one event loop, with commands from a pipe.

    Commands, each answered by one value: ``hello`` (None), ``connect`` (None, all being
    subscribed), ``wire`` (``Wire``), ``quiet`` (None, all being acknowledged), ``finished`` (None,
    all having adopted the last model and all being acknowledged), ``seen`` (``Seen``), once.
    """

    def __init__(self, pipe: Connection, bundles: Sequence[Path], part: Part) -> None:
        self.pipe, self.part, self.seen = pipe, part, Seen()
        self.devices = [Light(bundle, part, self.seen) for bundle in bundles]
        self._selector = selectors.DefaultSelector()
        self._selector.register(pipe, selectors.EVENT_READ)
        self._rng = random.Random(f"{part.seed} {self.devices[0].name}")
        self._timers: list[tuple[float, int]] = []
        self._next_misc = 0.0
        self._waiting = ""  # the command that is not answered yet

    def run(self) -> None:
        """Work until whoever holds the pipe is gone."""
        try:
            while True:
                self.step()
        except EOFError:
            pass
        for device in self.devices:
            device.client.disconnect()
            device.flush()

    def step(self) -> None:
        """One turn."""
        for key, _ in self._selector.select(self._wait_s()):
            if key.data is None:
                self._take(self.pipe.recv())
            else:
                self._serve(key.data)
        now = time.monotonic()
        self._pace(now)
        if now >= self._next_misc:
            self._next_misc = now + _MISC_S
            for device in self.devices:
                if device.ready and device.open:
                    device.client.loop_misc()
                    device.send(now)
                    self._serve(device)
        if self._waiting and self._done(self._waiting):
            self._waiting = ""
            self.pipe.send(None)

    def _wait_s(self) -> float:
        due = self._timers[0][0] - time.monotonic() if self._timers else _POLL_S
        return max(0.0, min(_POLL_S, due))

    def _take(self, command: str) -> None:
        match command:
            case "connect":
                self._connect()
                self._waiting = command
            case "quiet" | "finished":
                for device in self.devices:
                    device.quiet = device.quiet or command == "quiet"
                self._waiting = command
            case "wire":
                wire = Wire()
                for device in self.devices:
                    wire.add(device.socket)
                self.pipe.send(wire)
            case "seen":
                for device in self.devices:
                    self.seen.counts.update(device.downlink.refused)
                    self.seen.counts["repeats"] += device.uplink.counts["repeats"]
                self.pipe.send(self.seen)
            case "hello":
                self.pipe.send(None)

    def _done(self, command: str) -> bool:
        standing = [device for device in self.devices if device.open]
        if command == "connect":
            return all(device.ready for device in standing)
        last = self.part.rounds if command == "finished" else None
        return all(device.idle and (last is None or device.version >= last) for device in standing)

    def _connect(self) -> None:
        """One device after the other; those that are connected are served meanwhile."""
        for number, device in enumerate(self.devices):
            began = time.monotonic()
            device.connect()
            self.seen.connecting.append((began, time.monotonic()))
            self._selector.register(device.socket, selectors.EVENT_READ, device)
            self._watch(device)
            if self.part.sends == "paced":
                self._again(number, time.monotonic())
            for key, _ in self._selector.select(0):
                if key.data is not None:
                    self._serve(key.data)

    def _serve(self, device: Light) -> None:
        if device.transfer():
            self._watch(device)
            return
        device.open = False
        self.seen.counts["broken"] += 1
        self._selector.unregister(device.socket)

    def _watch(self, device: Light) -> None:
        """Look at the connection for writing only while something waits to be written."""
        device.flush()
        events = selectors.EVENT_READ
        events |= selectors.EVENT_WRITE if device.client.want_write() else 0
        if device.open and self._selector.get_key(device.socket).events != events:
            self._selector.modify(device.socket, events, device)

    def _pace(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            _, number = heapq.heappop(self._timers)
            device = self.devices[number]
            if device.open:
                device.send_in_turn()
                self._watch(device)
                self._again(number, now)

    def _again(self, number: int, now: float) -> None:
        pause = self._rng.expovariate(1 / self.part.pause_s)
        heapq.heappush(self._timers, (now + pause, number))


def work(pipe: Connection, bundles: Sequence[Path], part: Part) -> None:
    """A process' whole life."""
    Crowd(pipe, bundles, part).run()


class Workers:
    """The crowd's processes."""

    def __init__(self, bundles: Sequence[Path], part: Part, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(count):
            ours, theirs = context.Pipe()
            own = list(bundles[number::count])
            process = context.Process(target=work, args=(theirs, own, part), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(5)

    @property
    def pids(self) -> list[int]:
        """Of the processes."""
        return [process.pid or 0 for process in self._processes]

    def ask(self, command: str, patience_s: float = PATIENCE_S) -> list[Any]:
        """What each process answers.

        Raises:
            TimeoutError: one does not in time.
        """
        for pipe in self._pipes:
            pipe.send(command)
        end, answers = time.monotonic() + patience_s, []
        for pipe in self._pipes:
            if not pipe.poll(max(0.0, end - time.monotonic())):
                raise TimeoutError(f"the crowd did not '{command}' within {patience_s:.0f} s")
            answers.append(pipe.recv())
        return answers

    def wire(self) -> Wire:
        """Of all connections together."""
        total = Wire()
        for wire in self.ask("wire"):
            total.sent += wire.sent
            total.received += wire.received
            total.segments_out += wire.segments_out
            total.segments_in += wire.segments_in
        return total


def merged(found: Sequence[Seen]) -> Seen:
    """What all processes saw."""
    whole = Seen()
    for seen in found:
        whole.connecting += seen.connecting
        whole.sent_at |= seen.sent_at
        whole.acked |= seen.acked
        whole.adopted |= seen.adopted
        whole.counts.update(seen.counts)
        whole.update_bytes = max(whole.update_bytes, seen.update_bytes)
        whole.model_bytes = max(whole.model_bytes, seen.model_bytes)
    return whole


def adopted_by(seen: Seen) -> Mapping[int, list[float]]:
    """Version to when each device had verified it."""
    found: dict[int, list[float]] = {}
    for (_, version), at in seen.adopted.items():
        found.setdefault(version, []).append(at)
    return found
