"""What a connection saw: counts, and failures named, counted and logged once with what to do."""

from __future__ import annotations

import logging
import ssl
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from gradsense.transport.identity import Identity

#: After a connection that held for so long, failures are logged anew.
_STABLE_S = 60.0
#: OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH.
_OTHER_HOST = (62, 64)
#: X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED.
_OTHER_TIME = (9, 10)
_REVOKED = 23
_OWN_CERTIFICATE = "look at gradsense fleet list whether it is revoked or has ended, then rotate it"

#: What to do about a reason code of MQTT 5, by its name.
_HINT = {
    "Not authorized": "this device may be revoked, or the broker's acl is not the fleet's",
    "Session taken over": "another process uses this certificate; end it, or fleet rotate",
    "Server shutting down": "it comes back by itself once the broker runs again",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConnectionFailure:
    """``name``: short and of a small set; ``text``: what happened; ``hint``: what to do."""

    name: str
    text: str
    hint: str


def of_error(error: OSError | ValueError, identity: Identity) -> ConnectionFailure:
    """What kept a connection from being opened."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _of_certificate(error, identity)
    if isinstance(error, ssl.SSLError):
        return of_tls(str(error))
    return ConnectionFailure(
        "unreachable",
        f"no broker answers there ({error})",
        "start it, or look at the network, the address and the firewall; it goes on trying",
    )


def of_reason(packet: str, reason: str) -> ConnectionFailure:
    """The broker's own reason, in answer to a ``packet`` or as one."""
    hint = _HINT.get(reason, "it goes on trying; the broker's log may say more")
    return ConnectionFailure(
        f"{packet}: {reason}", f"the broker answered: {reason} ({packet})", hint
    )


def _of_certificate(error: ssl.SSLCertVerificationError, identity: Identity) -> ConnectionFailure:
    text = f"the broker's certificate is not trusted ({error.verify_message.rstrip('. ')})"
    if error.verify_code in _OTHER_HOST:
        hint = f"it must name {identity.host}: gradsense fleet init --broker gives the name"
        return ConnectionFailure("broker-host", text, hint)
    if error.verify_code == _REVOKED:
        hint = "it may be stolen: have the broker show the certificate of fleet rotate --broker"
        return ConnectionFailure("broker-revoked", text, hint)
    if error.verify_code in _OTHER_TIME:
        hint = "set this machine's clock, or gradsense fleet rotate --broker"
        return ConnectionFailure("broker-dates", text, hint)
    hint = f"is another fleet's broker on {identity.host}:{identity.port}? take its own bundle"
    return ConnectionFailure("broker-certificate", text, hint)


def of_tls(complaint: str) -> ConnectionFailure:
    """The broker closed the connection before it answered.

    Args:
        complaint: of the TLS library, if it had one. In TLS 1.3 a client learns only after its
            handshake that the broker refused its certificate, and may not learn it at all.
    """
    if "alert" in complaint.lower():  # TLS's word for the peer's refusal
        return ConnectionFailure(
            "own-certificate", f"the broker refuses the certificate ({complaint})", _OWN_CERTIFICATE
        )
    text = f"the broker hung up ({complaint or 'closed without an answer'})"
    return ConnectionFailure("no-answer", text, _OWN_CERTIFICATE)


@dataclass(frozen=True)
class Counts:
    """What a link saw since it was made.

    Attributes:
        connects, disconnects: connections that were opened, and those of them that broke.
        sent, received: messages. A message that was sent may have been lost.
        bytes_sent, bytes_received: of topics, properties and payloads.
        refused: why the broker could not be reached or refused, by name.
        faults: errors of the functions that the link called, by class.
    """

    connects: int = 0
    disconnects: int = 0
    sent: int = 0
    received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    faults: Mapping[str, int] = field(default_factory=dict)


class LinkLog:
    """Counts, for threads that do not wait for each other; nothing else is called under its lock.

    Args:
        who: begins each line of the log.
    """

    def __init__(self, who: str) -> None:
        self._who, self._lock = who, threading.Lock()
        self._numbers: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._logged: set[str] = set()

    @property
    def counts(self) -> Counts:
        """A copy."""
        with self._lock:
            return Counts(**self._numbers, refused=dict(self._refused), faults=dict(self._faults))

    def add(self, **numbers: int) -> None:
        """Add to fields of ``Counts``."""
        with self._lock:
            self._numbers.update(numbers)

    def held(self, seconds: float) -> None:
        """A connection ended that had held for so long."""
        if seconds >= _STABLE_S:
            self._logged.clear()

    def refused(self, failure: ConnectionFailure) -> None:
        """Count a failure; log it once until a connection was stable."""
        with self._lock:
            self._refused[failure.name] += 1
        if failure.name not in self._logged:
            self._logged.add(failure.name)
            _log.warning("%s: %s; %s", self._who, failure.text, failure.hint)

    def fault(self, error: Exception) -> None:
        """A function that the link called ended with an error; logged once for each class."""
        name = type(error).__name__
        with self._lock:
            self._faults[name] += 1
            first = self._faults[name] == 1
        if first:
            _log.warning("%s: %s in the link", self._who, name, exc_info=error)
