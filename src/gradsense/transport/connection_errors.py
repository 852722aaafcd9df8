"""Why a broker cannot be reached or said no: a name to count it under, and what to do about it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from paho.mqtt.reasoncodes import ReasonCode

from gradsense.transport.identity import Identity

#: OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH.
_OTHER_HOST = (62, 64)
#: X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED.
_OTHER_TIME = (9, 10)
_OWN_CERTIFICATE = "look at gradsense fleet list whether it is revoked or has ended, then rotate it"

#: What to do about a reason code of MQTT 5, by its name.
_HINT = {
    "Not authorized": "this device may be revoked, or the broker's acl is not the fleet's",
    "Session taken over": "another process uses this certificate; end it, or fleet rotate",
    "Server shutting down": "it comes back by itself once the broker runs again",
}


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
        return _of_tls(str(error))
    return ConnectionFailure(
        "unreachable",
        f"no broker answers there ({error})",
        "start it, or look at the network, the address and the firewall; it goes on trying",
    )


def no_answer(complaint: str) -> ConnectionFailure:
    """The broker closed the connection before it answered.

    Args:
        complaint: of the TLS library, if it had one. In TLS 1.3 a client hears only after its
            handshake that the broker did not like its certificate, and may not hear it at all.
    """
    return _of_tls(complaint or "closed without an answer")


def of_reason(packet: str, reason: ReasonCode) -> ConnectionFailure:
    """The broker's own word, in answer to a ``packet`` or as one."""
    hint = _HINT.get(str(reason), "it goes on trying; the broker's log may say more")
    return ConnectionFailure(f"{packet}: {reason}", f"the broker said: {reason} ({packet})", hint)


def _of_certificate(error: ssl.SSLCertVerificationError, identity: Identity) -> ConnectionFailure:
    text = f"the broker's certificate is not believed ({error.verify_message.rstrip('. ')})"
    if error.verify_code in _OTHER_HOST:
        hint = f"it must name {identity.host}: gradsense fleet init --broker gives the name"
        return ConnectionFailure("broker-host", text, hint)
    if error.verify_code in _OTHER_TIME:
        hint = "set this machine's clock, or gradsense fleet rotate --broker"
        return ConnectionFailure("broker-dates", text, hint)
    hint = f"is another fleet's broker on {identity.host}:{identity.port}? take its own bundle"
    return ConnectionFailure("broker-certificate", text, hint)


def _of_tls(complaint: str) -> ConnectionFailure:
    if "alert" in complaint.lower():  # the broker's word on what this side showed
        return ConnectionFailure(
            "own-certificate", f"the broker refuses the certificate ({complaint})", _OWN_CERTIFICATE
        )
    return ConnectionFailure("no-answer", f"the broker hung up ({complaint})", _OWN_CERTIFICATE)
