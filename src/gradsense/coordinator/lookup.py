"""Questions to a run's journal from other processes, without the coordinator's lock.

All raise ``InputError`` where the journal is damaged or was not made completely, and
``StorageFull`` where it cannot be read for now.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from gradsense.coordinator.journal import FILE, SCHEMA, contribution_of, incomplete
from gradsense.coordinator.snapshots import Snapshots
from gradsense.errors import InputError
from gradsense.federation.contributions import Contribution, Contributions
from gradsense.learning.learner import Array
from gradsense.storage.sqlite import Rows, read_only


def newest_snapshot(folder: Path) -> tuple[int, dict[str, dict[str, Array]]]:
    """Version and groups of a run's newest snapshot.

    Raises:
        InputError: also if the snapshot is damaged.
    """
    query = "SELECT version, file, file_sha256 FROM models ORDER BY version DESC LIMIT 1"
    rows = _rows(folder, query)
    if not rows:
        raise incomplete(folder)
    version, file, sha256 = rows[0]
    return version, Snapshots(folder).load(file, sha256)


def contribution(folder: Path, device: str) -> Contribution:
    """What a device has contributed to the run's sum.

    Raises:
        InputError: nothing, or nothing any more.
    """
    query = "SELECT updates, records, tensors FROM contributions WHERE device = ?"
    rows = _rows(folder, query, (device,))
    if not rows:
        raise InputError("contributes nothing any more", hint="ask again", field=device)
    return contribution_of(rows[0])


class ContributionsIn(Contributions):
    """Device to what it has contributed to the sum of the run in a folder.

    One is read when it is asked for: a thousand would not fit into memory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        query = "SELECT device, records FROM contributions ORDER BY device"
        self._records: dict[str, float] = dict(_rows(folder, query))

    @property
    def records(self) -> Mapping[str, float]:
        return self._records

    def __getitem__(self, device: str) -> Contribution:
        """As the journal has it now.

        Raises:
            InputError: also if it was taken back meanwhile.
        """
        if device not in self._records:
            raise KeyError(device)
        return contribution(self._folder, device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)


def kept_versions(folder: Path) -> list[int]:
    """The models that a run can return to, in order."""
    rows = _rows(folder, "SELECT version FROM models WHERE file IS NOT NULL ORDER BY version")
    return [version for (version,) in rows]


def touched_by(folder: Path, device: str) -> list[int]:
    """The models into which updates of this device went, in order."""
    rows = _rows(folder, "SELECT version, contributors FROM models ORDER BY version")
    return [version for version, names in rows if device in json.loads(names)]


def _rows(folder: Path, query: str, values: tuple[str, ...] = ()) -> Rows:
    if (folder / FILE).is_file() and not (folder / FILE).stat().st_size:
        raise incomplete(folder)
    return read_only(folder / FILE, SCHEMA, query, values)
