from __future__ import annotations

from collections import Counter

import pytest

from gradsense.errors import InputError
from gradsense.simulation.devices import MIXES, DeviceProfile, assign

DEVICE = DeviceProfile("toy", 2e9, 8e6, 16e6, 0.5, 4.0, 1.0, "made up")


def test_times_by_hand() -> None:
    assert DEVICE.compute_s(1e9) == 0.5
    # A megabyte is 8 Mbit: a second up, half a second down, and half a second of latency.
    assert DEVICE.upload_s(1_000_000) == 1.5
    assert DEVICE.download_s(1_000_000) == 1.0
    assert DEVICE.upload_s(0) == DEVICE.latency_s


def test_mix_is_dealt_out_in_proportion_and_by_seed() -> None:
    names = [f"c{i}" for i in range(20)]
    dealt = assign(names, "mixed", seed=0)
    assert list(dealt) == names
    counts = Counter(device.name for device in dealt.values())
    assert counts == {"pi4": 8, "jetson-nano": 4, "gateway": 4, "lte-node": 4}
    assert dealt == assign(names, "mixed", seed=0)
    assert dealt != assign(names, "mixed", seed=1)
    assert {device.name for device in assign(names, "pi4", seed=0).values()} == {"pi4"}


def test_unknown_mix_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="abacus") as caught:
        assign(["a"], "abacus", seed=0)
    assert all(name in str(caught.value) for name in MIXES)
