"""A gateway's state in one SQLite file: places in logs, alerts, messages, feedback.

One transaction commits a batch: how far the log was read, and everything that follows from it. A
process that is killed at any instant therefore continues exactly where it stopped. SQLite runs in
WAL mode with ``synchronous=NORMAL``: a kill of the process loses nothing; a loss of power may
lose the last transactions, whole ones, whose flows are then judged again under the same alert ids.

Messages to sinks are a queue on disk. Every sink has its own place in it, so a dead sink delays no
other, and its backlog has a bound beyond which the oldest messages are dropped and counted.

Beside it stands the file of all verdicts, where one is wanted, whose length the journal keeps.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from gradsense.data.flows import Flows, column
from gradsense.errors import InputError, input_errors
from gradsense.gateway.alerting.alert import Alert
from gradsense.gateway.alerting.grouping import GROUP, Group
from gradsense.storage.sqlite import Database, Schema
from gradsense.tasks.task import get_task

if TYPE_CHECKING:  # it brings a runtime of graphs, which readers of the state do without
    from gradsense.detection.detector import Verdict

FILE = "watch.sqlite3"
#: Closed alerts that are kept for feedback; older ones are deleted.
KEPT_ALERTS = 10_000
_VERDICT_COLUMNS = ("line", "ts", "uid", "orig_h", "orig_p", "resp_h", "resp_p")

_TABLES = """
CREATE TABLE IF NOT EXISTS places (log TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS alerts (
    id TEXT PRIMARY KEY, open INTEGER NOT NULL, body TEXT NOT NULL, memory BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS messages (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT NOT NULL, bytes INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS sinks (
    name TEXT PRIMARY KEY, seq INTEGER NOT NULL,
    delivered INTEGER NOT NULL DEFAULT 0, dropped INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS feedback (
    alert TEXT PRIMARY KEY, label TEXT NOT NULL, device TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS examples (
    alert TEXT NOT NULL, prompt BLOB NOT NULL, flows INTEGER NOT NULL,
    PRIMARY KEY (alert, prompt));
CREATE TABLE IF NOT EXISTS blobs (
    kind TEXT NOT NULL, name TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (kind, name));
"""
_SCHEMA = Schema(
    what="journal of gradsense",
    application=0x47534757,  # "GSGW"
    migrations=[_TABLES],
    hint="move it away or give another --state",
    synchronous="NORMAL",
)

#: Feedback with this label silences.
_NORMAL = get_task().normal


@dataclass
class StoreBatch:
    """The changes of one step of the watch, committed all together or not at all.

    Args:
        places: log to the place that it is read up to, JSON values.
        counts: counter to its increment.
        messages: alerts as they are now, for every sink.
        groups: the state of alerts that changed or ended.
        blobs: (kind, name) to bytes that replace the earlier ones, or None to delete them.
    """

    places: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    messages: list[Alert] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    blobs: dict[tuple[str, str], bytes | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Backlog:
    """A sink's messages: waiting, delivered, and dropped because too many waited."""

    waiting: int
    delivered: int
    dropped: int


@dataclass(frozen=True)
class Feedback:
    """An operator's feedback on an alert: its ``label`` is Benign, Malicious or a class."""

    alert: str
    label: str
    device: str
    at: float


class GatewayStore:
    """One gateway's state. Threads may share it; a lock serialises them.

    What writes raises ``StorageFull`` if it could not, and then no part is written; try again.

    Args:
        folder: made if it is not there.
        exclusive: refuse to open what another process watches with.

    Raises:
        InputError: the folder cannot be used, is in use, or holds another version's journal.
    """

    def __init__(self, folder: Path, *, exclusive: bool = True) -> None:
        self.folder = folder
        busy = "another gradsense watch works with this state"
        lock = "lock" if exclusive else None
        self._db = Database.of_state(folder, FILE, _SCHEMA, lock=lock, busy=busy)

    def close(self) -> None:
        """Close the file. Nothing is lost if this is never called."""
        self._db.close()

    # Watching -------------------------------------------------------------------------------

    def commit(self, batch: StoreBatch) -> None:
        """Commit one step."""
        with self._db.transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO places VALUES (?, ?)",
                [(log, json.dumps(place)) for log, place in batch.places.items()],
            )
            db.executemany(
                "INSERT INTO counters VALUES (?, ?) "
                "ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
                batch.counts.items(),
            )
            bodies = [(alert, alert.model_dump_json()) for alert in batch.messages]
            db.executemany(
                "INSERT INTO messages (body, bytes) SELECT ?, ? WHERE EXISTS (SELECT 1 FROM sinks)",
                [(body, len(body)) for _, body in bodies],
            )
            db.executemany(
                "INSERT INTO alerts VALUES (?, ?, ?, '') ON CONFLICT (id) DO UPDATE "
                "SET open = excluded.open, body = excluded.body",
                [(alert.id, alert.state != "closed", body) for alert, body in bodies],
            )
            for group in batch.groups:
                prompts = [(group.id, bytes.fromhex(p), n) for p, n in group.prompts.items()]
                db.execute(
                    "UPDATE alerts SET memory = ? WHERE id = ?", (GROUP.dump_json(group), group.id)
                )
                db.executemany("INSERT OR REPLACE INTO examples VALUES (?, ?, ?)", prompts)
            for (kind, name), body in batch.blobs.items():
                if body is None:
                    db.execute("DELETE FROM blobs WHERE kind = ? AND name = ?", (kind, name))
                else:
                    db.execute("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?)", (kind, name, body))
            if any(alert.state == "closed" for alert in batch.messages):
                _forget_old_alerts(db)

    def places(self) -> dict[str, Any]:
        """Each log's place, up to which it was read."""
        return {log: json.loads(body) for log, body in self._db.all("SELECT * FROM places")}

    def counters(self) -> dict[str, int]:
        """All counters since the journal was made."""
        return dict(self._db.all("SELECT name, value FROM counters ORDER BY name"))

    def open_groups(self) -> list[Group]:
        """The alerts that were open."""
        rows = self._db.all("SELECT memory FROM alerts WHERE open AND memory != ''")
        return [GROUP.validate_json(memory) for (memory,) in rows]

    def open_alerts(self) -> list[Alert]:
        """The alerts that were open, as they were last published."""
        rows = self._db.all("SELECT body FROM alerts WHERE open ORDER BY rowid")
        return [Alert.model_validate_json(body) for (body,) in rows]

    def blobs(self, kind: str) -> dict[str, bytes]:
        """Everything stored under ``kind``, by name."""
        return dict(self._db.all("SELECT name, body FROM blobs WHERE kind = ?", (kind,)))

    # Sinks ----------------------------------------------------------------------------------

    def register(self, sinks: Iterable[str]) -> None:
        """Queue messages for exactly these sinks; a new one gets only those still to come."""
        names = list(sinks)
        with self._db.transaction() as db:
            newest = _newest(db)
            db.executemany(
                "INSERT OR IGNORE INTO sinks (name, seq) VALUES (?, ?)",
                [(name, newest) for name in names],
            )
            marks = ",".join("?" * len(names))
            db.execute(f"DELETE FROM sinks WHERE name NOT IN ({marks})", names)
            _forget_delivered(db)

    def waiting(self, sink: str, most: int) -> list[tuple[int, Alert]]:
        """The oldest messages that a sink has not received, with their numbers."""
        rows = self._db.all(
            "SELECT m.seq, m.body FROM messages m, sinks s "
            "WHERE s.name = ? AND m.seq > s.seq ORDER BY m.seq LIMIT ?",
            (sink, most),
        )
        return [(seq, Alert.model_validate_json(body)) for seq, body in rows]

    def delivered(self, sink: str, seq: int, *, count: int, refused: int = 0) -> None:
        """Move a sink's place to ``seq``: it took ``count`` messages and refused the others."""
        with self._db.transaction() as db:
            db.execute(
                "UPDATE sinks SET seq = max(seq, ?), delivered = delivered + ?, "
                "dropped = dropped + ? WHERE name = ?",
                (seq, count, refused, sink),
            )
            _forget_delivered(db)

    def trim(self, sink: str, most_bytes: int) -> int:
        """Drop a sink's oldest messages while more than ``most_bytes`` wait; returns how many."""
        with self._db.transaction() as db:
            gone, last = db.execute(
                "SELECT count(*), max(seq) FROM (SELECT m.seq, sum(m.bytes) OVER "
                "(ORDER BY m.seq DESC) AS upto FROM messages m, sinks s "
                "WHERE s.name = ? AND m.seq > s.seq) WHERE upto > ?",
                (sink, most_bytes),
            ).fetchone()
            if gone:
                db.execute(
                    "UPDATE sinks SET seq = ?, dropped = dropped + ? WHERE name = ?",
                    (last, gone, sink),
                )
                _forget_delivered(db)
            return int(gone)

    def backlogs(self) -> dict[str, Backlog]:
        """Every sink's queue."""
        rows = self._db.all(
            "SELECT s.name, (SELECT count(*) FROM messages m WHERE m.seq > s.seq), "
            "s.delivered, s.dropped FROM sinks s ORDER BY s.name"
        )
        return {name: Backlog(*numbers) for name, *numbers in rows}

    # Operators ------------------------------------------------------------------------------

    def alert(self, start: str) -> Alert:
        """The alert whose id starts with ``start``.

        Raises:
            InputError: there is none, or more than one.
        """
        rows = self._db.all(
            "SELECT body FROM alerts WHERE substr(id, 1, ?) = ? LIMIT 2", (len(start), start)
        )
        if len(rows) != 1:
            what = "more than one alert starts so" if rows else "no such alert is kept here"
            raise InputError(
                what, hint="give the alert's id, as its message has it", field=start or "ALERT"
            )
        return Alert.model_validate_json(rows[0][0])

    def alerts(self, most: int) -> list[Alert]:
        """The newest alerts, newest first."""
        rows = self._db.all("SELECT body FROM alerts ORDER BY rowid DESC LIMIT ?", (most,))
        return [Alert.model_validate_json(body) for (body,) in rows]

    def record_feedback(self, alert: Alert, label: str, at: float) -> int:
        """Store feedback on an alert; it replaces earlier feedback on the same alert.

        Returns:
            how many distinct prompts it labels.
        """
        with self._db.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO feedback VALUES (?, ?, ?, ?)",
                (alert.id, label, alert.device, at),
            )
            (prompts,) = db.execute(
                "SELECT count(*) FROM examples WHERE alert = ?", (alert.id,)
            ).fetchone()
            return int(prompts)

    def labels(self) -> tuple[str, ...]:
        """The classes of the model that watches, or was the last; empty where none is recorded."""
        return tuple(json.loads(self.blobs("model").get("labels", b"[]")))

    def feedback(self) -> list[Feedback]:
        """All feedback, oldest first."""
        rows = self._db.all("SELECT alert, label, device, at FROM feedback ORDER BY at, alert")
        return [Feedback(*row) for row in rows]

    def examples(self) -> list[tuple[Feedback, bytes, int]]:
        """Prompts that feedback labels, as bytes of phrase ids, with their flows."""
        rows = self._db.all(
            "SELECT f.alert, f.label, f.device, f.at, e.prompt, e.flows FROM feedback f "
            "JOIN examples e ON e.alert = f.alert ORDER BY f.at, f.alert, e.prompt"
        )
        return [(Feedback(*row[:4]), row[4], row[5]) for row in rows]

    def silenced(self) -> frozenset[tuple[str, bytes]]:
        """(device, prompt) pairs of alerts that feedback calls benign."""
        rows = self._db.all(
            "SELECT f.device, e.prompt FROM feedback f JOIN examples e ON e.alert = f.alert "
            "WHERE f.label = ?",
            (_NORMAL,),
        )
        return frozenset((device, prompt) for device, prompt in rows)


class VerdictLog:
    """Appends verdicts; the file's length is part of the journal's transaction.

    The lines of a batch are written before its transaction. A process that is killed in between
    leaves lines that are not in the journal; ``cut`` removes them at the next start, and their
    flows are judged again.

    Raises:
        InputError: ``path`` cannot be written.
    """

    def __init__(self, path: Path) -> None:
        #: Under which the journal keeps the length, among the places in logs.
        self.key = f"verdicts:{path}"
        hint = "give a writable file as --verdicts"
        with input_errors("cannot write there", hint=hint, file=path):
            self._file = path.open("ab", buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size

    def cut(self, size: int) -> None:
        """Remove everything after ``size`` bytes."""
        if size < self.size:
            self._file.truncate(size)
            self.size = size

    def add(self, log: str, flows: Flows, verdicts: list[Verdict]) -> None:
        """Append one line for each flow, all or none.

        Raises:
            OSError: the disk is full, say; the file is unchanged.
        """
        table = pl.DataFrame(
            {
                "log": pl.repeat(log, len(verdicts), eager=True),
                **{name: column(flows, name) for name in _VERDICT_COLUMNS},
                "verdict": [one.label for one in verdicts],
                "probability": [round(one.probability, 6) for one in verdicts],
                "suspicion": [round(one.suspicion, 6) for one in verdicts],
                "alarm": [one.alarm for one in verdicts],
                "novelty": [one.novelty for one in verdicts],
            },
            schema_overrides={"novelty": pl.Float64},
        )
        data = table.write_ndjson().encode()
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:]) or 0
        except OSError:
            self._file.truncate(self.size)
            raise
        self.size += len(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _newest(db: sqlite3.Connection) -> int:
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'messages'").fetchone()
    return row[0] if row else 0


def _forget_delivered(db: sqlite3.Connection) -> None:
    db.execute(
        "DELETE FROM messages WHERE seq <= (SELECT coalesce(min(seq), (SELECT max(seq) "
        "FROM messages)) FROM sinks)"
    )


def _forget_old_alerts(db: sqlite3.Connection) -> None:
    """Delete all but the newest closed alerts, and the prompts of those without feedback."""
    db.execute(
        "DELETE FROM alerts WHERE NOT open AND rowid <= (SELECT max(rowid) FROM alerts) - ?",
        (KEPT_ALERTS,),
    )
    db.execute(
        "DELETE FROM examples WHERE alert NOT IN (SELECT id FROM alerts) "
        "AND alert NOT IN (SELECT alert FROM feedback)"
    )
