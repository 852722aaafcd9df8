"""The words of flows: protocols, services, states, ports, kinds of address, Zeek's history."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

import polars as pl

from gradsense.tasks.fields import Field, Record

PROTOCOLS = ("tcp", "udp", "icmp")
#: The first of these that is in a set of several stands for the set, so the more informative
#: protocol goes first.
SERVICES = (
    *("irc", "ssh", "mqtt", "http", "dns", "dhcp", "ntp", "ftp-data", "ftp", "smtp", "pop3"),
    *("imap", "telnet", "tftp", "rdp", "rfb", "smb", "dce_rpc", "ldap", "krb", "krb_tcp", "ntlm"),
    *("gssapi", "mysql", "postgresql", "redis", "modbus", "dnp3", "snmp", "sip", "socks", "syslog"),
    *("radius", "upnp", "ssdp", "quic", "wireguard", "stun", "xmpp", "dtls", "ssl"),
)
#: Zeek's conn_state and what it means.
STATES = {
    "S0": "got no answer",
    "S1": "was opened and not closed",
    "SF": "was opened and closed normally",
    "REJ": "was rejected",
    "S2": "was closed by the sender only",
    "S3": "was closed by the receiver only",
    "RSTO": "was reset by the sender",
    "RSTR": "was reset by the receiver",
    "RSTOS0": "got no answer and was reset",
    "RSTRH": "was answered and then reset",
    "SH": "was half opened by the sender",
    "SHR": "was half opened by the receiver",
    "OTH": "was seen midstream",
}

#: Ports that a word of their own pays for: common services of IoT devices and of their attackers
#: (telnet, HTTP and its alternatives, MQTT, UPnP, ADB, TR-069, IRC, Realtek and Huawei routers),
#: and ICMP types, which Zeek writes in the place of ports.
KNOWN_PORTS = (
    *(0, 1, 3, 8, 13, 20, 21, 22, 23, 25, 53, 67, 68, 69, 80, 81, 88, 110, 111, 123),
    *(134, 135, 136, 137, 138, 139, 143, 161, 443, 445, 502, 514, 546, 547, 554, 587, 631, 993),
    *(1080, 1433, 1723, 1883, 1900, 2222, 2323, 3128, 3306, 3389, 3478, 3702, 4444),
    *(5000, 5060, 5351, 5353, 5355, 5431, 5432, 5555, 5683, 5684, 5900, 6379, 6667, 6668, 6697),
    *(7547, 8000, 8008, 8009, 8080, 8081, 8088, 8181, 8291, 8443, 8554, 8883, 8888, 9000, 9999),
    *(10001, 27015, 37215, 37777, 48101, 49152, 52869),
)
#: Port ranges (IANA, with the registered one cut where Linux begins to hand out source ports).
PORT_RANGES = {0: "system", 1024: "registered", 32_768: "ephemeral", 49_152: "dynamic"}


def port(
    name: str, column: str, known: Iterable[int], phrase: Callable[[str], str], missing: str
) -> Field:
    """A field over a port: its number where it is known, else the name of its range."""
    numbers = sorted(known)
    phrases = tuple(phrase(str(number)) for number in numbers)
    ranges = tuple(phrase(text) for text in PORT_RANGES.values())
    value = pl.col(column)
    bounds = pl.Series(list(PORT_RANGES)[1:], dtype=pl.Int64)
    in_range = len(numbers) + pl.lit(bounds).search_sorted(value.fill_null(0), side="right")
    exact = value.replace_strict(numbers, list(range(len(numbers))), default=None)
    index = (
        pl.when(value.is_null())
        .then(len(numbers) + len(ranges))
        .otherwise(pl.coalesce(exact.cast(pl.Int64), in_range.cast(pl.Int64)))
    )
    places, lower = {number: place for place, number in enumerate(numbers)}, bounds.to_list()

    def pick(row: Record) -> int:
        one: int | None = row[column]
        if one is None:
            return len(numbers) + len(ranges)
        exact = places.get(one)
        return len(numbers) + bisect_right(lower, one) if exact is None else exact

    return Field(name, (*phrases, *ranges, missing), index, pick)


#: Kinds of address: which end may have them. Whatever else stands there reads ``other``.
ORIG_KINDS = ("priv", "pub", "link", "zero", "other")
RESP_KINDS = ("priv", "pub", "link", "zero", "loop", "mcast", "bcast", "other")

_V4 = r"^\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}$"
_V6 = r"^[0-9a-fA-F:.]*:[0-9a-fA-F:.]*$"
#: The first pattern that fits gives the kind. Shared space (RFC 6598) counts as private, as a
#: device behind a carrier's NAT has it. A private address that ends in .255 is taken for the
#: broadcast address of its network, since a log does not hold the netmask.
_V4_KINDS = {
    "bcast": r"^(255\.255\.255\.255|(10|192\.168|172\.(1[6-9]|2\d|3[01]))\..*\.255)$",
    "priv": r"^(10|192\.168|172\.(1[6-9]|2\d|3[01])|100\.(6[4-9]|[7-9]\d|1[01]\d|12[0-7]))\.",
    "mcast": r"^(22[4-9]|23\d)\.",
    "link": r"^169\.254\.",
    "loop": r"^127\.",
    "zero": r"^0\.0\.0\.0$",
}
_V6_KINDS = {
    "link": r"^(?i:fe[89ab])",
    "mcast": r"^(?i:ff)",
    "priv": r"^(?i:f[cd])",
    "loop": r"^::1$",
    "zero": r"^::$",
}


def _address_kind(column: str, kinds: Sequence[str]) -> pl.Expr:
    """Index into ``kinds`` of the kind of address that stands in a text column; never null."""
    address = pl.col(column).fill_null("")

    def place(kind: str) -> pl.Expr:
        return pl.lit(kinds.index(kind if kind in kinds else "other"), dtype=pl.Int64)

    def first_fit(patterns: Mapping[str, str]) -> pl.Expr:
        fits = (
            pl.when(address.str.contains(text)).then(place(kind)) for kind, text in patterns.items()
        )
        return pl.coalesce(*fits, place("pub"))

    return (
        pl.when(address.str.contains(_V4))
        .then(first_fit(_V4_KINDS))
        .when(address.str.contains(_V6))
        .then(first_fit(_V6_KINDS))
        .otherwise(place("other"))
    )


def _fits(pattern: str, text: str) -> bool:
    """Whether a pattern written for polars fits: its ``$`` allows no newline after it."""
    return re.search(pattern.replace("$", r"\Z"), text) is not None


@lru_cache(maxsize=65_536)
def _kind_of(address: str | None, kinds: tuple[str, ...]) -> int:
    """As ``_address_kind``, for one address. The same few come again and again."""
    text = address or ""
    if _fits(_V4, text):
        patterns = _V4_KINDS
    elif _fits(_V6, text):
        patterns = _V6_KINDS
    else:
        return kinds.index("other")
    kind = next((kind for kind, pattern in patterns.items() if _fits(pattern, text)), "pub")
    return kinds.index(kind if kind in kinds else "other")


@lru_cache(maxsize=65_536)
def _is_v6(address: str | None) -> bool:
    return _fits(_V6, address or "")


def address_pair(name: str, phrase: Callable[[str, str, str], str]) -> Field:
    """A field over both ends: ``phrase(family, orig kind, resp kind)``.

    The family is "6" where the responder has an IPv6 address, else "".
    """
    phrases = tuple(
        phrase(family, orig, resp)
        for family in ("", "6")
        for orig in ORIG_KINDS
        for resp in RESP_KINDS
    )
    family = pl.col("resp_h").str.contains(_V6).fill_null(False).cast(pl.Int64)
    orig = _address_kind("orig_h", ORIG_KINDS)
    resp = _address_kind("resp_h", RESP_KINDS)
    index = (family * len(ORIG_KINDS) + orig) * len(RESP_KINDS) + resp

    def pick(row: Record) -> int:
        family = _is_v6(row["resp_h"])
        orig, resp = _kind_of(row["orig_h"], ORIG_KINDS), _kind_of(row["resp_h"], RESP_KINDS)
        return (family * len(ORIG_KINDS) + orig) * len(RESP_KINDS) + resp

    return Field(name, phrases, index, pick)


#: Histories that a phrase of their own pays for: the most frequent ones of IoT traffic.
HISTORIES = (
    *("S", "D", "Dd", "C", "F", "R", "A", "Sr", "SrR", "ShR", "ShAr", "ShA", "Sh", "SR", "SAR"),
    *("ShAF", "ShAFf", "ShAFa", "ShAfFa", "ShAFaf", "ShAfR", "ShAdfR", "ShAdfFa", "ShwA"),
    *("ShADad", "ShADadF", "ShADadf", "ShADadFf", "ShADadfF", "ShADadfr", "ShADadr", "ShADadR"),
    *("ShADadfFr", "ShADadtfF", "ShADadCFf", "ShADadFfR", "ShADadFRf", "ShADadtFf", "ShADadTtFf"),
    *("ShADdaFf", "ShADdafF", "ShADdaftF", "ShADdfFr", "ShADdrfFr", "ShADdfr", "ShADdfrFr"),
    *("ShADfdtrFr", "ShADFadf", "ShADFaf", "ShADFafR", "ShADaFf", "ShADafF", "ShADar", "ShADr"),
    *("ShAdDa", "ShAdDaf", "ShAdDaFf", "ShAdDaft", "ShAdDafF", "ShAdDatFf", "ShAdDaFfR"),
    *("ShAdDaFfRR", "ShAdDaFRf", "ShAdDaFRfR", "ShAdDaR", "ShAdDaTFf", "ShAdfDr", "ShwAadDfF"),
    *("DdA", "DRr", "Dr", "DFf", "DadA", "^d", "^f", "^r", "^h", "^hA", "^dA", "^dADA", "HaDdAFf"),
)
#: The phrase of any other history names which of these occur in it.
HISTORY_MARKS = ("D", "d", "[Ff]", "[Rr]", r"\^")
_MARK_LETTERS = ("D", "d", "F", "R", "^")


def history(name: str, phrase: Callable[[str], str], missing: str) -> Field:
    """A field over Zeek's history: itself where it is frequent, else what occurred in it."""
    marks = [
        "+" + "".join(m for bit, m in enumerate(_MARK_LETTERS) if code >> bit & 1)
        for code in range(2 ** len(_MARK_LETTERS))
    ]
    value = pl.col("history").replace("", None)
    exact = value.replace_strict(HISTORIES, list(range(len(HISTORIES))), default=None)
    code = pl.sum_horizontal(
        value.str.contains(mark).cast(pl.Int64) * 2**bit for bit, mark in enumerate(HISTORY_MARKS)
    )
    index = (
        pl.when(value.is_null())
        .then(len(HISTORIES) + len(marks))
        .otherwise(pl.coalesce(exact.cast(pl.Int64), len(HISTORIES) + code))
    )
    places = {text: place for place, text in enumerate(HISTORIES)}

    def pick(row: Record) -> int:
        text = row["history"]
        if not text:
            return len(HISTORIES) + len(marks)
        exact = places.get(text)
        if exact is not None:
            return exact
        found = (re.search(mark, text) is not None for mark in HISTORY_MARKS)
        return len(HISTORIES) + sum(one << bit for bit, one in enumerate(found))

    return Field(name, (*map(phrase, (*HISTORIES, *marks)), missing), index, pick)
