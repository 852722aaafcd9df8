"""What ``thousand`` measures: processor time, memory, waits, and whether all was counted once."""

from __future__ import annotations

import json
import sqlite3
import statistics
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.fleet.crowd import adopted_by
from benchmarks.fleet.light import Part, Seen
from benchmarks.processes import cpu_s
from gradsense.coordinator.journal import FILE as JOURNAL
from gradsense.fleet.jobs import Job
from gradsense.learning.learner import Tensors

#: Between samples of processor time, and until a part without rounds has found its pace.
SAMPLE_S, SETTLE_S = 0.1, 2.0

Row = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """One part of the benchmark: how the run is set, how the crowd plays, and for how long."""

    job: Job
    tensors: Tensors
    part: Part
    devices: int
    seconds: float = 0.0
    idle_s: float = 0.0


# Measuring ----------------------------------------------------------------------------------


class Meter:
    """CPU seconds of processes, sampled from ``/proc`` by a thread until closed."""

    def __init__(self, pids: Mapping[str, Sequence[int]]) -> None:
        self._pids = {name: tuple(own) for name, own in pids.items()}
        self._samples: list[tuple[float, dict[str, float]]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> Meter:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        with suppress(FileNotFoundError, ProcessLookupError):  # until one is stopped
            while not self._stop.wait(SAMPLE_S):
                self._sample()

    def _sample(self) -> None:
        cpu = {name: sum(map(cpu_s, own)) for name, own in self._pids.items()}
        self._samples.append((time.monotonic(), cpu))

    def cpu_s(self, name: str, start: float, end: float) -> float:
        """CPU seconds of the processes called so between two moments."""

        def at(moment: float) -> float:
            return min(self._samples, key=lambda one: abs(one[0] - moment))[1][name]

        return at(end) - at(start)


# Figures ------------------------------------------------------------------------------------


def pools(folder: Path, scene: Scene, seen: Seen) -> dict[int, float]:
    """Version to when the update that completed its pool was first published."""
    if scene.part.sends == "bare":
        rounds = range(1, (scene.part.rounds or 0) + 1)
        return {v: max(at for (_, n), at in seen.sent_at.items() if n == v) for v in rounds}
    query = (
        "SELECT version, device, sequence FROM models JOIN events ON events.id = models.event "
        "WHERE events.kind = 'update'"
    )
    with closing(sqlite3.connect(folder / JOURNAL)) as journal:
        rows = journal.execute(query).fetchall()
    return {version: seen.sent_at[device, sequence] for version, device, sequence in rows}


def counted(folder: Path, scene: Scene, seen: Seen, status: Mapping[str, Any]) -> Row:
    """Whether every update that was made was counted once."""
    with closing(sqlite3.connect(folder / JOURNAL)) as journal:
        ((kept,),) = journal.execute("SELECT count(*) FROM events WHERE kind = 'update'")
        rows = journal.execute("SELECT contributors FROM models").fetchall()
        ((journal_s,),) = journal.execute("SELECT avg(took_s) FROM models WHERE version > 0")
    averaged = sum(len(json.loads(names)) for (names,) in rows)
    refused = {name: n for name, n in seen.counts.items() if name != "repeats" and n}
    exact = kept == len(seen.acked) == len(seen.sent_at) == averaged + status["pooled"]
    return {
        "updates": kept,
        "each_once": exact,
        "refused": refused | dict(status["refused"]),
        "duplicates": status["duplicates"],
        "repeats": seen.counts["repeats"],
        "link": dict(status["link"]),
        "process": dict(status["process"]),
        "aggregation_ms": 1e3 * (journal_s or 0.0),
        "journal_bytes": status["journal_bytes"],
    }


def figures(scene: Scene, seen: Seen, meter: Meter, row: Row, pools: Mapping[int, float]) -> Row:
    adopted, n = adopted_by(seen), scene.devices
    whole = {version: times for version, times in adopted.items() if len(times) == n}
    waits = [max(whole[v]) - at for v, at in pools.items() if v in whole and v > 1]
    if scene.part.rounds is not None:  # the first is still among the connecting
        start, end = max(whole[1]), max(whole[scene.part.rounds])
    else:
        start, end = max(whole[0]) + SETTLE_S / 2, row["ended_at"]
    done = seen.sent_at if scene.part.sends == "bare" else seen.acked
    updates = sum(start <= at <= end for at in done.values())
    models = sum(start <= at <= end for at in seen.adopted.values())
    acks = sorted(at - seen.sent_at[key] for key, at in seen.acked.items() if start <= at <= end)
    begun = min(at for at, _ in seen.connecting)
    found = {
        "devices": n,
        "update_bytes": seen.update_bytes,
        "model_bytes": seen.model_bytes,
        "connects_s": n / (row["connected_at"] - begun),
        "connect_ms": 1e3 * statistics.median(ready - at for at, ready in seen.connecting),
        "window_s": end - start,
        "updates_s": updates / (end - start),
        "models_s": models / (end - start),
        "waits": len(waits),
        "adoption_p50_s": statistics.median(waits) if waits else None,
        "adoption_max_s": max(waits) if waits else None,
        "spread_p50_s": _spread(whole),
        "ack_p50_ms": 1e3 * acks[len(acks) // 2] if acks else None,
        "ack_p99_ms": 1e3 * acks[int(0.99 * len(acks))] if acks else None,
        "cpu_ms": {
            name: 1e3 * meter.cpu_s(name, start, end) / max(1, updates) for name in row["mb"]
        },
        "cpu_ms_message": {
            name: 1e3 * meter.cpu_s(name, start, end) / max(1, updates + models)
            for name in row["mb"]
        },
        "cpu_share": {name: meter.cpu_s(name, start, end) / (end - start) for name in row["mb"]},
        "connection_kb": 1e3 * (row["mb"]["broker"] - row["broker_empty_mb"]) / n,
        "device_kb": 1e3 * (row["mb"]["crowd"] - row["crowd_empty_mb"]) / n,
    }
    if scene.part.rounds is not None:
        wire, rounds = row["wire"], scene.part.rounds
        found["round_s"] = (end - start) / (rounds - 1)
        found["round_bytes"] = {name: wire[name] / n / rounds for name in wire}
    return found


def _spread(whole: Mapping[int, Sequence[float]]) -> float | None:
    """Seconds from the first device's having a model to the last one's, the median."""
    spreads = [max(times) - min(times) for version, times in whole.items() if version > 1]
    return statistics.median(spreads) if spreads else None


_COLUMNS = {
    "devices": "{:,d}",
    "update_bytes": "{:,d}",
    "connects_s": "{:,.0f}",
    "updates_s": "{:,.0f}",
    "models_s": "{:,.0f}",
    "round_s": "{:.2f}",
    "adoption_p50_s": "{:.2f}",
    "adoption_max_s": "{:.2f}",
    "spread_p50_s": "{:.2f}",
    "ack_p50_ms": "{:,.0f}",
    "ack_p99_ms": "{:,.0f}",
}


def show(rows: Mapping[str, Row], enrolling: Row) -> None:
    """Tables on standard error."""
    console = Console(file=sys.stderr, width=150)
    speed = Table("part", *(name.replace("_", " ") for name in _COLUMNS), title="speed")
    for part, row in rows.items():
        cells = [form.format(row[name]) if row.get(name) else "" for name, form in _COLUMNS.items()]
        speed.add_row(part, *cells)
    cost = Table(
        "part",
        "process",
        "CPU ms an update",
        "a message",
        "cores",
        "PSS MB",
        "before",
        title="cost",
    )
    for part, row in rows.items():
        for name, used in row["mb"].items():
            shares = row["cpu_ms"], row["cpu_ms_message"], row["cpu_share"]
            cells = [f"{share[name]:.2f}" for share in shares]
            cost.add_row(part, name, *cells, f"{used:.1f}", f"{row[f'{name}_empty_mb']:.1f}")
    console.print(speed, cost)
    for part, row in rows.items():
        facts: Row = {
            name: row[name]
            for name in ("each_once", "updates", "refused", "duplicates", "repeats")
            if name in row
        }
        facts |= {name: round(row[name], 1) for name in ("connection_kb", "device_kb")}
        console.print(part, facts | {"broker_drops": row["broker_drops"]})
        for name in ("round_bytes", "idle"):
            if name in row:
                console.print(part, name, row[name])
    console.print("enrolling", enrolling)
