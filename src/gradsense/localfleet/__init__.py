"""A whole fleet on one machine: broker, coordinator and devices as real processes."""

from gradsense.exports import TYPE_CHECKING, export

__all__ = ["LocalFleet"]
export(__name__)
if TYPE_CHECKING:
    from gradsense.localfleet.local_fleet import LocalFleet
