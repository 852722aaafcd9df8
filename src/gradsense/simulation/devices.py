"""Device profiles: how fast a site computes and sends, and what that and a run cost.

Compute is the rate a small model really trains at: a measured or computed peak times a
utilisation. The peaks have sources; the utilisations are our assumption, and are stated so that
they can be argued with. Power is what the board draws above idle, because a gateway is switched
on anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradsense.errors import InputError


@dataclass(frozen=True)
class DeviceProfile:
    """One kind of device.

    Attributes:
        name: the profile's name.
        flops: training arithmetic a second, in FLOP/s, utilisation included.
        uplink_bps, downlink_bps: bits a second.
        latency_s: one way, in seconds.
        compute_w: drawn above idle while computing, in watts.
        radio_w: drawn above idle while sending or receiving, in watts.
        source: where the figures come from.

    >>> round(PROFILES["pi4"].upload_s(1_000_000), 3)
    0.42
    """

    name: str
    flops: float
    uplink_bps: float
    downlink_bps: float
    latency_s: float
    compute_w: float
    radio_w: float
    source: str

    def compute_s(self, flop: float) -> float:
        """Seconds for this much arithmetic."""
        return flop / self.flops

    def upload_s(self, size: int) -> float:
        """Seconds until ``size`` bytes have arrived in the cloud."""
        return self.latency_s + 8 * size / self.uplink_bps

    def download_s(self, size: int) -> float:
        """Seconds until ``size`` bytes from the cloud have arrived."""
        return self.latency_s + 8 * size / self.downlink_bps


_PROFILES = (
    DeviceProfile(
        "pi4",
        flops=16e9 * 0.25,
        uplink_bps=20e6,
        downlink_bps=50e6,
        latency_s=0.02,
        compute_w=4.2,
        radio_w=0.7,
        source=(
            "Raspberry Pi 4 B. HPL 8 GFLOP/s in double precision (Feiereisen 2022), so 16 in "
            "single, at 25 % utilisation. 3.4 W idle, 7.6 W under load (Halfacree 2019). "
            "Home broadband over Wi-Fi, assumed."
        ),
    ),
    DeviceProfile(
        "jetson-nano",
        flops=236e9 * 0.10,
        uplink_bps=50e6,
        downlink_bps=100e6,
        latency_s=0.01,
        compute_w=8.0,
        radio_w=0.5,
        source=(
            "NVIDIA Jetson Nano module data sheet: 472 GFLOP/s in half precision, 236 in single, "
            "at 10 % utilisation (small batches), 10 W mode less about 2 W idle. Ethernet to "
            "fibre, assumed."
        ),
    ),
    DeviceProfile(
        "gateway",
        flops=186e9 * 0.25,
        uplink_bps=100e6,
        downlink_bps=100e6,
        latency_s=0.005,
        compute_w=10.0,
        radio_w=0.5,
        source=(
            "Industrial gateway with an Intel N100: 4 Gracemont cores × 2.9 GHz × 16 "
            "single-precision FLOP a cycle = 186 GFLOP/s, at 25 % utilisation; 15 W package "
            "limit as commonly shipped, about 5 W idle. Leased line, assumed."
        ),
    ),
    DeviceProfile(
        "lte-node",
        flops=32e9 * 0.10,
        uplink_bps=1e6,
        downlink_bps=1e6,
        latency_s=0.1,
        compute_w=2.3,
        radio_w=1.5,
        source=(
            "Raspberry Pi Zero 2 W: 4 Cortex-A53 cores × 1.0 GHz × 8 single-precision FLOP a "
            "cycle = 32 GFLOP/s, at 10 % utilisation; 0.7 W idle, 3 W under load. LTE Cat-M1: "
            "1 Mbit/s each way (3GPP TS 36.306), modem power assumed."
        ),
    ),
)

#: Every profile by name.
PROFILES: dict[str, DeviceProfile] = {device.name: device for device in _PROFILES}

#: Named fleets: the profiles in proportion.
MIXES: dict[str, tuple[str, ...]] = {
    "mixed": ("pi4", "jetson-nano", "gateway", "pi4", "lte-node"),
    **{name: (name,) for name in PROFILES},
}


def assign(clients: list[str], mix: str, *, seed: int) -> dict[str, DeviceProfile]:
    """Give each client a device: the mix dealt out in turn over a seeded order of the clients.

    Raises:
        InputError: an unknown mix.
    """
    if mix not in MIXES:
        raise InputError(f"unknown devices '{mix}'", hint=f"choose from {', '.join(MIXES)}")
    kinds = MIXES[mix]
    order = np.random.default_rng([seed, 1]).permutation(len(clients))
    dealt = {clients[i]: PROFILES[kinds[turn % len(kinds)]] for turn, i in enumerate(order)}
    return {client: dealt[client] for client in clients}


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
