"""A broker certificate that was revoked is refused, once a device has been given the list."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gradsense.fleet import enrolment
from gradsense.fleet.broker_process import PID_FILE
from gradsense.fleet.certificates import Authority
from gradsense.transport import identity, revocations
from gradsense.transport.connection import Link
from gradsense.transport.identity import Identity
from tests.support.live_coordinator import eventually
from tests.support.tls_broker import TlsBroker


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[TlsBroker]:
    made = TlsBroker(tmp_path)
    yield made
    made.stop()


def rotated(broker: TlsBroker) -> bytes:
    """The broker's new certificate is on disk only: it still shows the old. The new list."""
    (broker.fleet / "broker" / PID_FILE).unlink()  # or it is reloaded, maybe before the old is back
    old = {name: (broker.fleet / "broker" / name).read_bytes() for name in ("cert.pem", "key.pem")}
    with enrolment.opened(broker.fleet) as fleet:
        fleet.rotate_broker(now=time.time())
    for name, body in old.items():  # as a thief has them
        (broker.fleet / "broker" / name).write_bytes(body)
    return (broker.fleet / "coordinator" / revocations.FILE).read_bytes()


def linked(who: Identity) -> Link:
    link = Link(
        who,
        subscriptions=[],
        on_message=lambda arrival: None,
        rng=random.Random(0),
        check_dates=False,
    )
    link.start()
    return link


@pytest.mark.broker
def test_an_open_connection_ends_and_no_other_follows(broker: TlsBroker, tmp_path: Path) -> None:
    who = broker.device("cam")
    assert who.crl is not None, "the bundle has the list of its day"
    link = linked(who)
    eventually(lambda: link.connected)
    crl = rotated(broker)
    assert revocations.newer(crl, who.crl.read_bytes(), who.ca)
    link.trust(revocations.keep(crl, tmp_path))
    eventually(lambda: link.counts.refused.get("broker-revoked"))
    assert not link.connected
    link.stop()


@pytest.mark.broker
def test_the_new_certificate_is_accepted(broker: TlsBroker, tmp_path: Path) -> None:
    who = broker.device("cam")
    with enrolment.opened(broker.fleet) as fleet:
        fleet.rotate_broker(now=time.time() - 5)
    broker.restart()
    crl = (broker.fleet / "coordinator" / revocations.FILE).read_bytes()
    for one in (replace(who, crl=revocations.keep(crl, tmp_path)), broker.coordinator):
        link = linked(one)
        eventually(lambda: link.connected)  # noqa: B023
        link.stop()


def test_only_a_longer_list_of_the_same_authority_is_taken(tmp_path: Path) -> None:
    mine, other = (Authority.create(name, 0.0) for name in ("mine", "other"))
    ca = tmp_path / "ca.pem"
    ca.write_bytes(mine.certificate)
    lists = [mine.revocations([(serial, 0.0) for serial in range(1, n + 1)], 0.0) for n in range(3)]
    assert revocations.newer(lists[0], None, ca)
    assert revocations.newer(lists[2], lists[1], ca)
    assert not revocations.newer(lists[1], lists[1], ca)
    assert not revocations.newer(lists[1], lists[2], ca), "an old list brings nothing back"
    for bad in (other.revocations([(1, 0.0)], 0.0), b"", b"rubbish", lists[2][:-40]):
        with pytest.raises(revocations.BadRevocations):
            revocations.newer(bad, None, ca)
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, body in zip(folders, (lists[2], lists[1]), strict=True):
        folder.mkdir()
        revocations.keep(body, folder)
    assert revocations.held(*folders) == folders[0] / revocations.FILE
    assert revocations.held(tmp_path) is None


@pytest.mark.broker
def test_identities_without_a_list_are_as_before(broker: TlsBroker) -> None:
    bundle = broker.bundle("cam")
    (bundle / "device" / revocations.FILE).unlink()
    assert identity.of_device(bundle).crl is None
