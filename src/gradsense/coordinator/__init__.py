"""The coordinator's process: its runs, their journals and snapshots, their status."""

from typing import TYPE_CHECKING

from gradsense.exports import export

if TYPE_CHECKING:
    from gradsense.coordinator.opening import open_run, write_newest
    from gradsense.coordinator.run import Run
    from gradsense.coordinator.service import CoordinatorService
else:
    export(__name__)

__all__ = ["CoordinatorService", "Run", "open_run", "write_newest"]
