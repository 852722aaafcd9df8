"""What devices have contributed to a run's sum: read from its journal, changed with its next entry.

A thousand devices' would not fit into memory, and an aggregation needs those of its pool only.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping

from gradsense.coordinator.journal import RunJournal
from gradsense.federation.contributions import Contribution


class Contributed(MutableMapping[str, Contribution]):
    """Device to contribution, with the changes of the step that is being taken.

    Attributes:
        records: that each device's is of.
    """

    def __init__(self, journal: RunJournal) -> None:
        self._journal = journal
        self._changed: dict[str, Contribution | None] = {}
        self.records = journal.contributors()

    def __getitem__(self, device: str) -> Contribution:
        if device not in self.records:
            raise KeyError(device)
        found = self._changed.get(device) or self._journal.contribution(device)
        if found is None:
            raise KeyError(device)
        return found

    def __setitem__(self, device: str, own: Contribution) -> None:
        self.records[device] = own.records
        self._changed[device] = own

    def __delitem__(self, device: str) -> None:
        del self.records[device]
        self._changed[device] = None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.records))

    def __len__(self) -> int:
        return len(self.records)

    def flush(self) -> dict[str, Contribution | None]:
        """What changed since the last call; None: taken back."""
        changed, self._changed = self._changed, {}
        return changed
