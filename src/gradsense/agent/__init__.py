"""A device's learning half: labels flows, trains, uploads updates, adopts global models."""

from typing import TYPE_CHECKING

from gradsense.exports import export

if TYPE_CHECKING:
    from gradsense.agent.agent import Agent, AgentPlan
    from gradsense.agent.limits import ResourceLimits
else:
    export(__name__)

__all__ = ["Agent", "AgentPlan", "ResourceLimits"]
