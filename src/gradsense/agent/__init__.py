"""A device's learning half: labels flows, trains, uploads updates, adopts global models."""

from gradsense.exports import TYPE_CHECKING, export

__all__ = ["Agent", "AgentPlan", "ResourceLimits"]
export(__name__)
if TYPE_CHECKING:
    from gradsense.agent.agent import Agent
    from gradsense.agent.limits import ResourceLimits
    from gradsense.agent.plan import AgentPlan
