"""The fleet folder: made once, and changed by enrolling, revoking and rotating.

    fleet.json          id of the fleet, address of its broker, public keys
    registry.sqlite3    every certificate that was issued, and public signing keys
    ca/                 ca.pem and ca-key.pem, the one secret that must be backed up
    coordinator/        cert.pem, key.pem, ca.pem, signing-key.pem; seal-key.pem, its own, and
                        fleet-seal-key.pem, which every device gets
    broker/             what the broker reads: certificates, crl.pem, configuration, access

Every change holds the folder's lock. It is written to the registry first, then to files, each by
temporary file, fsync and rename; what a killed command left out is made good by the next one.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import pwd
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ValidationError

from gradsense.errors import GradsenseError, InputError
from gradsense.fleet import broker_files, broker_process, device_bundle, jobs
from gradsense.fleet.certificates import Authority, IssuedCertificate, seal_pair, signing_pair
from gradsense.fleet.device_bundle import write_files
from gradsense.fleet.registry import Enrolment, Registry, Role, device_id
from gradsense.storage import files
from gradsense.transport import revocations
from gradsense.transport.identity import Address, DeviceFile, FleetFile
from gradsense.transport.protocol import COORDINATOR

#: The broker's and the coordinator's certificates, two years.
SERVICE_DAYS = 730
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", re.ASCII)


class Fleet:
    """A fleet folder, opened with its lock held by ``opened``."""

    def __init__(self, folder: Path, about: FleetFile, authority: Authority) -> None:
        self.folder, self.about = folder, about
        self.registry = Registry(folder / "registry.sqlite3")
        self._authority = authority

    def enroll(
        self, device: str, out: Path, *, now: float, days: int, run: Path | None = None
    ) -> Enrolment:
        """Let a device in and write its bundle to ``out``: a .zip, or a folder.

        Args:
            run: ``device_bundle.run_start`` of what the device takes part in, to be put under
                ``run/``; None: the bundle says who the device is, and no more.

        Raises:
            InputError: the id cannot be used or is in force, ``out`` is there, or ``run`` holds no
                job.
            GradsenseError: the bundle could not be written.
        """
        return self._bundle(device_id(device), out, self.registry.add, now=now, days=days, run=run)

    def rotate(
        self, device: str, out: Path, *, now: float, days: int, run: Path | None = None
    ) -> Enrolment:
        """New keys and a new certificate for a device; the old certificate is revoked.

        Raises: as ``enroll``, but the id must be in force.
        """
        return self._bundle(
            device_id(device), out, self.registry.rotate, now=now, days=days, run=run
        )

    def revoke(self, device: str, *, now: float, keep: bool = False) -> Enrolment:
        """Shut a device out. Doing so again is no error and writes the broker's files again.

        Args:
            keep: what it contributed to the fleet's models; else the coordinator takes it back.

        Raises:
            InputError: no such device.
        """
        entry = self.registry.revoke(device, now, keep=keep)
        self.publish_access(now=now)
        return entry

    def rotate_broker(self, *, now: float) -> Enrolment:
        """A new key and certificate for the broker, and its configuration afresh."""
        issued = _of_broker(self._authority, self.about, now)
        entry = _entry("broker", "broker", issued, now)
        self.registry.rotate(entry)
        write_files(self.folder / "broker", _broker_files(self.folder, self.about, issued))
        self.publish_access(now=now)
        return entry

    def rotate_coordinator(self, *, now: float) -> Enrolment:
        """A new key and certificate for the coordinator.

        Its signing and seal keys stay: every device holds the public parts and believes no other.
        """
        issued = self._authority.issue(COORDINATOR, now, SERVICE_DAYS)
        public = bytes.fromhex(self.about.coordinator_key)
        entry = _entry(COORDINATOR, "coordinator", issued, now, public)
        self.registry.rotate(entry)
        write_files(self.folder / "coordinator", _pair(issued))
        self.publish_access(now=now)
        return entry

    def _bundle(
        self,
        device: str,
        out: Path,
        register: Callable[[Enrolment], None],
        *,
        now: float,
        days: int,
        run: Path | None,
    ) -> Enrolment:
        job = None if run is None else jobs.read(run)
        issued, signing = self._authority.issue(device, now, days), signing_pair()
        entry = _entry(device, "device", issued, now, signing.public)
        entry = replace(entry, run="" if job is None else job.run)
        about = DeviceFile(device=device, **self.about.model_dump())
        try:
            files = {
                "device.json": _json(about),
                "ca.pem": self._authority.certificate,
                **_pair(issued),
                "signing-key.pem": signing.private,
                revocations.FILE: self._brokers(now),
                "seal-key.pem": (self.folder / "coordinator" / "fleet-seal-key.pem").read_bytes(),
            }
            device_bundle.prepare(out)
            register(entry)
            device_bundle.write(out, files, run)
        except OSError as error:
            raise GradsenseError(
                f"{out}: the bundle could not be written ({error.strerror or error}); if fleet "
                f"list shows {device}, gradsense fleet rotate {device} makes another"
            ) from error
        self.publish_access(now=now)
        return entry

    def _brokers(self, now: float) -> bytes:
        """The list of revoked broker certificates, which every device keeps."""
        return self._authority.revocations(self.registry.revocations("broker"), now)

    def publish_access(self, *, now: float) -> None:
        """Bring what the broker reads about members and runs up to date."""
        access = _access(self.folder, self._authority, self.registry, now)
        write_files(self.folder / "broker", access)
        write_files(self.folder / "coordinator", {revocations.FILE: self._brokers(now)})
        broker_process.reload(self.folder)


def create(folder: Path, host: str | None, port: int, *, now: float) -> FleetFile:
    """Make a fleet folder, whole or not at all.

    Args:
        host: name or address that devices reach the broker by; None for this machine only.

    Raises:
        InputError: ``folder`` is there or cannot be made, or ``host`` is no host.
    """
    folder = folder.absolute()
    if folder.exists() or folder.is_symlink():
        raise InputError("is there already, nothing was changed", hint="give another", file=folder)
    signing, identifier = signing_pair(), secrets.token_hex(8)
    address = Address(host=_host(host or "localhost"), port=port)
    own, shared = seal_pair(), seal_pair()
    about = FleetFile(
        fleet=identifier,
        broker=address,
        coordinator_key=signing.public.hex(),
        coordinator_seal_key=own.public.hex(),
        fleet_seal_key=shared.public.hex(),
    )
    secret = {
        "signing-key.pem": signing.private,
        "seal-key.pem": own.private,
        "fleet-seal-key.pem": shared.private,
    }
    try:
        with files.replacing(folder) as fresh:
            fresh.chmod(0o700)
            authority = Authority.create(about.fleet, now)
            ca = {"ca.pem": authority.certificate}
            server = _of_broker(authority, about, now)
            client = authority.issue(COORDINATOR, now, SERVICE_DAYS)
            registry = Registry(fresh / "registry.sqlite3", make=True)
            registry.add(_entry("broker", "broker", server, now))
            registry.add(_entry(COORDINATOR, "coordinator", client, now, signing.public))
            write_files(fresh / "ca", {**ca, "ca-key.pem": authority.key})
            none = {revocations.FILE: authority.revocations([], now)}
            write_files(fresh / "coordinator", {**ca, **_pair(client), **secret, **none})
            write_files(fresh / "broker", {**ca, **_broker_files(folder, about, server)})
            write_files(fresh / "broker", _access(fresh, authority, registry, now))
            (fresh / "broker" / "data").mkdir(mode=0o700)
            files.write(fresh / "fleet.json", _json(about))
            registry.close()
    except OSError as error:
        raise InputError(
            f"cannot be written ({error.strerror or error})",
            hint="give a folder that you may write",
            file=folder,
        ) from error
    return about


@contextmanager
def opened(folder: Path) -> Iterator[Fleet]:
    """A fleet folder to change; another command waits until this one is done.

    Raises:
        InputError: it is no fleet folder, or is damaged.
    """
    folder = folder.absolute()
    about = read(folder)
    try:
        authority = Authority(
            (folder / "ca" / "ca.pem").read_bytes(), (folder / "ca" / "ca-key.pem").read_bytes()
        )
        (folder / "lock").touch(mode=0o600)
        guard = (folder / "lock").open("a")
    except OSError as error:
        raise InputError(
            f"the authority cannot be used ({error.strerror or error})",
            hint="restore the folder from its backup, or run as its owner",
            file=folder,
        ) from error
    with guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        fleet = Fleet(folder, about, authority)
        try:
            yield fleet
        finally:
            fleet.registry.close()


def read(folder: Path) -> FleetFile:
    """What ``fleet.json`` of a fleet folder says.

    Raises:
        InputError: there is none, or it is damaged.
    """
    file = folder / "fleet.json"
    try:
        return FleetFile.model_validate_json(file.read_bytes())
    except OSError as error:
        raise InputError(
            f"no fleet can be read there ({error.strerror or error})",
            hint="gradsense fleet init --fleet DIR makes one",
            file=folder,
        ) from error
    except ValidationError as error:
        raise InputError(
            "is no fleet.json of this gradsense", hint="restore its backup", file=file
        ) from error


def members(folder: Path) -> list[Enrolment]:
    """The newest certificate of every member, without waiting for the lock.

    Raises:
        InputError: it is no fleet folder, or is damaged.
    """
    read(folder)
    registry = Registry(folder / "registry.sqlite3")
    try:
        return registry.members()
    finally:
        registry.close()


def _entry(
    name: str, role: Role, issued: IssuedCertificate, now: float, signing_key: bytes | None = None
) -> Enrolment:
    return Enrolment(name, role, issued.serial, now, issued.expires, signing_key)


def _pair(issued: IssuedCertificate) -> dict[str, bytes]:
    return {"cert.pem": issued.certificate, "key.pem": issued.key}


def _broker_files(folder: Path, about: FleetFile, issued: IssuedCertificate) -> dict[str, bytes]:
    port, here = about.broker.port, about.broker.host == "localhost"
    conf = broker_files.mosquitto_conf(
        folder / "broker",
        port=port,
        address="127.0.0.1" if here else "",
        user=pwd.getpwuid(os.getuid()).pw_name,
    )
    return {
        **_pair(issued),
        "mosquitto.conf": conf.encode(),
        "emqx.conf": broker_files.emqx_conf(port).encode(),
    }


def publish_rules(folder: Path, registry: Registry, now: float) -> bool:
    """Bring the broker's access rules alone up to date, without the authority's key.

    Returns:
        False, and nothing was written: another command holds the folder's lock.
    """
    with (folder / "lock").open("a") as guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        write_files(folder / "broker", _rules(folder, registry, now))
    return True


def _access(folder: Path, authority: Authority, registry: Registry, now: float) -> dict[str, bytes]:
    every = authority.revocations(registry.revocations(), now)
    return {"crl.pem": every, **_rules(folder, registry, now)}


def _rules(folder: Path, registry: Registry, now: float) -> dict[str, bytes]:
    runs = sorted(path.name for path in (folder / jobs.RUNS).glob("[!.]*"))
    access = broker_files.Access(runs, registry.devices(), registry.shut_out(now))
    return {
        "acl": broker_files.mosquitto_acl(access).encode(),
        "acl.conf": broker_files.emqx_acl(access).encode(),
    }


def _of_broker(authority: Authority, about: FleetFile, now: float) -> IssuedCertificate:
    host = about.broker.host
    hosts = ("localhost", "127.0.0.1") if host == "localhost" else (host,)
    return authority.issue("broker", now, SERVICE_DAYS, hosts=hosts)


def _host(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        if _HOST.fullmatch(text) is None:
            raise InputError(
                "is no host name or address",
                hint="give the name that devices reach the broker by",
                field=f"--broker {text[:80]!r}",
            ) from None
        return text


def _json(model: BaseModel) -> bytes:
    return (json.dumps(model.model_dump(), indent=2) + "\n").encode()
