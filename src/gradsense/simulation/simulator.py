"""A fleet in virtual time: real training, simulated devices and network.

An event queue stands in for the network and the devices. What a client does happens in this
process when its event's turn comes; how long it takes follows from its device profile. The state
is complete after every event, so a run can be stopped and continued anywhere.
"""

from __future__ import annotations

import heapq
import json
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from gradsense.federation import events
from gradsense.federation.client import Client
from gradsense.federation.coordinator import Coordinator
from gradsense.federation.transforms import codecs
from gradsense.federation.transforms.transform import Plain
from gradsense.federation.update import GlobalModel, Update
from gradsense.learning.learner import FlowCost, Tensors
from gradsense.simulation.devices import DeviceProfile, Meter, Upload

_MAGIC = b"GSU1"
#: Attributes of a simulator that rest as they are; what is in them is replaced, never changed.
_PLAIN = (
    *("now", "finished", "triggers", "cycles"),
    *("_order", "_started", "_attempts", "_uplink_free"),
)

Kind = Literal["deliver", "worked", "arrive", "tick", "join", "drop"]
_JOIN_STREAM, _FAULT_STREAM = 11, 12  # separate the two uses of randomness


def encode(update: Update) -> bytes:
    """A message: magic, header length (4 bytes, little endian), JSON header, packed tensors."""
    header = {**update.values(), "codec": update.codec}
    text = json.dumps(header, separators=(",", ":")).encode()
    packed = update.packed or codecs()[update.codec].pack(update.delta)
    return b"".join((_MAGIC, struct.pack("<I", len(text)), text, packed))


@dataclass(frozen=True)
class Faults:
    """What goes wrong in the fleet.

    Attributes:
        dropout: probability that a device vanishes during a local round, whose work is lost.
        offline_s: mean seconds until it is back (exponential).
        late: share of clients that are not there at the start.
        late_s: they join evenly over this many seconds.
    """

    dropout: float = 0.0
    offline_s: float = 60.0
    late: float = 0.0
    late_s: float = 60.0


@dataclass(order=True)
class _Event:
    time: float
    order: int
    kind: Kind
    client: str
    payload: Update | GlobalModel | None = None


class Simulator:
    """Drives clients and coordinator through virtual time.

    Args:
        coordinator: fresh; the run ends with its last round. ``min_clients`` is set to the
            clients that are there at the start.
        clients: fresh; their order fixes their random streams.
        devices: a profile for each client.
        cost: arithmetic of one record.
        budgets: optimiser steps that each client may spend in the whole run.
        faults: dropouts and late joiners.
        seed: draws the faults.
        on_model: called with each new global model, after the meter was brought up to date.
        on_last_work: called with a client when it has spent its budget, before any broadcast.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        clients: Sequence[Client],
        *,
        devices: Mapping[str, DeviceProfile],
        cost: FlowCost,
        budgets: Mapping[str, int],
        seed: int,
        faults: Faults | None = None,
        on_model: Callable[[GlobalModel], None] = lambda model: None,
        on_last_work: Callable[[Client], None] = lambda client: None,
    ) -> None:
        self.coordinator = coordinator
        self.clients = {client.name: client for client in clients}
        self.numbers = {client.name: number for number, client in enumerate(clients)}
        self.devices = devices
        self.cost = cost
        self.budgets = budgets
        self.seed = seed
        self.faults = faults or Faults()
        self.on_model = on_model
        self.on_last_work = on_last_work

        self.now = 0.0
        self.meter = Meter()
        self.triggers: Counter[str] = Counter()
        self.uploads: list[Upload] = []
        self.cycles: dict[str, list[float]] = {name: [0.0, 0] for name in self.clients}
        self.finished = False
        self._events: list[_Event] = []
        self._order = 0
        self._busy: set[str] = set()
        self._pending: dict[str, GlobalModel] = {}  # arrived while its client was busy
        self._started: dict[str, float] = {}  # when each client's current cycle began
        self._attempts: Counter[str] = Counter()  # local rounds begun, lost ones too
        self._uplink_free: dict[str, float] = {}  # when each device's last upload is through
        self._model_bytes = len(Plain().pack(coordinator.model.tensors))

    # The loop -------------------------------------------------------------------------------

    def start(self) -> None:
        """Let the fleet join, which sends out version 0."""
        rng = np.random.default_rng([self.seed, _JOIN_STREAM])
        names = list(self.clients)
        late = set(rng.permutation(len(names))[: round(self.faults.late * len(names))].tolist())
        for number, name in enumerate(names):
            if number in late:
                self._push(rng.uniform(0, self.faults.late_s), "join", name)
        first = [name for number, name in enumerate(names) if number not in late]
        self.coordinator.min_clients = len(first)
        for name in first:
            self._handle(events.Joined(name))

    def step(self) -> bool:
        """Handle the next event; False when nothing is left to do."""
        if self.finished or not self._events:
            self.meter.left_pooled = len(self.coordinator.pooled)
            self.finished = True
            return False
        event = heapq.heappop(self._events)
        self.now = event.time
        match event.kind, event.payload:
            case "deliver", GlobalModel() as model:
                self._deliver(event.client, model)
            case "worked", _:
                self._worked(event.client)
            case "arrive", Update() as update:
                self._handle(events.Arrived(update, self.now))
            case "tick", _:
                self._handle(events.Ticked(self.now))
            case "join", _:
                self._handle(events.Joined(event.client))
            case "drop", _:
                self._drop(event.client)
        return True

    def _push(
        self, time: float, kind: Kind, client: str = "", payload: Update | GlobalModel | None = None
    ) -> None:
        self._order += 1  # ties in time keep the order in which they were made
        heapq.heappush(self._events, _Event(time, self._order, kind, client, payload))

    # Devices --------------------------------------------------------------------------------

    def _send(self, name: str, model: GlobalModel) -> None:
        device = self.devices[name]
        seconds = device.download_s(self._model_bytes)
        self.meter.downlink_bytes += self._model_bytes
        self.meter.energy_j += device.radio_w * seconds
        self._push(self.now + seconds, "deliver", name, model)

    def _deliver(self, name: str, model: GlobalModel) -> None:
        if name not in self.coordinator.connected:
            return  # it vanished meanwhile, and gets the newest model when it is back
        if name in self._busy:
            self._pending[name] = model
            return
        client = self.clients[name]
        client.adopt(model)
        # A device that came back may get the same model twice; a round has one answer.
        if model.invites(name) and not client.waiting:
            self._begin(name)

    def _begin(self, name: str) -> None:
        """Start a local round, if there is budget left for one."""
        client, device = self.clients[name], self.devices[name]
        budget = self.budgets[name] - client.steps
        if budget < 1:
            return
        if name in self._started:
            total, count = self.cycles[name]
            self.cycles[name] = [total + self.now - self._started.pop(name), count + 1]
        plan = client.plan(budget)
        if plan.steps < 1:
            return  # nothing to do until another model or other flows come
        self._started[name] = self.now
        seconds = device.compute_s(client.algorithm.flop(self.cost, client.learner, plan))
        self._busy.add(name)
        self._attempts[name] += 1
        rng = np.random.default_rng(
            [self.seed, _FAULT_STREAM, self.numbers[name], self._attempts[name]]
        )
        if rng.random() < self.faults.dropout:
            self._push(self.now + rng.random() * seconds, "drop", name)
            return
        self.meter.energy_j += device.compute_w * seconds
        self._push(self.now + seconds, "worked", name)

    def _worked(self, name: str) -> None:
        client, device = self.clients[name], self.devices[name]
        if not client.algorithm.trains and name in self._pending:
            # What was read does not depend on the model; whether it is news does.
            client.adopt(self._pending.pop(name))
        before = client.steps
        update = client.work(self.budgets[name] - client.steps)
        self._busy.discard(name)
        self.meter.local_rounds += 1
        learner = client.learner
        steps = client.steps - before
        self.meter.samples_trained += round(learner.samples * steps / learner.steps_per_epoch)
        if client.steps >= self.budgets[name]:
            self.on_last_work(client)
        if update is not None:
            size = len(encode(update))
            seconds = device.upload_s(size)
            # One uplink sends one message after another, so updates arrive in order.
            through = max(self.now, self._uplink_free.get(name, 0.0)) + seconds
            self._uplink_free[name] = through
            self.meter.uplink_bytes += size
            self.meter.uploads += 1
            self.meter.energy_j += device.radio_w * seconds
            self.triggers[update.reason] += 1
            self.uploads.append(
                Upload(
                    *(self.now, name, update.reason, size),
                    *(self.meter.aggregations, len(update.layers)),
                )
            )
            self._push(through, "arrive", name, update)
        model = self._pending.pop(name, None)
        if model is not None:
            self._deliver(name, model)
        elif update is None or not client.algorithm.wait:
            self._begin(name)

    def _drop(self, name: str) -> None:
        self._busy.discard(name)
        self._pending.pop(name, None)
        self._started.pop(name, None)  # a cycle that ends in darkness is not a latency
        self.meter.dropped_out += 1
        rng = np.random.default_rng(
            [self.seed, _FAULT_STREAM, self.numbers[name], self._attempts[name], 1]
        )
        self._push(self.now + rng.exponential(self.faults.offline_s), "join", name)
        self._handle(events.Left(name))

    # The cloud ------------------------------------------------------------------------------

    def _handle(self, event: events.Event) -> None:
        """Let the coordinator handle an event, and carry out its effects."""
        for effect in self.coordinator.handle(event):
            match effect:
                case events.Broadcast():
                    self._broadcast(effect.model)
                case events.Send():
                    self._send(effect.client, effect.model)
                case events.WakeAt():
                    self._push(effect.at, "tick")

    def _broadcast(self, model: GlobalModel) -> None:
        """Give a new global model to every connected client (eq 15)."""
        if model.version:
            self.meter.aggregations += 1
            self.on_model(model)
            if self.coordinator.finished:
                self.finished = True
                return
        for name in self.coordinator.connected:
            self._send(name, model)

    # Rest -----------------------------------------------------------------------------------

    def snapshot(self) -> tuple[dict[str, Any], dict[str, Mapping[str, np.ndarray]]]:
        """Everything, for a checkpoint: JSON-able values and named groups of tensors."""
        values: dict[str, Any] = {name: copy(getattr(self, name)) for name in _PLAIN}
        values["meter"], values["busy"] = asdict(self.meter), sorted(self._busy)
        values["uploads"] = [asdict(upload) for upload in self.uploads]
        groups: dict[str, Mapping[str, np.ndarray]] = {}
        values["coordinator"], own = self.coordinator.snapshot()
        groups |= {f"coordinator/{key}": group for key, group in own.items()}
        values["clients"] = {}
        for name, client in self.clients.items():
            number = self.numbers[name]
            values["clients"][name], tensors = client.snapshot()
            groups |= {f"client{number}/{key}": group for key, group in tensors.items()}
        values["pending"] = {name: model.values() for name, model in self._pending.items()}
        for name, model in self._pending.items():
            groups[f"pending{self.numbers[name]}"] = model.tensors
        values["events"] = []
        for event in sorted(self._events):
            payload = event.payload
            rest = None if payload is None else payload.values()
            values["events"].append([event.time, event.order, event.kind, event.client, rest])
            if payload is not None:
                groups[f"event{event.order}"] = (
                    payload.delta if isinstance(payload, Update) else payload.tensors
                )
        return values, groups

    def restore(
        self, values: Mapping[str, Any], groups: Mapping[str, Mapping[str, np.ndarray]]
    ) -> None:
        """Continue where ``snapshot`` was taken, in a simulator made with the same arguments."""

        def part(prefix: str) -> dict[str, Tensors]:
            return {k.removeprefix(prefix): g for k, g in groups.items() if k.startswith(prefix)}

        for name in _PLAIN:
            setattr(self, name, type(getattr(self, name))(values[name]))
        self.meter, self._busy = Meter(**values["meter"]), set(values["busy"])
        self.uploads = [Upload(**upload) for upload in values["uploads"]]
        self.coordinator.restore(values["coordinator"], part("coordinator/"))
        for name, client in self.clients.items():
            number = self.numbers[name]
            client.restore(values["clients"][name], part(f"client{number}/"))
        self._pending = {
            name: GlobalModel.restored(saved, groups[f"pending{self.numbers[name]}"])
            for name, saved in values["pending"].items()
        }
        self._events = []
        for time, order, kind, client, rest in values["events"]:
            payload: Update | GlobalModel | None = None
            if kind == "deliver":
                payload = GlobalModel.restored(rest, groups[f"event{order}"])
            elif kind == "arrive":
                payload = Update(**rest, delta=groups[f"event{order}"])
            self._events.append(_Event(time, order, kind, client, payload))
        heapq.heapify(self._events)

    # What it took ---------------------------------------------------------------------------

    def central_latency_s(self) -> float | None:
        """Mean virtual seconds from one global model to the next; None without any."""
        return self.now / self.meter.aggregations if self.meter.aggregations else None

    def client_latency_s(self) -> float | None:
        """Mean over clients of the virtual seconds from one local round's start to the next's."""
        means = [total / count for total, count in self.cycles.values() if count]
        return float(np.mean(means)) if means else None
