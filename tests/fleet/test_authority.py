"""The authority's certificates, held against OpenSSL, which brokers use."""

from __future__ import annotations

import ssl
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gradsense.errors import InputError
from gradsense.fleet.certificates import CA_DAYS, Authority, IssuedCertificate, signing_pair

#: OpenSSL looks at the machine's clock, so this is fixed only for what it does not judge.
NOW = 1_790_000_000.0
DAY = 86_400.0


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("test", NOW)


def handshake(
    authority: Authority, server: IssuedCertificate, client: IssuedCertificate, folder: Path
) -> None:
    """A mutual TLS handshake in memory.

    Raises:
        ssl.SSLError: one side does not accept the other.
    """
    trust = authority.certificate.decode()
    contexts = []
    for name, issued, protocol in (
        ("server", server, ssl.PROTOCOL_TLS_SERVER),
        ("client", client, ssl.PROTOCOL_TLS_CLIENT),
    ):
        chain = folder / f"{name}.pem"
        chain.write_bytes(issued.certificate + issued.key)
        context = ssl.SSLContext(protocol)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=trust)
        context.load_cert_chain(chain)
        contexts.append(context)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        contexts[0].wrap_bio(up, down, server_side=True),
        contexts[1].wrap_bio(down, up, server_hostname="localhost"),
    ]
    while sides:
        for side in list(reversed(sides)):
            try:
                side.do_handshake()
                sides.remove(side)
            except ssl.SSLWantReadError:
                pass


@pytest.fixture(scope="module")
def recent() -> tuple[Authority, IssuedCertificate, IssuedCertificate]:
    """An authority of today's, with the broker's certificate and one device's."""
    now = time.time()
    made = Authority.create("test", now)
    broker = made.issue("broker", now, 1, hosts=("localhost", "127.0.0.1"))
    return made, broker, made.issue("a", now, 1)


def test_broker_and_device_accept_each_other(
    recent: tuple[Authority, IssuedCertificate, IssuedCertificate], tmp_path: Path
) -> None:
    handshake(*recent, tmp_path)


def test_a_device_cannot_pass_for_the_broker_nor_the_broker_for_a_device(
    recent: tuple[Authority, IssuedCertificate, IssuedCertificate], tmp_path: Path
) -> None:
    authority, server, client = recent
    with pytest.raises(ssl.SSLError, match="certificate"):
        handshake(authority, client, client, tmp_path)
    with pytest.raises(ssl.SSLError, match="certificate"):
        handshake(authority, server, server, tmp_path)


def test_what_a_device_certificate_says(authority: Authority) -> None:
    issued = authority.issue("porch-cam", NOW, 30)
    read = x509.load_pem_x509_certificate(issued.certificate)
    assert [name.value for name in read.subject] == ["porch-cam"]
    assert read.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert issued.expires == NOW + 30 * DAY == read.not_valid_after_utc.timestamp()
    assert read.not_valid_before_utc.timestamp() == NOW - DAY, "for clocks that are behind"
    assert read.serial_number == issued.serial
    usage = read.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    public = read.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert public.curve.name == "secp256r1"
    assert load_pem_private_key(issued.key, None).public_key() == public


def test_names_and_addresses_of_the_broker(authority: Authority) -> None:
    hosts = "mqtt.example.org", "10.0.0.7", "fd00::1"
    issued = authority.issue("broker", NOW, 1, hosts=hosts)
    read = x509.load_pem_x509_certificate(issued.certificate)
    names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["mqtt.example.org"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7", "fd00::1"]


def test_the_list_of_revoked_certificates_outlives_every_certificate(authority: Authority) -> None:
    body = authority.revocations([(7, NOW), (9, NOW + 60)], NOW + 90)
    read = x509.load_pem_x509_crl(body)
    own = x509.load_pem_x509_certificate(authority.certificate)
    assert read.is_signature_valid(own.public_key())  # type: ignore[arg-type]
    assert {entry.serial_number: entry.revocation_date_utc.timestamp() for entry in read} == {
        7: NOW,
        9: NOW + 60,
    }
    assert read.next_update_utc == own.not_valid_after_utc


@pytest.mark.parametrize("days", [0, -1, CA_DAYS + 1])
def test_no_certificate_outlives_the_authority(authority: Authority, days: int) -> None:
    with pytest.raises(InputError, match="beyond the authority"):
        authority.issue("a", NOW, days)
    with pytest.raises(InputError, match="beyond the authority"):
        authority.issue("a", NOW + DAY, CA_DAYS)


def test_secrets_are_not_shown(authority: Authority) -> None:
    issued, signing = authority.issue("a", NOW, 1), signing_pair()
    assert "PRIVATE" not in repr(issued) + repr(signing)
    private = load_pem_private_key(signing.private, None)
    assert isinstance(private, ed25519.Ed25519PrivateKey)
    assert private.public_key().public_bytes_raw() == signing.public


def test_a_damaged_or_foreign_key_is_refused_without_being_quoted(authority: Authority) -> None:
    other = Authority.create("other", NOW)
    for certificate, key in (
        (authority.certificate, other.key),
        (authority.certificate, b"-----BEGIN PRIVATE KEY-----\nSECRET\n"),
        (b"none", authority.key),
        (authority.certificate, signing_pair().private),
    ):
        with pytest.raises(InputError, match="do not belong together") as refused:
            Authority(certificate, key)
        assert "SECRET" not in str(refused.value)
