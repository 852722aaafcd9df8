"""Which end is the device."""

from __future__ import annotations

from ipaddress import ip_network

import polars as pl
import pytest

from gradsense.data.networks import Networks


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
    assert Networks().is_local(address) is local


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
    assert Networks().device(orig, resp) == device
    assert {device, Networks().peer(orig, resp)} == {orig, resp}


def test_a_campus_with_public_addresses_says_what_is_its_own() -> None:
    campus = Networks([ip_network("147.32.0.0/16"), ip_network("2001:718::/32")])
    assert campus.is_local("147.32.80.9")
    assert campus.is_local("2001:718::1")
    assert not campus.is_local("147.33.0.1")
    assert campus.device("8.8.8.8", "147.32.80.9") == "147.32.80.9"
    rows = [
        {"orig_h": "147.32.80.9", "resp_h": "8.8.8.8", "line": 1},
        {"orig_h": "2001:718::1", "resp_h": "192.168.1.2", "line": 2},
        {"orig_h": None, "resp_h": "no address", "line": 3},
    ]
    expected = [
        {"orig_h": "10.0.0.1", "resp_h": "8.8.8.8", "line": 1},
        {"orig_h": "fd00::1", "resp_h": "192.168.1.2", "line": 2},
        {"orig_h": None, "resp_h": "no address", "line": 3},
    ]
    assert campus.mask(rows) == expected
    framed = campus.mask(pl.DataFrame(rows))
    assert isinstance(framed, pl.DataFrame)
    assert framed.to_dicts() == expected
    assert Networks().mask(rows) is rows
