"""What devices have contributed to a run's sum: read from its journal, changed with its next entry.

A thousand devices' would not fit into memory, and an aggregation needs those of its pool only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from gradsense.coordinator.lookup import ContributionsIn, contribution
from gradsense.federation.contributions import Contribution, MutableContributions


class Contributed(MutableContributions):
    """Device to contribution, with the changes of the step that is being taken.

    Args:
        folder: the run's, whose journal is there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._changed: dict[str, Contribution | None] = {}
        self._records = dict(ContributionsIn(folder).records)

    @property
    def records(self) -> Mapping[str, float]:
        return self._records

    def __getitem__(self, device: str) -> Contribution:
        if device not in self._records:
            raise KeyError(device)
        return self._changed.get(device) or contribution(self._folder, device)

    def __setitem__(self, device: str, own: Contribution) -> None:
        self._records[device] = own.records
        self._changed[device] = own

    def __delitem__(self, device: str) -> None:
        del self._records[device]
        self._changed[device] = None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._records))

    def __len__(self) -> int:
        return len(self._records)

    def flush(self) -> dict[str, Contribution | None]:
        """What changed since the last call; None: taken back."""
        changed, self._changed = self._changed, {}
        return changed
