"""The device baseline: phrase counts of a device's own flows, and how unusual a new flow is.

No model and no label is involved. If a camera has only ever contacted one cloud service at one
rate, a telnet connection is surprising, whatever the model's verdict on it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gradsense.prompts.templates import Template

DAY_S = 86_400.0

#: Flows that are scored against the same counts. More is faster, and the counts lag more.
_CHUNK = 256
#: Of the counts' own type: numpy adds another type thirty times slower.
_ONE = np.uint32(1)
#: magic, format, phrases; fingerprint; first and last time; flows, held flows, settled; threshold.
_HEADER = struct.Struct("<4sHH16sddIIIf")
_MAGIC, _FORMAT = b"GSBL", 1


@dataclass(frozen=True)
class PhraseLayout:
    """The phrases of all fields, one after the other.

    Attributes:
        fields: names in the template's order.
        sizes: int64 [fields], phrases of each field.
        offsets: int64 [fields], where each field begins.
        width: phrases of all fields together.
        fingerprint: 16 bytes, a hash of all phrases. Counts under another fingerprint cannot be
            used.
    """

    fields: tuple[str, ...]
    sizes: NDArray[np.int64]
    offsets: NDArray[np.int64]
    width: int
    fingerprint: bytes

    @classmethod
    def of(cls, template: Template) -> PhraseLayout:
        """The layout of ``template``."""
        sizes = np.array([len(field.phrases) for field in template.fields], dtype=np.int64)
        words = [template.name, str(template.version)]
        for field in template.fields:
            words += [field.name, *field.phrases, ""]
        return cls(
            tuple(field.name for field in template.fields),
            sizes,
            np.concatenate(([0], np.cumsum(sizes)[:-1])),
            int(sizes.sum()),
            hashlib.blake2b("\n".join(words).encode(), digest_size=16).digest(),
        )


class BaselineSettings(BaseModel):
    """How a baseline learns.

    Args:
        days: it learns at least so long from a device's first flow.
        min_flows: it learns from at least so many flows. The first half is only counted; the
            second half is also scored against the counts, to find the threshold.
        margin: nats above the highest of these scores.
        memory: counted flows of a device at which all its counts are halved, so that it forgets
            behaviour that has ended. More than ``min_flows``.
        devices: most devices; the least recently seen is dropped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    days: float = Field(default=3.0, ge=0)
    min_flows: int = Field(default=1000, ge=2)
    margin: float = Field(default=0.5, gt=0)
    memory: int = Field(default=16_384, ge=3, le=1 << 30)
    devices: int = Field(default=4096, ge=1, le=1 << 20)

    @model_validator(mode="after")
    def _remembers_what_it_learns(self) -> Self:
        if self.memory <= self.min_flows:
            raise ValueError("memory must be more than min_flows")
        return self


class DeviceBaseline:
    """Per device, how often it used each phrase of each field.

    **Score.** The mean over fields of -ln p(phrase | device), in nats, with
    p = (count + 1/K) / (flows + 1) for a field of K phrases: one imagined flow, shared evenly
    among the phrases (Perks' prior, a Dirichlet of 1/K each).

    **Threshold.** Every flow is scored before it is counted (prequential, Dawid 1984), so its
    score is that of an unseen flow. The highest score of the second half of learning plus a
    margin is the threshold. If m flows were scored there and behaviour stays the same, the next
    flow exceeds their highest score with probability 1/(m + 1), or less with the margin.

    **Afterwards** flows below the threshold are still counted. Novel ones are not: repeated
    often enough, an intruder's flows would become normal. ``accept`` makes one normal.

    Flows of one call are scored in chunks of 256 against the counts at the chunk's beginning.
    Not safe for use by several threads at once.

    Attributes:
        evicted: devices that were dropped because there were too many.
        dropped: states that ``restore`` could not use.
    """

    def __init__(self, template: Template, settings: BaselineSettings | None = None) -> None:
        self.settings = settings or BaselineSettings()
        self.evicted = 0
        self.dropped = 0
        self._layout = PhraseLayout.of(template)
        self._prior = (1.0 / self._layout.sizes).astype(np.float32)
        devices = self.settings.devices
        # Zeros cost no memory before they are written to, so a small network stays small.
        self._counts = np.zeros((devices, self._layout.width), dtype=np.uint32)
        self._flows = np.zeros(devices, dtype=np.uint32)
        self._held = np.zeros(devices, dtype=np.uint32)
        self._first = np.full(devices, np.inf)
        self._last = np.full(devices, -np.inf)
        self._settled = np.zeros(devices, dtype=bool)
        #: While it learns: the highest held score. Then: the threshold.
        self._bound = np.zeros(devices, dtype=np.float32)
        #: Rows by device, the least recently seen first.
        self._rows: dict[str, int] = {}
        self._free = list(range(devices - 1, -1, -1))
        self._dirty: dict[str, None] = {}

    def __len__(self) -> int:
        """Devices that are known."""
        return len(self._rows)

    @property
    def settled(self) -> int:
        """Devices that have a threshold; none of the others' flows is novel yet."""
        return int(self._settled.sum())

    def observe(
        self,
        devices: Sequence[str | None],
        phrase_ids: NDArray[np.uint16],
        ts: NDArray[np.float64],
        learn: NDArray[np.bool_],
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Score flows, find those that are novel for their device, and learn from them.

        Args:
            devices: of each flow, [n]; None for a flow of no internal device.
            phrase_ids: of the template, uint16 [n, fields].
            ts: start times, seconds since the epoch, [n]; NaN where unknown.
            learn: False for flows that raise an alert and so must not become normal, [n].

        Returns:
            Scores in nats and whether each is novel, [n] each; 0 and False for no device.
        """
        scores = np.zeros(len(devices), dtype=np.float32)
        novel = np.zeros(len(devices), dtype=np.bool_)
        # No more flows than devices fit: or a row could change hands within a chunk.
        size = min(_CHUNK, self.settings.devices)
        for start in range(0, len(devices), size):
            some = devices[start : start + size]
            places = {name: self._row(name) for name in dict.fromkeys(some) if name is not None}
            rows = np.array([-1 if name is None else places[name] for name in some])
            part: NDArray[np.int64] | slice = slice(start, start + size)
            if rows.min() < 0:
                own = np.flatnonzero(rows >= 0)
                rows, part = rows[own], own + start
            scores[part], novel[part] = self._chunk(rows, phrase_ids[part], ts[part], learn[part])
        return scores, novel

    def accept(self, device: str, phrase_ids: NDArray[np.uint16]) -> None:
        """Make one flow normal: count it until its score is not above the threshold.

        Nothing changes for an unknown device, one that still learns, or another template's flow.

        Args:
            phrase_ids: of the flow, uint16 [fields].
        """
        row, sizes = self._rows.get(device), self._layout.sizes
        if row is None or not self._settled[row]:
            return
        if len(phrase_ids) != len(sizes) or (phrase_ids >= sizes).any():
            return
        rows, weight = np.array([row]), 1
        cells = self._cells(rows, phrase_ids[None])
        while self._score(rows, cells)[0] > self._bound[row] and weight < self.settings.memory:
            self._counts.reshape(-1)[cells] += weight
            self._flows[row] += weight
            self._fade(rows)
            weight *= 2
            self._dirty[device] = None

    def forget(self, device: str) -> None:
        """Drop a device; its baseline is learnt from the beginning."""
        row = self._rows.pop(device, None)
        if row is not None:
            self._clear(row)
            self._free.append(row)
            self._dirty[device] = None

    def dirty(self) -> dict[str, bytes | None]:
        """States that changed since the last call; None for a device that is gone."""
        changed = {
            device: self._pack(self._rows[device]) if device in self._rows else None
            for device in self._dirty
        }
        self._dirty.clear()
        return changed

    def restore(self, states: Mapping[str, bytes]) -> None:
        """Restore states that ``dirty`` returned; ``dropped`` counts those that do not fit.

        They are of another template or format, damaged, or too many; the baselines of their
        devices are learnt anew.
        """
        usable = {device: body for device, body in states.items() if self._fits(body)}
        self.dropped += len(states) - len(usable)
        recent = sorted(usable.items(), key=lambda item: _HEADER.unpack_from(item[1])[5])
        room = self.settings.devices - len(self._rows)
        self.dropped += max(0, len(recent) - room)
        for device, body in recent[max(0, len(recent) - room) :]:
            self._unpack(self._row(device), body)
        self._dirty.clear()

    def _row(self, device: str) -> int:
        """The device's row, now the most recently seen."""
        row = self._rows.pop(device, None)
        if row is None:
            if not self._free:
                self.forget(next(iter(self._rows)))
                self.evicted += 1
            row = self._free.pop()
        self._rows[device] = row
        self._dirty[device] = None
        return row

    def _chunk(
        self,
        rows: NDArray[np.int64],
        phrase_ids: NDArray[np.uint16],
        ts: NDArray[np.float64],
        learn: NDArray[np.bool_],
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        cells = self._cells(rows, phrase_ids)
        scores = self._score(rows, cells)
        settled = self._settled[rows]
        novel = settled & (scores > self._bound[rows])
        kept = learn & ~novel
        np.fmin.at(self._first, rows, ts)
        np.fmax.at(self._last, rows, ts)
        if not settled.all():
            self._hold(rows, scores, kept & ~settled)
        np.add.at(self._counts.reshape(-1), cells[kept].reshape(-1), _ONE)
        np.add.at(self._flows, rows[kept], _ONE)
        self._fade(rows)
        return scores, novel

    def _cells(self, rows: NDArray[np.int64], phrase_ids: NDArray[np.uint16]) -> NDArray[np.int64]:
        """Indices of these phrases' counts in the table as one vector, [n, fields]."""
        return rows[:, None] * self._layout.width + (phrase_ids + self._layout.offsets)

    def _score(self, rows: NDArray[np.int64], cells: NDArray[np.int64]) -> NDArray[np.float32]:
        """Mean surprise, [n]."""
        counts = self._counts.reshape(-1).take(cells).astype(np.float32)
        flows = self._flows[rows].astype(np.float32)
        surprise = np.log(flows + 1) - np.log(counts + self._prior).mean(axis=1)
        return np.asarray(surprise)

    def _hold(
        self, rows: NDArray[np.int64], scores: NDArray[np.float32], kept: NDArray[np.bool_]
    ) -> None:
        """Raise the bound to the scores of learning's second half; settle devices that are done."""
        half = self.settings.min_flows / 2
        age = self._last[rows] - self._first[rows]
        needed = self.settings.days * DAY_S
        held = kept & (self._flows[rows] >= half) & (age >= needed / 2)
        np.maximum.at(self._bound, rows[held], scores[held])
        np.add.at(self._held, rows[held], _ONE)
        ripe = np.unique(rows[~self._settled[rows] & (age >= needed) & (self._held[rows] >= half)])
        self._settled[ripe] = True
        self._bound[ripe] += self.settings.margin

    def _fade(self, rows: NDArray[np.int64]) -> None:
        """Halve the counts of devices that reached ``memory``."""
        full = self._flows[rows] >= self.settings.memory
        if full.any():
            for row in np.unique(rows[full]):
                while self._flows[row] >= self.settings.memory:
                    self._counts[row] >>= 1
                    self._flows[row] >>= 1

    def _clear(self, row: int) -> None:
        for values in (self._counts, *self._figures()):
            values[row] = 0
        self._first[row], self._last[row] = np.inf, -np.inf

    def _figures(self) -> tuple[NDArray[Any], ...]:
        """All of a device but its counts, in the header's order."""
        return self._first, self._last, self._flows, self._held, self._settled, self._bound

    def _pack(self, row: int) -> bytes:
        figures = (values[row].item() for values in self._figures())
        layout = self._layout
        head = _HEADER.pack(_MAGIC, _FORMAT, layout.width, layout.fingerprint, *figures)
        return head + bytes(self._counts[row].astype("<u4"))

    def _fits(self, body: bytes) -> bool:
        layout = self._layout
        if len(body) != _HEADER.size + 4 * layout.width:
            return False
        *made, first, last, _, _, settled, bound = _HEADER.unpack_from(body)
        sane = not (np.isnan(first) or np.isnan(last)) and settled in {0, 1} and bound >= 0
        return bool(sane and made == [_MAGIC, _FORMAT, layout.width, layout.fingerprint])

    def _unpack(self, row: int, body: bytes) -> None:
        for values, figure in zip(self._figures(), _HEADER.unpack_from(body)[4:], strict=True):
            values[row] = figure
        self._counts[row] = np.frombuffer(body, dtype="<u4", offset=_HEADER.size)
