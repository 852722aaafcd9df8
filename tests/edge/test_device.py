"""Which end is the device."""

from __future__ import annotations

import pytest

from gradsense.edge.device import device_of, is_local, peer_of


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("192.168.1.2", True),
        ("172.31.0.1", True),
        ("100.64.3.4", True),
        ("169.254.1.1", True),
        ("fd12::1", True),
        ("fe80::1", True),
        ("8.8.8.8", False),
        ("2606:4700::1", False),
        ("239.255.255.250", False),
        ("0.0.0.0", False),
        ("host.example", False),
        (None, False),
    ],
)
def test_local_addresses(address: str | None, local: bool) -> None:
    assert is_local(address) is local


@pytest.mark.parametrize(
    ("orig", "resp", "device"),
    [
        ("192.168.1.2", "8.8.8.8", "192.168.1.2"),
        ("8.8.8.8", "192.168.1.2", "192.168.1.2"),
        ("192.168.1.2", "192.168.1.3", "192.168.1.2"),
        ("8.8.8.8", "1.1.1.1", "8.8.8.8"),
    ],
)
def test_the_device_is_the_local_end(orig: str, resp: str, device: str) -> None:
    assert device_of(orig, resp) == device
    assert {device, peer_of(orig, resp)} == {orig, resp}
