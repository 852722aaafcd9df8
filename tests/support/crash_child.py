"""Drives a run through a fixed list of messages and tells what was acknowledged; made to be killed.

    python crash_child.py STRATEGY FOLDER ACKED [PLACE WHEN CALL]

``ACKED`` is a file of lines ``device sequence refusal`` that it appends to. With a place, the
process kills itself ``before`` or ``after`` that function's call number ``CALL``.
"""

from __future__ import annotations

import importlib
import os
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gradsense.coordinator.run import Run
from gradsense.learning.statistics import HEAD_BIAS, HEAD_WEIGHT, STATISTICS
from gradsense.storage.sqlite import Database
from gradsense.transport.messages import Message
from gradsense.transport.payloads import model_hash
from tests.support.toy_fleet import acks, job, open_run, sent, status
from tests.support.toys import update

DEVICES = ("a", "b", "c", "d")
SEQUENCES = 15
#: Where a kill hurts most: module, name in it.
PLACES = {
    "fsync": ("gradsense.storage.files.os", "fsync"),
    "rename": ("gradsense.storage.files.os", "rename"),
    "save": ("gradsense.coordinator.snapshots.Snapshots", "save"),
    "sweep": ("gradsense.coordinator.snapshots.Snapshots", "sweep"),
    "commit": ("gradsense.coordinator.journal.RunJournal", "commit"),
    "out": ("gradsense.coordinator.run.Run", "_out"),
}


def start_of(algorithm: str) -> dict[str, Any]:
    if algorithm.startswith("gsfs"):
        return {HEAD_WEIGHT: np.zeros((2, 9), np.float32), HEAD_BIAS: np.zeros(2, np.float32)}
    return {"w": np.zeros(80_000, dtype=np.float32)}


def make(algorithm: str, folder: Path) -> None:
    Run.create(folder, job(algorithm=algorithm, max_staleness=1000), start_of(algorithm))


def signed_updates(algorithm: str) -> dict[tuple[str, int], list[Message]]:
    """Every update in its order: good ones of one and two chunks, and bad ones."""
    rng, found = np.random.default_rng(0), {}
    start = start_of(algorithm)
    base = model_hash(start)
    for sequence in range(1, SEQUENCES + 1):
        for device in DEVICES:
            if algorithm.startswith("gsfs"):
                delta = {STATISTICS: rng.standard_normal((5, 12)).astype(np.float32)}
            else:
                delta = {"w": rng.standard_normal(80_000).astype(np.float32)}
            bad = sequence % 5 == 0 and device == "b"
            codec = job(algorithm=algorithm).rules.codec.name
            said = update(
                device, sequence=sequence, samples=0 if bad else 1000, delta=delta, codec=codec
            )
            found[device, sequence] = sent(said, base)
    return found


def arm(place: str, when: str, call: int) -> None:
    """Die at that call."""
    left = call

    def die(at: str) -> None:
        nonlocal left
        if at == when:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if place == "transaction":
        whole = Database.transaction

        @contextmanager
        def dying(self: Database) -> Iterator[sqlite3.Connection]:
            with whole(self) as db:
                yield db
                die("before")  # all is written, and nothing committed
            die("after")

        Database.transaction = dying  # type: ignore[method-assign]
        return
    where, name = PLACES[place]
    holder: Any = resolved(where)
    original = getattr(holder, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        die("before")
        result = original(*args, **kwargs)
        die("after")
        return result

    setattr(holder, name, wrapped)


def resolved(path: str) -> Any:
    module, _, last = path.rpartition(".")
    try:
        return importlib.import_module(path)
    except ImportError:
        return getattr(importlib.import_module(module), last)


def main(algorithm: str, folder: Path, told: Path, *kill: str) -> None:
    run = open_run(folder)
    if kill:
        arm(kill[0], kill[1], int(kill[2]))
    acked = {tuple(line.split()[:2]) for line in told.read_text().splitlines()}
    rng = np.random.default_rng(len(acked))
    waiting = [
        message
        for (device, sequence), chunks in signed_updates(algorithm).items()
        if (device, str(sequence)) not in acked
        for message in chunks
    ]
    with told.open("a", buffering=1) as file:
        run.take([status(device) for device in DEVICES], now=run.now, wall=0.0)
        while waiting:
            many = int(rng.choice([1, 1, 2, 7]))
            batch, waiting = waiting[:many], waiting[many:]
            heard = run.take(batch, now=run.now + 0.01, wall=0.0)
            for (device, sequence), refusal in acks(heard).items():
                file.write(f"{device} {sequence} {refusal}\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
