"""One side's own keys and the keys that it trusts, read from what enrolment wrote.

A device reads ``BUNDLE/device``, the coordinator ``fleet.json`` and ``coordinator/`` of the fleet
folder; docs/fleet.md lists the files. Both then hold the same kind of thing, so that the link
between them has one implementation.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import BaseModel, ConfigDict, Field

from gradsense.errors import InputError
from gradsense.storage import files
from gradsense.transport import revocations
from gradsense.transport.protocol import COORDINATOR

#: Far above any certificate, key or JSON of these folders.
_MAX_BYTES = 1 << 16
_PUBLIC_KEY = r"^[0-9a-f]{64}$"
#: OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python has no name for.
_NO_CHECK_TIME = 0x200000

_File = TypeVar("_File", bound=BaseModel)
_Key = TypeVar("_Key", Ed25519PrivateKey, X25519PrivateKey)


class Address(BaseModel):
    """Where the broker listens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    port: int = Field(ge=1, le=65535)


class FleetFile(BaseModel):
    """``fleet.json``. Public keys are 64 hex digits.

    Attributes:
        coordinator_key: Ed25519, with which the coordinator signs.
        coordinator_seal_key: X25519, for which updates are sealed.
        fleet_seal_key: X25519, for which models are sealed; every device has the private part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    fleet: str
    broker: Address
    coordinator_key: str = Field(pattern=_PUBLIC_KEY)
    coordinator_seal_key: str = Field(pattern=_PUBLIC_KEY)
    fleet_seal_key: str = Field(pattern=_PUBLIC_KEY)


class DeviceFile(FleetFile):
    """``device/device.json`` of a bundle."""

    device: str


@dataclass(frozen=True)
class Identity:
    """One side. Its ``repr`` shows no secret.

    Attributes:
        name: the device's id, or ``COORDINATOR``.
        host, port: of the broker.
        ca, cert, key: PEM files for TLS.
        signing_key: with which this side signs.
        coordinator_key: with which the coordinator signs, and nobody else what goes down.
        own_seal_key: opens what is sealed for this side.
        peer_seal_key: seals for the other side.
        crl: file of the list of revoked broker certificates; None: there is none.
    """

    name: str
    host: str
    port: int
    ca: Path
    cert: Path
    key: Path = field(repr=False)
    signing_key: Ed25519PrivateKey = field(repr=False)
    coordinator_key: Ed25519PublicKey = field(repr=False)
    own_seal_key: X25519PrivateKey = field(repr=False)
    peer_seal_key: X25519PublicKey = field(repr=False)
    crl: Path | None = None

    def tls(self, *, check_dates: bool = True) -> ssl.SSLContext:
        """TLS 1.2 or newer with this side's certificate; only the fleet's authority is trusted.

        Args:
            check_dates: False where the clock may be years off, as on a gateway without a battery.
                What the broker then could pass on is signed all the same.

        Raises:
            InputError: the files are damaged or do not belong together.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the certificate and its host
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not check_dates:
            context.verify_flags |= _NO_CHECK_TIME
        try:
            context.load_verify_locations(self.ca)
            if self.crl is not None:
                context.load_verify_locations(self.crl)
                context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
            context.load_cert_chain(self.cert, self.key)
        except OSError as error:  # ssl.SSLError is one
            raise InputError(
                f"the certificates cannot be used ({error.strerror or error})",
                hint=_hint(self.name),
                file=self.cert.parent,
            ) from error
        return context


def of_device(bundle: Path) -> Identity:
    """The device that a bundle was made for.

    Raises:
        InputError: a file of ``bundle/device`` is missing, damaged, of another fleet, or a private
            key that everybody may read.
    """
    folder = bundle / "device"
    about = _file(folder / "device.json", DeviceFile, "give the folder that holds device/")
    return _identity(
        about, folder, about.device, opens=about.fleet_seal_key, seals=about.coordinator_seal_key
    )


def of_coordinator(fleet: Path) -> Identity:
    """The coordinator of a fleet folder.

    Raises:
        InputError: as ``of_device``, of ``fleet.json`` and ``coordinator/``.
    """
    about = _file(fleet / "fleet.json", FleetFile, "gradsense fleet init --fleet DIR makes one")
    folder = fleet / "coordinator"
    found = _identity(
        about, folder, COORDINATOR, opens=about.coordinator_seal_key, seals=about.fleet_seal_key
    )
    _belongs(found.signing_key, about.coordinator_key, folder / "signing-key.pem", COORDINATOR)
    return found


def _identity(about: FleetFile, folder: Path, name: str, *, opens: str, seals: str) -> Identity:
    for file in ("ca.pem", "cert.pem"):
        files.read(folder / file, limit=_MAX_BYTES, hint=_hint(name))
    _secret(folder / "key.pem", name)
    signing = _private(folder / "signing-key.pem", name, Ed25519PrivateKey)  # type: ignore[type-abstract]
    own = _private(folder / "seal-key.pem", name, X25519PrivateKey)  # type: ignore[type-abstract]
    _belongs(own, opens, folder / "seal-key.pem", name)
    return Identity(
        name=name,
        host=about.broker.host,
        port=about.broker.port,
        ca=folder / "ca.pem",
        cert=folder / "cert.pem",
        key=folder / "key.pem",
        crl=revocations.held(folder),
        signing_key=signing,
        coordinator_key=Ed25519PublicKey.from_public_bytes(bytes.fromhex(about.coordinator_key)),
        own_seal_key=own,
        peer_seal_key=X25519PublicKey.from_public_bytes(bytes.fromhex(seals)),
    )


def _hint(name: str) -> str:
    if name == COORDINATOR:
        return "restore the fleet's folder from its backup"
    return f"copy the bundle again, or make one with gradsense fleet rotate {name}"


def _file(file: Path, kind: type[_File], hint: str) -> _File:
    return files.parsed(files.read(file, limit=_MAX_BYTES, hint=hint), kind, file)


def _secret(file: Path, name: str) -> bytes:
    found = files.read(file, limit=_MAX_BYTES, hint=_hint(name))
    # The owner's group may read it: Kubernetes gives a pod its secrets that way.
    if file.stat().st_mode & 0o007:
        raise InputError(
            "is a private key that every user of this machine may read",
            hint=f"chmod 600 {file}; if others use this machine, rotate the keys too",
            file=file,
        )
    return found


def _private(file: Path, name: str, kind: type[_Key]) -> _Key:
    try:
        found = load_pem_private_key(_secret(file, name), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # their text may quote the file
        found = None
    if not isinstance(found, kind):
        raise InputError("is not the private key that it should be", hint=_hint(name), file=file)
    return found


def _belongs(key: Ed25519PrivateKey | X25519PrivateKey, public: str, file: Path, name: str) -> None:
    if key.public_key().public_bytes_raw().hex() != public:
        raise InputError("belongs to another fleet", hint=_hint(name), file=file)
