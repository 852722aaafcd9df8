"""The alert: what a gateway reports about many flows of one kind from one device."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

State = Literal["open", "update", "closed"]
Severity = Literal["info", "low", "medium", "high", "critical"]

#: In rising order; formats number them by place.
SEVERITIES: tuple[Severity, ...] = ("info", "low", "medium", "high", "critical")

#: The last second that ``datetime`` can express. A broken log may hold a later one, and an alert
#: about it must still be sent.
_LAST_SECOND = 253_402_300_799.0


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


def milliseconds(ts: float) -> int:
    """Whole milliseconds since the epoch of a log's time in seconds."""
    return round(min(max(ts, 0.0), _LAST_SECOND) * 1000)


def iso(ts: float) -> str:
    """For example ``2018-12-21T15:50:14.182Z`` (ISO 8601 and RFC 3339)."""
    seconds, rest = divmod(milliseconds(ts), 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"
