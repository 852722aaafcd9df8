"""The coordinator's process: its runs, their journals and snapshots, their status."""

from gradsense.exports import TYPE_CHECKING, export

__all__ = ["CoordinatorService", "Run", "open_run", "write_newest"]
export(__name__)
if TYPE_CHECKING:
    from gradsense.coordinator.closing import write_newest
    from gradsense.coordinator.opening import open_run
    from gradsense.coordinator.run import Run
    from gradsense.coordinator.service import CoordinatorService
