"""A fleet with its own Mosquitto over TLS on this machine, for tests that need the real thing."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from gradsense.fleet import enrolment
from gradsense.localfleet.local_broker import free_port
from gradsense.transport import identity
from gradsense.transport.identity import Identity
from tests.support.mosquitto import WAIT_S, Broker, program


class TlsBroker(Broker):
    """A new fleet in ``folder`` / fleet, and the broker that its ``mosquitto.conf`` describes.

    Args:
        age_s: how long ago the fleet was made.
    """

    def __init__(self, folder: Path, *, age_s: float = 10.0) -> None:
        self._command = [program()]
        self.port = free_port()
        self.fleet, self._bundles = folder / "fleet", folder / "bundles"
        enrolment.create(self.fleet, None, self.port, now=time.time() - age_s)
        self._command += ["-c", str(self.fleet / "broker" / "mosquitto.conf")]
        self.start()

    @property
    def coordinator(self) -> Identity:
        return identity.of_coordinator(self.fleet)

    def bundle(self, name: str, run: Path | None = None) -> Path:
        """The bundle of a device, which is enrolled the first time."""
        out = self._bundles / name
        if not out.exists():
            with enrolment.opened(self.fleet) as fleet:
                fleet.enroll(name, out, now=time.time(), days=30, run=run)
        return out

    def device(self, name: str, run: Path | None = None) -> Identity:
        return identity.of_device(self.bundle(name, run))

    def revoke(self, name: str) -> None:
        with enrolment.opened(self.fleet) as fleet:
            fleet.revoke(name, now=time.time())
        self.process.send_signal(signal.SIGHUP)

    def restart(self, *, kill: bool = False) -> None:
        """End it, orderly or by SIGKILL, and start it again."""
        self.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        self.process.wait(WAIT_S)
        self.start()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)
