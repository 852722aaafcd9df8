"""A whole fleet on one machine: broker, coordinator and devices as real processes."""

from typing import TYPE_CHECKING

from gradsense.exports import export

if TYPE_CHECKING:
    from gradsense.localfleet.local_fleet import LocalFleet
else:
    export(__name__)

__all__ = ["LocalFleet"]
