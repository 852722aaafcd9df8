"""A sentence for pretrained tokenizers."""

from __future__ import annotations

from gradsense.tasks import fields
from gradsense.tasks.fields import Field
from gradsense.tasks.flows import words
from gradsense.tasks.task import Wording

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
        {name: f"A {name} connection" for name in words.PROTOCOLS},
        "An unusual connection",
        "An unknown connection",
    ),
    fields.first_listed(
        "service",
        "service",
        {name: f"of service {name}" for name in words.SERVICES},
        "of another service",
        "of no known service",
    ),
    words.address_pair("ends", _ends),
    words.port("resp_p", "resp_p", words.KNOWN_PORTS, _at_port, "at no port"),
    fields.category(
        "state",
        "conn_state",
        {state: f"{meaning} (state {state})" for state, meaning in words.STATES.items()},
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
    words.history("history", lambda text: f"History: {text}.", "No history."),
)

WORDING = Wording("plain", version=1, budget=64, fields=_PLAIN)
