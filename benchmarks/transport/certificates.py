"""A throw-away authority and the certificates of both ends, for one benchmark run."""

from __future__ import annotations

import time
from pathlib import Path

from gradsense.fleet.certificates import Authority, IssuedCertificate

HOST = "127.0.0.1"


class Certificates:
    """PEM files in ``folder``, valid for a day: ``ca.pem``, and ``NAME.pem`` and ``NAME.key``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self.authority = folder, folder / "ca.pem"
        self._authority = Authority.create("transport benchmark", time.time())
        self.authority.write_bytes(self._authority.certificate)

    def server(self, name: str) -> tuple[Path, Path]:
        """Certificate and key of who listens on this machine's loopback address."""
        return self._write(name, self._authority.server(("localhost", HOST), time.time(), 1))

    def client(self, name: str) -> tuple[Path, Path]:
        """Certificate and key of who connects."""
        return self._write(name, self._authority.client(name, time.time(), 1))

    def _write(self, name: str, issued: IssuedCertificate) -> tuple[Path, Path]:
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(issued.certificate)
        key.touch(mode=0o600)
        key.write_bytes(issued.key)
        return certificate, key
