"""What a device's training agent keeps, in one SQLite file.

Two transactions carry it. One takes in what was read from the logs together with how far they were
read; the other the client's new state together with the update that it has just made. A process
killed at any instant therefore neither learns from a flow twice nor sends an update of a state that
it does not have. What was taken in survives a loss of power.

Updates wait here, signed as they will travel, until the coordinator has acknowledged each of them.
None is ever dropped: an agent whose outbox is ``full`` stops making updates. The last ones that
were acknowledged are kept, for a coordinator that is restored from a backup of before.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradsense.errors import GradsenseError, InputError
from gradsense.federation.sequences import MOST_SKIPPED
from gradsense.federation.update import GlobalModel
from gradsense.learning.learner import Tensors
from gradsense.storage import checkpoint
from gradsense.storage.sqlite import Database, Schema
from gradsense.transport.messages import SignedMessage
from gradsense.transport.payloads import model_hash
from gradsense.transport.protocol import NO_MODEL, Properties, parse_topic

if TYPE_CHECKING:  # they bring readers of logs and graphs, which this file does without
    from gradsense.agent.labelling import Gathered
    from gradsense.agent.reader import Rows

FILE = "agent.sqlite3"
_LOCK = "agent.lock"
#: Acknowledged updates that are kept at most, and their bytes.
KEPT_UPDATES, KEPT_BYTES = MOST_SKIPPED, 64 << 20
#: Bytes of unacknowledged updates from which on the outbox is full.
OUTBOX_BYTES = 256 << 20

#: One for each version of the schema, in order; each brings the file from one to the next.
MIGRATIONS = [
    """
    CREATE TABLE states (name TEXT PRIMARY KEY, body BLOB NOT NULL);
    CREATE TABLE outbox (sequence INTEGER PRIMARY KEY, properties TEXT NOT NULL,
        body BLOB NOT NULL);
    CREATE TABLE batches (number INTEGER PRIMARY KEY, body BLOB NOT NULL);
    CREATE TABLE places (log TEXT PRIMARY KEY, body TEXT NOT NULL);
    CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
    """,
    # Protocol 2: no coordinator takes what waits in version 1.
    """
    INSERT INTO counters SELECT 'refused:unsupported-schema', count(*) FROM outbox
        WHERE true GROUP BY 1
        ON CONFLICT (name) DO UPDATE SET value = value + excluded.value;
    DELETE FROM outbox;
    """,
    # What was acknowledged, for a coordinator that is restored from an older backup.
    """
    CREATE TABLE kept (sequence INTEGER PRIMARY KEY, properties TEXT NOT NULL, body BLOB NOT NULL);
    """,
]

_SCHEMA = Schema(
    what="state of gradsense's agent",
    application=0x47534147,  # "GSAG"
    migrations=MIGRATIONS,
    hint="move it away or give another --state",
)

_HELD_EPOCH, _EPOCH = "held-epoch", "epoch"
_ASKED = "SELECT CAST(CAST(body AS TEXT) AS INTEGER) FROM states WHERE name = 'asked'"
_MOVE = "INSERT OR REPLACE INTO"
#: Drop the oldest beyond a number and a total of bytes, both counted from the newest.
_PRUNE = """
    DELETE FROM kept WHERE sequence IN (
        SELECT sequence FROM (
            SELECT sequence, row_number() OVER newest AS number,
                sum(length(body)) OVER newest AS bytes
            FROM kept WINDOW newest AS (ORDER BY sequence DESC))
        WHERE number > ? OR bytes > ?)
"""

#: What ``federation.Client.snapshot`` gives and ``restore`` takes: values, and groups of tensors.
ClientState = tuple[Mapping[str, Any], Mapping[str, Tensors]]


class AgentStore:
    """One agent's state, and the sequence of the batches in it. Threads may share it.

    What writes raises ``StorageFull`` if it could not, and then no part is written; try again.
    What reads tensors raises ``GradsenseError`` where they are damaged.

    Args:
        folder: made if it is not there; one process at a time.
        most_bytes: of unacknowledged updates from which on the outbox is ``full``.
        keep: number and bytes of acknowledged updates that are kept at most.

    Raises:
        InputError: the folder cannot be used, is in use, or holds a damaged, foreign or newer file.
        StorageFull: it cannot be opened for now.
    """

    def __init__(
        self,
        folder: Path,
        *,
        most_bytes: int = OUTBOX_BYTES,
        keep: tuple[int, int] = (KEPT_UPDATES, KEPT_BYTES),
    ) -> None:
        self.file = folder / FILE
        self._most_bytes, self._keep = most_bytes, keep
        self._held: tuple[int, str] | None = None  # not looked up yet
        busy = "another gradsense edge trains with this state"
        self._db = Database.of_state(folder, FILE, _SCHEMA, lock=_LOCK, busy=busy)

    def close(self) -> None:
        """Close the file. Nothing is lost if this is never called."""
        self._db.close()

    def _number(self, query: str) -> int:
        return int(self._db.all(query)[0][0])

    def _state(self, name: str) -> ClientState | None:
        rows = self._db.all("SELECT body FROM states WHERE name = ?", (name,))
        try:
            return checkpoint.loads(rows[0][0]) if rows else None
        except ValueError as error:
            raise self._damaged(error) from error

    def _damaged(self, error: ValueError) -> GradsenseError:
        return GradsenseError(
            f"{self.file}: the agent's state is damaged ({error}); move it away and enrol the "
            "device under a new id, since its update numbers are in there"
        )

    def claim(self, run: str, device: str) -> None:
        """Note whose state this is; ``InputError`` if it is of another device or run."""
        owner = f"{run}/{device}".encode()
        rows = self._db.all("SELECT body FROM states WHERE name = 'owner'")
        if not rows:
            with self._db.transaction() as db:
                _keep(db, "owner", owner)
        elif rows[0][0] != owner:
            raise InputError(
                f"this state is of {rows[0][0].decode()} (run/device), not of {owner.decode()}",
                hint="give every device and every run a --state of its own",
                file=self.file,
            )

    # The client -----------------------------------------------------------------------------

    def client(self) -> ClientState | None:
        """The client's state as it was last saved; None before that."""
        return self._state("client")

    def save(
        self,
        client: ClientState,
        *,
        update: SignedMessage | None = None,
        model: GlobalModel | None = None,
        epoch: int = 0,
    ) -> None:
        """Keep the client's state and what goes with it: all or nothing.

        Args:
            client: what ``federation.Client.snapshot`` gives.
            update: that it has just made, signed; it waits in the outbox from now on.
                It is taken in even where the outbox is ``full``, since the state counts it as sent.
            model: the global model that it has just adopted, in place of the one before.
            epoch: of that model.

        Raises:
            ValueError: the update is not of the number that the state used last.
        """
        values, tensors = client
        if update is not None and update.properties.header.sequence != values["sequence"]:
            raise ValueError("the update's number is not that of the client's state")
        body = checkpoint.dumps(dict(values), tensors)
        held, packed = self._held, b""
        if model is not None:
            held = (model.version, model_hash(model.tensors))
            names = None if model.participants is None else sorted(model.participants)
            kept = {"version": held[0], "hash": held[1], "participants": names}
            packed = checkpoint.dumps(kept, {"model": model.tensors})
        with self._db.transaction() as db:
            _keep(db, "client", body)
            if update is not None:
                properties = update.properties
                text = json.dumps([str(properties.topic()), properties.pairs()])
                row = (values["sequence"], text, update.body)
                db.execute("INSERT INTO outbox VALUES (?, ?, ?)", row)
            if model is not None:
                _keep(db, "model", packed)
                _keep(db, _HELD_EPOCH, str(epoch).encode())
        self._held = held

    def model(self) -> GlobalModel | None:
        """The global model that was adopted last; None before the first."""
        found = self._state("model")
        if found is None:
            return None
        values, groups = found
        names = values["participants"]
        invited = None if names is None else frozenset(names)
        return GlobalModel(values["version"], groups["model"], invited)

    def held(self) -> tuple[int, str]:
        """Version and hash of that model, as the device reports them; ``NO_MODEL`` before."""
        if self._held is None:
            found = self._state("model")
            self._held = NO_MODEL if found is None else (found[0]["version"], found[0]["hash"])
        return self._held

    # The outbox -----------------------------------------------------------------------------

    def head(self) -> SignedMessage | None:
        """The oldest update that was not acknowledged, as it travels."""
        return self._update("SELECT properties, body FROM outbox ORDER BY sequence LIMIT 1")

    def _update(self, query: str) -> SignedMessage | None:
        for text, body in self._db.all(query):
            topic, pairs = json.loads(text)
            return SignedMessage(Properties.parse(parse_topic(topic), pairs), body)
        return None

    @property
    def outbox_bytes(self) -> int:
        """Bytes of all updates that wait."""
        return self._number("SELECT coalesce(sum(length(body)), 0) FROM outbox")

    @property
    def full(self) -> bool:
        """Whether no further update should be made for now."""
        return self.outbox_bytes >= self._most_bytes

    def acknowledged(
        self, sequence: int, refusal: str = "", *, client: ClientState | None = None
    ) -> bool:
        """The coordinator has acknowledged or refused an update: it waits no longer.

        Args:
            refusal: the name under which it was refused; empty if it was pooled. Counted as
                ``acknowledged`` or ``refused:<name>``.
            client: its state after that, if that changes it.

        Returns:
            whether it was still there; a second acknowledgement changes nothing.
        """
        body = None if client is None else checkpoint.dumps(dict(client[0]), client[1])
        with self._db.transaction() as db:
            if not refusal:
                db.execute(f"{_MOVE} kept SELECT * FROM outbox WHERE sequence = ?", (sequence,))
            gone = db.execute("DELETE FROM outbox WHERE sequence = ?", (sequence,)).rowcount == 1
            if gone:
                db.execute(_PRUNE, self._keep)
                _count(db, {f"refused:{refusal}" if refusal else "acknowledged": 1})
                if body is not None:
                    _keep(db, "client", body)
            return gone

    # After a backup -------------------------------------------------------------------------

    def epochs(self) -> tuple[int, int]:
        """Of the model held, and the latest that the coordinator has signed."""
        names = _HELD_EPOCH, _EPOCH
        rows: dict[str, bytes] = dict(
            self._db.all("SELECT name, body FROM states WHERE name IN (?, ?)", names)
        )
        held, latest = (int(rows.get(name, b"0")) for name in names)
        return held, latest

    def same_model(self, epoch: int) -> None:
        """The model held is the coordinator's in this epoch too."""
        with self._db.transaction() as db:
            _keep(db, _HELD_EPOCH, str(epoch).encode())

    def begin_epoch(self, epoch: int) -> None:
        """The coordinator was opened anew: ask whether it knows the last acknowledged update."""
        with self._db.transaction() as db:
            _keep(db, _EPOCH, str(epoch).encode())
            _ask(db, "SELECT max(sequence) FROM kept")

    def asked(self) -> SignedMessage | None:
        """The acknowledged update that the coordinator is asked about; None: none is."""
        return self._update(f"SELECT properties, body FROM kept WHERE sequence = ({_ASKED})")

    def known(self) -> int:
        """The coordinator knows that update. What is behind it waits again; how many those are."""
        with self._db.transaction() as db:
            return _offer_again(db)

    def unknown(self) -> int:
        """The coordinator does not know that update: ask about the one before, or offer them all.

        Returns:
            how many updates wait again.
        """
        with self._db.transaction() as db:
            _ask(db, f"SELECT coalesce(max(sequence), 0) FROM kept WHERE sequence < ({_ASKED})")
            first = db.execute(_ASKED).fetchone() == (0,)
            return _offer_again(db) if first else 0

    # What was read --------------------------------------------------------------------------

    def append(self, gathered: Gathered) -> None:
        """Take in how far the logs were read, with all that it came to; a batch, if it has rows."""
        names = ("phrase_ids", "labels", "weights")
        rows = {name: np.asarray(getattr(gathered, name)) for name in names}
        body = checkpoint.dumps({}, {"batch": rows}) if len(gathered) else None
        places = [(log, json.dumps(place)) for log, place in gathered.places.items()]
        with self._db.transaction() as db:
            db.executemany("INSERT OR REPLACE INTO places VALUES (?, ?)", places)
            _keep(db, "taken", gathered.taken)
            _count(db, gathered.counts)
            if body is not None:
                db.execute("INSERT INTO batches (body) VALUES (?)", (body,))

    def places(self) -> dict[str, Any]:
        """Log to where it was read up to."""
        return {log: json.loads(body) for log, body in self._db.all("SELECT log, body FROM places")}

    def taken(self) -> bytes:
        """The feedback that was taken in; opaque."""
        rows = self._db.all("SELECT body FROM states WHERE name = 'taken'")
        return bytes(rows[0][0]) if rows else b""

    def counters(self) -> dict[str, int]:
        """All counters since the state was made."""
        return dict(self._db.all("SELECT name, value FROM counters ORDER BY name"))

    def __len__(self) -> int:
        """How many batches were taken in."""
        return self._number("SELECT count(*) FROM batches")

    def __getitem__(self, number: int) -> Rows:
        """A batch: phrase_ids uint16 [n, fields], labels int64 [n], weights int64 [n].

        Numbers are 0, 1, 2, ... and stay. ``IndexError`` if there is none of this number.
        """
        rows = self._db.all("SELECT body FROM batches WHERE number = ?", (number + 1,))
        if not rows:
            raise IndexError(f"no batch {number}")
        try:
            batch: Mapping[str, NDArray[Any]] = checkpoint.loads(rows[0][0])[1]["batch"]
        except ValueError as error:
            raise self._damaged(error) from error
        return batch["phrase_ids"], batch["labels"], batch["weights"]


def _ask(db: sqlite3.Connection, query: str) -> None:
    """Ask about the update of this number; about none if it is null."""
    (sequence,) = db.execute(query).fetchone()
    db.execute("DELETE FROM states WHERE name = 'asked'")
    if sequence is not None:
        _keep(db, "asked", str(sequence).encode())


def _offer_again(db: sqlite3.Connection) -> int:
    """Move what was acknowledged behind the update asked about to the outbox again."""
    db.execute(f"{_MOVE} outbox SELECT * FROM kept WHERE sequence > ({_ASKED})")
    moved = db.execute(f"DELETE FROM kept WHERE sequence > ({_ASKED})").rowcount
    db.execute("DELETE FROM states WHERE name = 'asked'")
    if moved:
        _count(db, {"acknowledged": -moved, "offered-again": moved})
    return moved


def _keep(db: sqlite3.Connection, name: str, body: bytes) -> None:
    db.execute("INSERT OR REPLACE INTO states VALUES (?, ?)", (name, body))


def _count(db: sqlite3.Connection, counts: Mapping[str, int]) -> None:
    db.executemany(
        "INSERT INTO counters VALUES (?, ?) "
        "ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
        counts.items(),
    )
