"""Which addresses are local: by the standards, and by the networks that an operator names."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache

import polars as pl

from gradsense.data.flows import Flows, column

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
#: Private (RFC 1918, 4193), of a carrier (RFC 6598), link-local and loopback.
_LOCAL: tuple[Network, ...] = tuple(
    ipaddress.ip_network(one)
    for one in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"),
        *("169.254.0.0/16", "127.0.0.0/8", "fc00::/7", "fe80::/10", "::1/128"),
    )
)
_STAND_IN = {4: "10.0.0.1", 6: "fd00::1"}
_REMEMBERED = 65_536


class Networks:
    """The operator's own networks.

    Private and link-local addresses are local everywhere. An office or a campus that gives its
    devices public addresses must name these networks: otherwise the device of a flow cannot be
    told from its peer, and every prompt reads as traffic between two public hosts.

    Args:
        own: networks with public addresses that are the operator's.

    >>> office = Networks([ipaddress.ip_network("203.0.113.0/24")])
    >>> office.device("198.51.100.9", "203.0.113.5")
    '203.0.113.5'
    """

    def __init__(self, own: Sequence[Network] = ()) -> None:
        self.own = tuple(own)
        # Devices speak to the same few hosts again and again.
        self.is_local = lru_cache(_REMEMBERED)(self._is_local)
        self._masked = lru_cache(_REMEMBERED)(self._stand_in)

    def device(self, orig_h: str, resp_h: str) -> str:
        """The local end of a flow; the originator where both ends are local, or none is."""
        return resp_h if self.is_local(resp_h) and not self.is_local(orig_h) else orig_h

    def peer(self, orig_h: str, resp_h: str) -> str:
        """The other end."""
        return orig_h if self.device(orig_h, resp_h) == resp_h else resp_h

    def mask(self, flows: Flows) -> Flows:
        """The same flows with private addresses in place of the own networks' public ones.

        For prompts only, which hold nothing of an address but its kind.
        """
        if not self.own:
            return flows
        if isinstance(flows, pl.DataFrame):
            ends = pl.concat([flows["orig_h"], flows["resp_h"]]).unique().drop_nulls()
            table = {end: self._masked(end) for end in ends if self._masked(end) != end}
            return flows.with_columns(pl.col("orig_h", "resp_h").replace(table))
        return [
            {**flow, "orig_h": self._masked(flow["orig_h"]), "resp_h": self._masked(flow["resp_h"])}
            for flow in flows
        ]

    def _is_local(self, address: str | None) -> bool:
        # Not the library's is_private, which takes in whatever is not routed globally.
        one = _parsed(address)
        return one is not None and (any(one in net for net in _LOCAL) or self._is_own(one))

    def _is_own(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        return any(address in network for network in self.own)

    def _stand_in(self, address: str | None) -> str | None:
        one = _parsed(address)
        return _STAND_IN[one.version] if one is not None and self._is_own(one) else address


def devices(flows: Flows, networks: Networks) -> list[str]:
    """The device of each flow; see ``Networks.device``."""
    return list(map(networks.device, column(flows, "orig_h"), column(flows, "resp_h")))


def _parsed(address: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(address or "")
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Whether a host's name or address means this machine."""
    one = _parsed(host)
    return host == "localhost" if one is None else one.is_loopback
