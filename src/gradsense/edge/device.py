"""Which end of a flow is the device that an alert is about."""

from __future__ import annotations

import ipaddress
from functools import lru_cache


@lru_cache(maxsize=65_536)
def is_local(address: str | None) -> bool:
    """Whether an address belongs to a local network (RFC 1918, 4193, 6598, link-local)."""
    try:
        one = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    # Shared space of a carrier (RFC 6598) is neither private nor global in the library's words.
    local = one.is_private or one.is_link_local or not (one.is_global or one.is_multicast)
    return local and not one.is_unspecified


def device_of(orig_h: str, resp_h: str) -> str:
    """The local end; the originator where both ends are local, or none is."""
    return resp_h if is_local(resp_h) and not is_local(orig_h) else orig_h


def peer_of(orig_h: str, resp_h: str) -> str:
    """The other end."""
    return orig_h if device_of(orig_h, resp_h) == resp_h else resp_h
