"""Enrolled devices attack a live coordinator, a little; ``benchmarks.fleet.hostile`` does it long.

python -m benchmarks.fleet.hostile --messages 100000
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.fleet import hostile
from tests.support import mosquitto

#: The benchmark's own figures are 512 MB at most and a second; time is not looked at here.
MOST_MB = 512


@pytest.mark.broker
@pytest.mark.slow
def test_a_coordinator_outlives_every_kind_of_attack(tmp_path: Path) -> None:
    mosquitto.program()
    found = hostile.play(tmp_path, 300, attackers=2, pause_s=0.1)
    assert not found["crashed"]
    assert 0 < found["peak_mb"] < MOST_MB
    assert len(found["phases"]) == 8
    trips = [*found["before"], *(one for _, trips in found["phases"] for one in trips)]
    assert len(found["before"]) > 0
    assert all(math.isfinite(one) for one in trips), "the honest device was always answered"
    # Each by its name: bombs, half uploads and their like, and what is not even verified.
    assert found["refused"].keys() >= {"wrong-codec", "too-large", "bad-properties"}
    assert found["turned_away"].keys() == {"d1", "d2"}
    for names in found["turned_away"].values():
        assert names["retained"] > 0
        assert names["qos-0"] > 0
