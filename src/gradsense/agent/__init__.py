"""The training agent of a device: what it remembers, what it sends, what it takes."""

from typing import TYPE_CHECKING

from gradsense.exports import export

if TYPE_CHECKING:
    from gradsense.agent.agent import Agent, AgentPlan
    from gradsense.agent.limits import ResourceLimits
else:
    export(__name__)

__all__ = ["Agent", "AgentPlan", "ResourceLimits"]
