"""Who belongs to the fleet: every certificate that was ever issued, in one SQLite file.

A row is written before its certificate leaves the process, so that none exists which could not be
revoked. A revocation survives a loss of power. Private keys are never here. Times are arguments, in
seconds since 1970.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gradsense.errors import InputError
from gradsense.storage.sqlite import Database, Schema

Role = Literal["device", "coordinator", "broker"]
State = Literal["active", "revoked", "expired"]

#: One for each version of the schema, in order; each brings the file from one to the next.
MIGRATIONS = [
    """
    CREATE TABLE certificates (
        serial TEXT PRIMARY KEY, name TEXT NOT NULL, role TEXT NOT NULL, issued REAL NOT NULL,
        expires REAL NOT NULL, signing_key BLOB, revoked REAL);
    CREATE UNIQUE INDEX one_in_force ON certificates (name) WHERE revoked IS NULL;
    """,
    # The coordinator asks for a name with every message.
    "CREATE INDEX by_name ON certificates (name);",
    # What an operator wants of the coordinator, which looks here.
    """
    CREATE TABLE orders (
        id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, kind TEXT NOT NULL,
        device TEXT NOT NULL, run TEXT NOT NULL, version INTEGER NOT NULL);
    """,
    # The broker lets a device speak in its own run only.
    """
    ALTER TABLE certificates ADD COLUMN run TEXT NOT NULL DEFAULT '';
    CREATE TABLE denied (name TEXT PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID;
    """,
]
_SCHEMA = Schema(
    what="registry of gradsense",
    application=0x47535246,  # "GSRF"
    migrations=MIGRATIONS,
    hint="restore its backup",
)
_COLUMNS = "name, role, serial, issued, expires, signing_key, revoked, run"
#: What may stand in a topic, a file name and a certificate's common name (64 at most, RFC 5280).
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
#: Names of the fleet's own parts, in any spelling.
_TAKEN = {"coordinator", "broker"}


@dataclass(frozen=True)
class Enrolment:
    """One certificate.

    Attributes:
        signing_key: the holder's public Ed25519 key, 32 bytes, or None.
        run: that a device takes part in; empty where that is not known.
    """

    name: str
    role: Role
    serial: int
    issued: float
    expires: float
    signing_key: bytes | None = None
    revoked: float | None = None
    run: str = ""

    def state(self, now: float) -> State:
        """A revoked certificate stays revoked after its end."""
        if self.revoked is not None:
            return "revoked"
        return "active" if now < self.expires else "expired"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the signing key in hex, or nothing where there is no key."""
        return "" if self.signing_key is None else hashlib.sha256(self.signing_key).hexdigest()


@dataclass(frozen=True)
class Order:
    """What an operator wants of the coordinator, which carries each out once for every run.

    Attributes:
        id: 1, 2, 3, ... as the registry numbers them.
        kind: take back what ``device`` contributed to any run, or return ``run`` to ``version``.
    """

    id: int
    at: float
    kind: Literal["revoke", "rollback"]
    device: str = ""
    run: str = ""
    version: int = 0


def device_id(text: str) -> str:
    """``text`` if a device may be called so.

    Raises:
        InputError: it is empty, too long, holds other characters, or names a part of the fleet.
    """
    if _ID.fullmatch(text) is None:
        raise InputError(
            "is no id for a device",
            hint="give 1 to 64 of A-Z a-z 0-9 . _ - that begin with a letter or digit",
            field=repr(text[:80]),
        )
    if text.lower() in _TAKEN:
        raise InputError("is the name of a part of the fleet", hint="give another id", field=text)
    return text


class Registry:
    """The file of all certificates.

    Args:
        make: the file, with mode 0600, if it is not there. A fleet has one: where it is missing or
            empty, nobody would be enrolled, and nobody revoked.

    Raises:
        InputError: it is missing, empty, damaged, no registry, or one of a newer gradsense.
        StorageFull: it cannot be opened for now.
    """

    def __init__(self, file: Path, *, make: bool = False) -> None:
        self._db = Database(file, _SCHEMA, make=make)

    def close(self) -> None:
        """Close the file. Nothing is lost if this is never called."""
        self._db.close()

    # Changes --------------------------------------------------------------------------------

    def add(self, entry: Enrolment) -> None:
        """Add a certificate for a name that has none in force.

        Raises:
            InputError: the name has one, which is not revoked.
        """
        with self._db.transaction() as db:
            if _in_force(db, entry.name):
                raise InputError(
                    "is enrolled",
                    hint=f"gradsense fleet rotate {entry.name} gives it new keys",
                    field=entry.name,
                )
            _insert(db, entry)

    def rotate(self, entry: Enrolment) -> None:
        """Add a certificate and revoke, at its time of issue, the one that it replaces.

        Raises:
            InputError: there is none in force under this name.
        """
        with self._db.transaction() as db:
            if not _in_force(db, entry.name):
                raise InputError(
                    "is not enrolled, or is revoked",
                    hint=f"gradsense fleet enroll {entry.name}",
                    field=entry.name,
                )
            _revoke(db, entry.name, entry.issued)
            _insert(db, entry)

    def revoke(self, device: str, now: float, *, keep: bool = False) -> Enrolment:
        """Revoke a device's certificate; one that is revoked keeps its time.

        Args:
            keep: what the device contributed; False orders it to be taken back.

        Raises:
            InputError: no device of that name was ever enrolled.
        """
        with self._db.transaction() as db:
            _revoke(db, device_id(device), now)
            if not keep:
                _order(db, Order(0, now, "revoke", device))
        found = self.find(device)
        if found is None:
            raise InputError(
                "was never enrolled", hint="gradsense fleet list shows all", field=device
            )
        return found

    def order_rollback(self, run: str, version: int, now: float) -> None:
        """Have the coordinator return a run to an earlier model."""
        with self._db.transaction() as db:
            _order(db, Order(0, now, "rollback", run=run, version=version))

    def deny(self, until: Mapping[str, float]) -> None:
        """Shut these names out until a time each, and nobody else: they have flooded the fleet."""
        with self._db.transaction() as db:
            db.execute("DELETE FROM denied")
            db.executemany("INSERT INTO denied VALUES (?, ?)", until.items())

    # Questions ------------------------------------------------------------------------------

    def _entries(self, rest: str, values: tuple[object, ...] = ()) -> list[Enrolment]:
        rows = self._db.all(f"SELECT {_COLUMNS} FROM certificates {rest}", values)
        return [replace(Enrolment(*row), serial=int(row[2], 16)) for row in rows]

    def find(self, name: str) -> Enrolment | None:
        """The newest certificate of that name."""
        found = self._entries("WHERE name = ? ORDER BY rowid DESC LIMIT 1", (name,))
        return found[0] if found else None

    def members(self) -> list[Enrolment]:
        """The newest certificate of every name, by name."""
        newest = "WHERE rowid IN (SELECT max(rowid) FROM certificates GROUP BY name) ORDER BY name"
        return self._entries(newest)

    def orders(self, after: int = 0) -> list[Order]:
        """The operator's orders behind that id, in order."""
        query = "SELECT id, at, kind, device, run, version FROM orders WHERE id > ? ORDER BY id"
        return [Order(*row) for row in self._db.all(query, (after,))]

    def devices(self) -> dict[str, str]:
        """The devices in force that were enrolled for a run, by name, and the run of each."""
        # In SQL, since every enrolment asks: rows of thousands of members are slow in Python.
        rows = self._db.all(
            "SELECT name, run FROM certificates WHERE run != '' AND revoked IS NULL ORDER BY name"
        )
        return dict(rows)

    def shut_out(self, now: float) -> list[str]:
        """The names whose newest certificate is revoked, or that are denied for now, by name."""
        rows = self._db.all(
            "SELECT name FROM certificates WHERE revoked IS NOT NULL AND rowid IN "
            "(SELECT max(rowid) FROM certificates GROUP BY name) "
            "UNION SELECT name FROM denied WHERE until > ? ORDER BY name",
            (now,),
        )
        return [name for (name,) in rows]

    def revocations(self, role: Role | None = None) -> list[tuple[int, float]]:
        """(serial, time) of every revoked certificate, or of one role's, in the order of issue."""
        only = "role" if role is None else f"'{role}'"
        revoked = self._entries(f"WHERE revoked IS NOT NULL AND role = {only} ORDER BY rowid")
        return [(entry.serial, entry.revoked) for entry in revoked if entry.revoked is not None]

    def signing_key(self, device: str, now: float) -> bytes | None:
        """The key that this device's updates must be signed with, 32 bytes; None: refuse them."""
        entry = self.find(device)
        if entry is None or entry.role != "device" or entry.state(now) != "active":
            return None
        return entry.signing_key


def _order(db: sqlite3.Connection, order: Order) -> None:
    # Numbered by time: a registry restored from a backup must not use the numbers of orders that
    # the journals have and it has not, which would pass for carried out.
    db.execute(
        "INSERT INTO orders (id, at, kind, device, run, version) "
        "SELECT max(coalesce(max(id), 0) + 1, ?), ?, ?, ?, ?, ? FROM orders",
        (int(order.at * 1000), order.at, order.kind, order.device, order.run, order.version),
    )


def _in_force(db: sqlite3.Connection, name: str) -> bool:
    query = "SELECT 1 FROM certificates WHERE name = ? AND revoked IS NULL"
    return db.execute(query, (name,)).fetchone() is not None


def _revoke(db: sqlite3.Connection, name: str, now: float) -> None:
    db.execute(
        "UPDATE certificates SET revoked = ? WHERE name = ? AND revoked IS NULL", (now, name)
    )


def _insert(db: sqlite3.Connection, entry: Enrolment) -> None:
    db.execute(
        f"INSERT INTO certificates ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(entry.name, entry.role, f"{entry.serial:040x}", entry.issued, entry.expires),
            *(entry.signing_key, entry.revoked, entry.run),
        ),
    )
