"""The alert: what a gateway reports about many flows of one kind from one device."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from gradsense.tasks import task

State = Literal["open", "update", "closed"]
Severity = task.Severity

#: The label of flows that resemble nothing the model was trained on.
NOVEL = "Novel"

#: Names of the techniques of MITRE ATT&CK for Enterprise, version 14, that tasks refer to.
TECHNIQUES: dict[str, str] = {
    "T1046": "Network Service Discovery",
    "T1071": "Application Layer Protocol",
    "T1105": "Ingress Tool Transfer",
    "T1210": "Exploitation of Remote Services",
    "T1498": "Network Denial of Service",
    "T1584": "Compromise Infrastructure",
}

#: In rising order; formats number them by place.
SEVERITIES: tuple[Severity, ...] = ("info", "low", "medium", "high", "critical")


class Example(BaseModel):
    """One flow of an alert, the first: enough to find it in the log."""

    model_config = ConfigDict(frozen=True)

    log: str
    line: int
    uid: str | None
    ts: float
    orig_h: str
    orig_p: int | None
    resp_h: str
    resp_p: int | None
    proto: str | None
    service: str | None


class Alert(BaseModel):
    """The state of one alert now. Every message about the same alert has the same ``id``.

    Args:
        id: 16 hex digits, the same after a restart.
        state: ``open`` is sent at the first flow, ``update`` as it grows, ``closed`` at its end.
        revision: 0 for ``open``, then rising with every message about this alert.
        sensor: the gateway's name.
        device: address of the device that it is about.
        label: the model's class, or ``Novel``.
        title, sentence, advice: text for people: a headline, what happened, what to do.
        first_ts, last_ts: of the flows, seconds since the epoch.
        flows: how many, so far.
        peers: distinct addresses at the other end; a lower bound once there are 256.
        ports: (responder port, flows), most frequent first, at most five.
        probability: of the label, the highest of its flows.
        novelty: the highest novelty score of its flows, if the model has one.
        why: the reasons for the verdict on the first flow, in words, the weightiest first.
        model: ``Manifest.id`` of the bundle.
        example: the first flow.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    state: State
    revision: int = Field(ge=0)
    sensor: str
    device: str
    label: str
    severity: Severity
    title: str
    sentence: str
    advice: str
    technique: str | None  # MITRE ATT&CK, such as T1498
    first_ts: float
    last_ts: float
    flows: int = Field(ge=1)
    peers: int = Field(ge=1)
    ports: tuple[tuple[int, int], ...]
    probability: float
    novelty: float | None
    why: tuple[str, ...]
    model: str
    example: Example

    @property
    def key(self) -> str:
        """Identifies this message: the same whenever it is sent again."""
        return f"{self.id}-{self.revision}"
