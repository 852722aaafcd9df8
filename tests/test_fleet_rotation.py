"""``fleet rotate --broker`` while a device's agent works: it learns that the old key is no good."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gradsense.transport import revocations
from tests.support import mosquitto
from tests.support.fleet_rig import Rig

pytestmark = [pytest.mark.broker, pytest.mark.slow]

FLOWS, WAIT_S = 180, 60.0


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Broker, coordinator and one device at work."""
    mosquitto.program()
    with Rig(tmp_path / "rig", 1, flows=FLOWS) as made:
        made.prepare()
        made.start()
        yield made


def settled(rig: Rig) -> bool:
    """Whether all that was played is acknowledged, and the device has the newest model."""
    names = [site.name for site in rig.sites]
    return rig.wait(lambda: rig.audit().told and rig.presence().current(names), WAIT_S) is not None


def serve_with(rig: Rig, folder: Path) -> None:
    """End the broker, and start it with the certificate and the key of a folder."""
    broker = rig.process("broker")
    broker.terminate()
    broker.wait()
    for name in ("cert.pem", "key.pem"):
        shutil.copy(folder / name, rig.fleet / "broker" / name)
    rig.start_broker()


def refusals(rig: Rig, name: str) -> int:
    return (rig.out / f"{name}.log").read_text().count("certificate revoked")


def test_a_running_agent_learns_that_the_broker_was_given_a_new_key(
    rig: Rig, tmp_path: Path
) -> None:
    (site,) = rig.sites
    rig.feed(site, 60)
    assert settled(rig)
    stolen = shutil.copytree(rig.fleet / "broker", tmp_path / "stolen")
    old = x509.load_pem_x509_certificate((stolen / "cert.pem").read_bytes())
    learned = site.folder / "state" / revocations.FILE
    assert not learned.exists()

    rotate = ["fleet", "rotate", "--broker", "--fleet", str(rig.fleet)]
    subprocess.run([sys.executable, "-m", "gradsense", *rotate], check=True)
    assert rig.wait(learned.exists, WAIT_S) is not None, "by the open connection"
    assert revocations.revoked(old.public_bytes(Encoding.DER), learned.read_bytes())
    rig.feed(site, 60)
    assert settled(rig), "by a new connection, to the new certificate"

    (mine := tmp_path / "mine").mkdir()
    for name in ("cert.pem", "key.pem"):
        shutil.copy(rig.fleet / "broker" / name, mine / name)
    serve_with(rig, stolen)
    rig.feed(site, FLOWS)
    parties = (site.name, "coordinator")
    assert rig.wait(lambda: all(refusals(rig, one) for one in parties), WAIT_S) is not None
    assert not rig.audit().told
    serve_with(rig, mine)
    assert settled(rig), "what waited meanwhile is not lost"
    assert (rig.audit().lost, rig.audit().twice) == (0, 0)
