"""The templates that turn flows into prompts. A template is data with a name and a version.

A change of any phrase or bucket is a new version, because a trained model has learnt the old
words. The model folder records name and version.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from gradsense.data.flows import CONTEXT_SCHEMA
from gradsense.errors import InputError
from gradsense.prompts import fields
from gradsense.prompts.fields import Field, Row


@dataclass(frozen=True)
class Template:
    """How a flow reads as text: one phrase per field, in order, joined by single spaces.

    Args:
        name, version: what a model folder records.
        budget: the longest text in words. A word-level tokenizer spends one token a word.
        fields: the phrases.
    """

    name: str
    version: int
    budget: int
    fields: tuple[Field, ...]

    def render(self, frame: pl.DataFrame) -> pl.Series:
        """Texts of the flows in ``frame``: a String series ``text`` of the same height, no nulls.

        ``frame`` has the FLOW_SCHEMA columns, and the CONTEXT_SCHEMA columns too where the
        template ``needs_context``.
        """
        words = pl.concat_str([field.text for field in self.fields], separator=" ")
        return frame.select(words.alias("text")).to_series()

    def indices(self, frame: pl.DataFrame) -> npt.NDArray[np.uint16]:
        """Which phrase of each field the flows in ``frame`` pick, [flows, fields]: the text, short.

        ``frame`` as for ``render``.
        """
        picked = frame.select(
            field.index.cast(pl.UInt16).alias(field.name) for field in self.fields
        )
        return np.ascontiguousarray(picked.to_numpy(), dtype=np.uint16)

    def pick(self, row: Row) -> npt.NDArray[np.uint16]:
        """As ``indices`` for one flow, [1, fields], in microseconds.

        ``row`` has the FLOW_SCHEMA keys, and the CONTEXT_SCHEMA keys where ``needs_context``.
        """
        return np.array([[field.pick(row) for field in self.fields]], dtype=np.uint16)

    def texts(self, indices: npt.NDArray[np.uint16]) -> list[str]:
        """The prompts that these indices, [flows, fields], stand for."""
        columns = [
            [field.phrases[place] for place in column]
            for field, column in zip(self.fields, indices.T.tolist(), strict=True)
        ]
        return [" ".join(phrases) for phrases in zip(*columns, strict=True)]

    def vocabulary(self) -> tuple[str, ...]:
        """Every word that ``render`` can emit, once, in a fixed order."""
        phrases = (phrase for field in self.fields for phrase in field.phrases)
        return tuple(dict.fromkeys(word for phrase in phrases for word in phrase.split()))

    @property
    def length(self) -> int | None:
        """Words of every text, or None where they differ."""
        counts = [{len(phrase.split()) for phrase in field.phrases} for field in self.fields]
        return sum(min(one) for one in counts) if all(len(one) == 1 for one in counts) else None

    @property
    def needs_context(self) -> bool:
        """Whether ``render`` reads the columns that ``ContextWindow.add`` appends."""
        columns = {name for field in self.fields for name in field.index.meta.root_names()}
        return not columns.isdisjoint(CONTEXT_SCHEMA)


def get_template(name: str) -> Template:
    """The newest template of that name. Raises InputError for an unknown name."""
    try:
        return TEMPLATES[name]
    except KeyError:
        raise InputError(
            f"unknown prompt template '{name}'", hint=f"use one of {', '.join(TEMPLATES)}"
        ) from None


PROTOCOLS = ("tcp", "udp", "icmp")
#: In the order in which they speak for a set of several: the more telling protocol first.
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


def _powers(base: float, last: float) -> tuple[float, ...]:
    """1, base, base², … as whole numbers without repetition, up to ``last``."""
    edges, edge = [1.0], 1.0
    while edge < last:
        edge *= base
        if round(edge) > edges[-1]:
            edges.append(float(round(edge)))
    return tuple(edges)


_HALF_OCTAVE = 2**0.5
_BYTES = _powers(_HALF_OCTAVE, 2**30)
_PACKETS = _powers(_HALF_OCTAVE, 2**20)
#: Quarter octaves from 1 ms to about a day. Finer than the sizes, since the duration is often
#: all that tells a repeated SYN of a scan from that of a healthy device.
_SECONDS = tuple(float(f"{0.001 * 2 ** (step / 4):.3g}") for step in range(106))
_RATES = tuple(2.0**step for step in range(-12, 11))


def _short(prefix: str, column: str, edges: tuple[float, ...]) -> Field:
    return fields.number(
        prefix,
        column,
        edges,
        lambda edge: f"{prefix}:{edge:.15g}",
        zero=f"{prefix}:0",
        missing=f"{prefix}:-",
    )


def _tagged(prefix: str, values: tuple[str, ...]) -> dict[str, str]:
    return {value: f"{prefix}:{value}" for value in values}


_COMPACT = (
    fields.category("proto", "proto", _tagged("p", PROTOCOLS), "p:other", "p:-"),
    fields.first_listed("service", "service", _tagged("s", SERVICES), "s:other", "s:-"),
    fields.category("state", "conn_state", _tagged("st", tuple(STATES)), "st:other", "st:-"),
    fields.port("dp", "resp_p", fields.KNOWN_PORTS, lambda text: f"dp:{text}", "dp:-"),
    fields.port("sp", "orig_p", fields.KNOWN_PORTS, lambda text: f"sp:{text}", "sp:-"),
    fields.address_pair("a", lambda family, orig, resp: f"a{family}:{orig}>{resp}"),
    fields.history("h", lambda text: f"h:{text}", "h:-"),
    _short("d", "duration", _SECONDS),
    _short("ob", "orig_bytes", _BYTES),
    _short("rb", "resp_bytes", _BYTES),
    _short("op", "orig_pkts", _PACKETS),
    _short("rp", "resp_pkts", _PACKETS),
    _short("oi", "orig_ip_bytes", _BYTES),
    _short("ri", "resp_ip_bytes", _BYTES),
)


def _eighths(prefix: str, column: str) -> Field:
    return fields.share(prefix, column, [f"{prefix}:{step}/8" for step in range(9)], f"{prefix}:-")


_HOST = (
    _short("cn", "ctx_flows", (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)),
    _short("cr", "ctx_rate", _RATES),
    _eighths("cf", "ctx_failed"),
    _eighths("cw", "ctx_fresh"),
    _eighths("cp", "ctx_same_port"),
)

_STEPS = (1, 1.5, 2, 3, 5, 7)


def _time(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60), ("seconds", 1)):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds * 1000:g} milliseconds"


def _size(number: float) -> str:
    for unit, size in (("million", 1e6), ("thousand", 1e3)):
        if number >= size:
            return f"{number / size:g} {unit}"
    return f"{number:g}"


_FRIENDLY_TIMES = (
    *(step * 10.0**power / 1000 for power in range(3) for step in _STEPS),
    *(1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 45.0),
    *(60.0 * minutes for minutes in (1, 2, 5, 10, 15, 30)),
    *(3600.0 * hours for hours in (1, 2, 5, 12, 24)),
)
_FRIENDLY_SIZES = (
    *(1.0, 2.0, 3.0, 5.0, 7.0),
    *(step * 10.0**power for power in range(1, 9) for step in _STEPS),
)


def _amount(lead: str, column: str, unit: str, end: str = "") -> Field:
    return fields.number(
        column,
        column,
        _FRIENDLY_SIZES,
        lambda edge: f"{lead} {_size(edge)} {unit}{end}",
        zero=f"{lead} 0 {unit}{end}",
        missing=f"{lead} unknown {unit}{end}",
    )


_KIND_NAMES = {
    "priv": "private",
    "pub": "public",
    "link": "link-local",
    "zero": "unset",
    "loop": "loopback",
    "mcast": "multicast",
    "bcast": "broadcast",
    "other": "unusual",
}


def _ends(family: str, orig: str, resp: str) -> str:
    version = " IPv6" if family else ""
    return f"from a {_KIND_NAMES[orig]} to a {_KIND_NAMES[resp]}{version} address"


def _at_port(text: str) -> str:
    return f"at port {text}" if text.isdigit() else f"at some {text} port"


_PLAIN = (
    fields.category(
        "proto",
        "proto",
        {name: f"A {name} connection" for name in PROTOCOLS},
        "An unusual connection",
        "An unknown connection",
    ),
    fields.first_listed(
        "service",
        "service",
        {name: f"of service {name}" for name in SERVICES},
        "of another service",
        "of no known service",
    ),
    fields.address_pair("ends", _ends),
    fields.port("resp_p", "resp_p", fields.KNOWN_PORTS, _at_port, "at no port"),
    fields.category(
        "state",
        "conn_state",
        {state: f"{meaning} (state {state})" for state, meaning in STATES.items()},
        "ended otherwise",
        "ended unseen",
    ),
    fields.number(
        "duration",
        "duration",
        _FRIENDLY_TIMES,
        lambda edge: f"after {_time(edge)}.",
        zero="after 0 seconds.",
        missing="without a duration.",
    ),
    _amount("It sent", "orig_bytes", "bytes"),
    _amount("in", "orig_pkts", "packets"),
    _amount("and received", "resp_bytes", "bytes"),
    _amount("in", "resp_pkts", "packets", end="."),
    fields.history("history", lambda text: f"History: {text}.", "No history."),
)

#: All templates by name.
TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        Template("compact", 1, 14, _COMPACT),
        Template("plain", 1, 64, _PLAIN),
        Template("context", 1, 19, _COMPACT + _HOST),
    )
}
