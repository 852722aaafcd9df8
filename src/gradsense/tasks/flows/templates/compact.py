"""One word a field, numbers in logarithmic buckets."""

from __future__ import annotations

from gradsense.tasks import fields
from gradsense.tasks.fields import Field
from gradsense.tasks.flows import words
from gradsense.tasks.task import Wording


def powers(base: float, last: float) -> tuple[float, ...]:
    """1, base, base², … as whole numbers without repetition, up to ``last``."""
    edges, edge = [1.0], 1.0
    while edge < last:
        edge *= base
        if round(edge) > edges[-1]:
            edges.append(float(round(edge)))
    return tuple(edges)


_HALF_OCTAVE = 2**0.5
_BYTES = powers(_HALF_OCTAVE, 2**30)
_PACKETS = powers(_HALF_OCTAVE, 2**20)
#: Quarter octaves from 1 ms to about a day. Finer than the sizes, since the duration is often
#: all that distinguishes a repeated SYN of a scan from that of a healthy device.
_SECONDS = tuple(float(f"{0.001 * 2 ** (step / 4):.3g}") for step in range(106))


def short(prefix: str, column: str, edges: tuple[float, ...]) -> Field:
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


FIELDS = (
    fields.category("proto", "proto", _tagged("p", words.PROTOCOLS), "p:other", "p:-"),
    fields.first_listed("service", "service", _tagged("s", words.SERVICES), "s:other", "s:-"),
    fields.category("state", "conn_state", _tagged("st", tuple(words.STATES)), "st:other", "st:-"),
    words.port("dp", "resp_p", words.KNOWN_PORTS, lambda text: f"dp:{text}", "dp:-"),
    words.port("sp", "orig_p", words.KNOWN_PORTS, lambda text: f"sp:{text}", "sp:-"),
    words.address_pair("a", lambda family, orig, resp: f"a{family}:{orig}>{resp}"),
    words.history("h", lambda text: f"h:{text}", "h:-"),
    short("d", "duration", _SECONDS),
    short("ob", "orig_bytes", _BYTES),
    short("rb", "resp_bytes", _BYTES),
    short("op", "orig_pkts", _PACKETS),
    short("rp", "resp_pkts", _PACKETS),
    short("oi", "orig_ip_bytes", _BYTES),
    short("ri", "resp_ip_bytes", _BYTES),
)

WORDING = Wording("compact", version=1, budget=14, fields=FIELDS)
