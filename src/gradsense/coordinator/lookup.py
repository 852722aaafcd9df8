"""Questions to a run's journal from other processes, without the coordinator's lock.

All raise ``InputError`` where the journal is damaged or was not made completely, and
``StorageFull`` where it cannot be read for now.
"""

from __future__ import annotations

import json
from pathlib import Path

from gradsense.coordinator.journal import FILE, SCHEMA, contribution_of, incomplete
from gradsense.coordinator.snapshots import Snapshots
from gradsense.federation.contributions import Contribution
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


def contributions(folder: Path) -> list[Contribution]:
    """What the devices have contributed to a run's sum."""
    rows = _rows(folder, "SELECT updates, records, tensors FROM contributions ORDER BY device")
    return [contribution_of(row) for row in rows]


def kept_versions(folder: Path) -> list[int]:
    """The models that a run can return to, in order."""
    rows = _rows(folder, "SELECT version FROM models WHERE file IS NOT NULL ORDER BY version")
    return [version for (version,) in rows]


def snapshot_files(folder: Path) -> list[str]:
    """Names of the snapshots that a run's journal needs."""
    rows = _rows(folder, "SELECT file FROM models WHERE file IS NOT NULL ORDER BY version")
    return [name for (name,) in rows]


def touched_by(folder: Path, device: str) -> list[int]:
    """The models into which updates of this device went, in order."""
    rows = _rows(folder, "SELECT version, contributors FROM models ORDER BY version")
    return [version for version, names in rows if device in json.loads(names)]


def _rows(folder: Path, query: str) -> Rows:
    if (folder / FILE).is_file() and not (folder / FILE).stat().st_size:
        raise incomplete(folder)
    return read_only(folder / FILE, SCHEMA, query)
