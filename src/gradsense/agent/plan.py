"""What a training agent works with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gradsense.agent.label_rules import LabelRules
from gradsense.agent.limits import ResourceLimits
from gradsense.data.networks import Networks


@dataclass(frozen=True)
class AgentPlan:
    """What an agent works with.

    Args:
        bundle: of ``fleet enroll``: device/ and run/.
        logs: files or folders to learn from.
        state: folder for what must survive.
        rules: labels by rule.
        journal: state folder of the watch, for the operator's feedback.
        networks: the operator's own.
        limits: of CPU, memory and temperature.
        settle_s: seconds that labelled flows wait for more before they are a batch.
        uplink, downlink: bytes a second; None for no cap.
        keepalive_s: silence after which the broker is asked whether it is there.
    """

    bundle: Path
    logs: Sequence[Path]
    state: Path
    rules: LabelRules | None = None
    journal: Path | None = None
    networks: Networks = field(default_factory=Networks)
    limits: ResourceLimits = field(default_factory=ResourceLimits)
    settle_s: float = 60.0
    uplink: float | None = None
    downlink: float | None = None
    keepalive_s: int = 15
