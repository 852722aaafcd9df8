"""What a link saw: numbers, and troubles counted by name and told once."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from gradsense.transport.connection_errors import ConnectionFailure

_log = logging.getLogger(__name__)

#: After a connection that held for so long, troubles are told anew.
_CALM_S = 60.0


@dataclass(frozen=True)
class Counts:
    """What a link saw since it was made.

    Attributes:
        connects, disconnects: connections that were opened, and those of them that broke.
        sent, received: messages. A message that was sent may have been lost.
        bytes_sent, bytes_received: of topics, properties and payloads.
        refused: why the broker could not be reached or said no, by name.
        faults: errors of the functions that the link called, by class.
    """

    connects: int = 0
    disconnects: int = 0
    sent: int = 0
    received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    faults: Mapping[str, int] = field(default_factory=dict)


class LinkLog:
    """Counts, for threads that do not wait for each other; nothing else is called under its lock.

    Args:
        who: begins each line of the log.
    """

    def __init__(self, who: str) -> None:
        self._who, self._lock = who, threading.Lock()
        self._numbers: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._told: set[str] = set()

    @property
    def counts(self) -> Counts:
        """A copy."""
        with self._lock:
            return Counts(**self._numbers, refused=dict(self._refused), faults=dict(self._faults))

    def add(self, **numbers: int) -> None:
        """Add to fields of ``Counts``."""
        with self._lock:
            self._numbers.update(numbers)

    def held(self, seconds: float) -> None:
        """A connection ended that had held for so long."""
        if seconds >= _CALM_S:
            self._told.clear()

    def refused(self, trouble: ConnectionFailure) -> None:
        """The broker said no or could not be reached. Told once until a connection held well."""
        with self._lock:
            self._refused[trouble.name] += 1
        if trouble.name not in self._told:
            self._told.add(trouble.name)
            _log.warning("%s: %s; %s", self._who, trouble.text, trouble.hint)

    def fault(self, error: Exception) -> None:
        """A function that the link called ended with an error. Told once for each class."""
        name = type(error).__name__
        with self._lock:
            self._faults[name] += 1
            first = self._faults[name] == 1
        if first:
            _log.warning("%s: %s in the link", self._who, name, exc_info=error)
