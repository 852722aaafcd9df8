"""The fleet's own certificate authority, and keys that sign updates and models.

Certificates follow RFC 5280: ECDSA P-256 keys, SHA-256, one purpose each, so that a device's
certificate cannot pass for the broker's. Signing keys are Ed25519 (RFC 8032). Time is an argument;
keys and serial numbers come from the operating system's random source. Nothing here touches a file.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gradsense.errors import InputError

CA_DAYS = 3650
_CLIENT, _SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
#: A device whose clock is behind must still accept a certificate that was made just now.
_BACKDATED = timedelta(days=1)


@dataclass(frozen=True)
class IssuedCertificate:
    """A certificate with its private key, both PEM. ``expires`` is in seconds since 1970."""

    certificate: bytes
    key: bytes = field(repr=False)
    serial: int
    expires: float


@dataclass(frozen=True)
class KeyPair:
    """The private part as PKCS 8 PEM, the public part as its 32 bytes."""

    private: bytes = field(repr=False)
    public: bytes

    @classmethod
    def of(cls, key: ed25519.Ed25519PrivateKey | x25519.X25519PrivateKey) -> KeyPair:
        """Both parts of a key, to be stored."""
        return cls(_private_pem(key), key.public_key().public_bytes_raw())


class Authority:
    """Signs the fleet's certificates and its list of revoked ones.

    Args:
        certificate, key: PEM, as ``create`` made them.

    Raises:
        InputError: they are not a certificate and a P-256 key that belong together.
    """

    def __init__(self, certificate: bytes, key: bytes) -> None:
        self.certificate, self.key = certificate, key
        private = None
        with suppress(ValueError):  # its text may quote the file
            self._own = x509.load_pem_x509_certificate(certificate)
            private = load_pem_private_key(key, password=None)
        if (
            not isinstance(private, ec.EllipticCurvePrivateKey)
            or private.public_key() != self._own.public_key()
        ):
            raise InputError(
                "the authority's certificate and key are damaged or do not belong together",
                hint="restore ca/ of the fleet folder from its backup",
            )
        self._private = private

    @classmethod
    def create(cls, fleet: str, now: float) -> Authority:
        """A new authority that signs itself, for ``CA_DAYS`` days. ``fleet`` goes into its name."""
        key, name = ec.generate_private_key(ec.SECP256R1()), _name(f"gradsense {fleet}")
        start = datetime.fromtimestamp(now, UTC)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        made = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(start - _BACKDATED)
            .not_valid_after(start + timedelta(days=CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(made.public_bytes(Encoding.PEM), _private_pem(key))

    def issue(
        self, name: str, now: float, days: int, *, hosts: Sequence[str] = ()
    ) -> IssuedCertificate:
        """A certificate to connect with; the broker knows its holder by ``name``.

        Args:
            hosts: the broker's own names and IP addresses; none: it is a client's certificate.

        Raises:
            InputError: a host is no name, or ``days`` reaches beyond this authority's own end.
        """
        key, start = ec.generate_private_key(ec.SECP256R1()), datetime.fromtimestamp(now, UTC)
        end = start + timedelta(days=days)
        if not 1 <= days <= CA_DAYS or end > self._own.not_valid_after_utc:
            raise InputError(
                f"{days} days reach beyond the authority, which ends on "
                f"{self._own.not_valid_after_utc:%Y-%m-%d}",
                hint="give fewer days, 1 or more",
                field="--days",
            )
        authority_key = self._private.public_key()
        builder = (
            x509.CertificateBuilder(
                self._own.subject, _name(name), key.public_key(), x509.random_serial_number()
            )
            .not_valid_before(max(start - _BACKDATED, self._own.not_valid_before_utc))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([_SERVER if hosts else _CLIENT]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key), critical=False
            )
        )
        if hosts:
            names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        made = builder.sign(self._private, hashes.SHA256())
        return IssuedCertificate(
            made.public_bytes(Encoding.PEM),
            _private_pem(key),
            made.serial_number,
            made.not_valid_after_utc.timestamp(),
        )

    def revocations(self, revoked: Iterable[tuple[int, float]], now: float) -> bytes:
        """The list of revoked certificates as PEM, from (serial, time of revocation).

        It is valid as long as the authority: a broker that finds its list out of date turns every
        device away, which would make a forgotten renewal an outage of the fleet.
        """
        entries = list(revoked)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._own.subject)
            .last_update(datetime.fromtimestamp(now, UTC) - _BACKDATED)
            .next_update(self._own.not_valid_after_utc)
            .add_extension(x509.CRLNumber(len(entries)), critical=False)
        )
        for serial, at in entries:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder(serial, datetime.fromtimestamp(at, UTC)).build()
            )
        return builder.sign(self._private, hashes.SHA256()).public_bytes(Encoding.PEM)


def signing_pair() -> KeyPair:
    """A new Ed25519 key, which signs."""
    return KeyPair.of(ed25519.Ed25519PrivateKey.generate())


def seal_pair() -> KeyPair:
    """A new X25519 key, which opens what is sealed for it."""
    return KeyPair.of(x25519.X25519PrivateKey.generate())


def _private_pem(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | x25519.X25519PrivateKey,
) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
