"""What a run costs: arithmetic, bytes, seconds, joules, and a mark for every upload."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Arithmetic in FLOP.

    Attributes:
        training, inference: of one flow (6 N and 2 N a token: Kaplan et al. 2020, §2.1).
        width: of a flow's row [x; y], where sites send moments.
    """

    training: float
    inference: float
    width: int = 0

    def observing(self, rows: float) -> float:
        """Moments of so many distinct flows: a forward pass each, and one thin SVD.

        The SVD of a matrix m × n, m ≥ n, takes 6 m n² + 20 n³ FLOP with both factors of the
        thin form (R-SVD: Golub and Van Loan 2013, §8.6.3).
        """
        long, short = max(rows, self.width), min(rows, self.width)
        return rows * self.inference + 6 * long * short**2 + 20 * short**3


@dataclass
class Meter:
    """What a run has cost so far. Bytes, seconds of virtual time, joules, counts."""

    uplink_bytes: int = 0
    downlink_bytes: int = 0
    uploads: int = 0
    aggregations: int = 0
    visits: int = 0
    samples_trained: int = 0
    energy_j: float = 0.0
    dropped_out: int = 0
    unheard: int = 0  # updates still pooled when the run ended


@dataclass(frozen=True)
class Upload:
    """One mark on the time line."""

    virtual_s: float
    client: str
    reason: str
    bytes: int
    aggregation: int
    layers: int
