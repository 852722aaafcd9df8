"""What a run costs: bytes, seconds, joules, and a mark for every upload."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Meter:
    """What a run has cost so far. Bytes, seconds of virtual time, joules, counts."""

    uplink_bytes: int = 0
    downlink_bytes: int = 0
    uploads: int = 0
    aggregations: int = 0
    local_rounds: int = 0
    samples_trained: int = 0
    energy_j: float = 0.0
    dropped_out: int = 0
    left_pooled: int = 0  # updates still pooled when the run ended


@dataclass(frozen=True)
class Upload:
    """One mark on the time line."""

    virtual_s: float
    client: str
    reason: str
    bytes: int
    aggregation: int
    layers: int
