"""Who belongs to a fleet: certificates, registry, broker configuration, device bundles, jobs."""

from gradsense.exports import TYPE_CHECKING, export

__all__ = ["Enrolment", "Fleet", "Job", "Registry"]
export(__name__)
if TYPE_CHECKING:
    from gradsense.fleet.enrolment import Fleet
    from gradsense.fleet.jobs import Job
    from gradsense.fleet.registry import Enrolment, Registry
