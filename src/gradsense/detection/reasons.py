"""Why a verdict: a field of the prompt, its phrase, and both in words that people use."""

from __future__ import annotations

from dataclasses import dataclass

#: What the short names of fields stand for. A field without a title here reads as its phrase does.
_TITLES = {
    "proto": "protocol",
    "service": "service",
    "state": "connection state",
    "dp": "responder port",
    "sp": "originator port",
    "a": "kinds of address",
    "h": "packet history",
    "d": "duration in seconds, from",
    "ob": "bytes sent, from",
    "rb": "bytes received, from",
    "op": "packets sent, from",
    "rp": "packets received, from",
    "oi": "IP bytes sent, from",
    "ri": "IP bytes received, from",
    "cn": "recent flows of the host, from",
    "cr": "recent flows a second, from",
    "cf": "share of recent flows that failed",
    "cw": "share of recent flows to new hosts",
    "cp": "share of recent flows to this port",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """One field of a prompt, and how much the verdict rests on it.

    Args:
        field, phrase: as in the template.
        weight: nats of the verdict's log-probability that are lost where the field is unknown.
    """

    field: str
    phrase: str
    weight: float

    def in_words(self) -> str:
        """``service: irc`` for ``s:irc``; a phrase of many words stands for itself."""
        _, colon, value = self.phrase.partition(":")
        title = _TITLES.get(self.field)
        if title is None or not colon:
            return self.phrase
        return f"{title.removesuffix(', from')}: unknown" if value == "-" else f"{title}: {value}"
