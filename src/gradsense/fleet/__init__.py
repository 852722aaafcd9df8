"""Who belongs to a fleet: certificates, registry, broker configuration, device bundles, jobs."""

from typing import TYPE_CHECKING

from gradsense.exports import export

if TYPE_CHECKING:
    from gradsense.fleet.enrolment import Fleet
    from gradsense.fleet.jobs import Job
    from gradsense.fleet.registry import Enrolment, Registry
else:
    export(__name__)

__all__ = ["Enrolment", "Fleet", "Job", "Registry"]
