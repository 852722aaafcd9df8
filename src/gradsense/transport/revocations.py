"""The fleet's list of revoked broker certificates (RFC 5280, section 5), as devices keep it.

It comes with a device's bundle and, signed by the coordinator, with the model. It is signed by the
fleet's authority as well, and only a longer list takes the place of one that is held: nobody who
passes on an old one can bring a stolen certificate back.
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from gradsense.errors import UpdateRefused
from gradsense.storage import files

FILE = "crl.pem"


class BadRevocations(UpdateRefused):
    """The list is none, or not of this fleet's authority."""


def newer(body: bytes, held: bytes | None, authority: Path) -> bool:
    """Whether a list is longer than the one that is held.

    Args:
        body, held: PEM.
        authority: its certificate, PEM.

    Raises:
        BadRevocations: ``body`` cannot be trusted.
    """
    try:
        issuer = x509.load_pem_x509_certificate(authority.read_bytes()).public_key()
        found = x509.load_pem_x509_crl(body)
        if not found.is_signature_valid(issuer):  # type: ignore[arg-type]
            raise BadRevocations("the list is not signed by the fleet's authority")
        before = 0 if held is None else _number(x509.load_pem_x509_crl(held))
        return held is None or _number(found) > before
    except (ValueError, TypeError, OSError, UnsupportedAlgorithm, x509.ExtensionNotFound):
        raise BadRevocations("no list of revoked certificates") from None


def revoked(certificate: bytes, held: bytes) -> bool:
    """Whether a certificate (DER) is on a list that was let in (PEM)."""
    serial = x509.load_der_x509_certificate(certificate).serial_number
    listed = x509.load_pem_x509_crl(held).get_revoked_certificate_by_serial_number(serial)
    return listed is not None


def keep(body: bytes, folder: Path) -> Path:
    """Store a list durably; its file."""
    place = folder / FILE
    files.write(place, body)
    return place


def held(*folders: Path) -> Path | None:
    """The longest list in these folders."""
    found = [folder / FILE for folder in folders if (folder / FILE).is_file()]
    return max(found, key=lambda file: _number_of(file.read_bytes()), default=None)


def _number_of(pem: bytes) -> int:
    try:
        return _number(x509.load_pem_x509_crl(pem))
    except ValueError:
        return -1


def _number(crl: x509.CertificateRevocationList) -> int:
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
