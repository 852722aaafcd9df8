"""Both sides find their keys in what enrolment wrote, and refuse what is damaged by name."""

from __future__ import annotations

import shutil
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gradsense.errors import InputError
from gradsense.fleet import enrolment
from gradsense.transport.identity import Identity, of_coordinator, of_device
from gradsense.transport.messages import messages, read, sign_message, unsealed
from gradsense.transport.protocol import MessageHeader


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, now = tmp_path_factory.mktemp("identities"), time.time()
    for name in ("fleet", "other"):
        enrolment.create(folder / name, "mqtt.example.org", 8884, now=now)
        with enrolment.opened(folder / name) as fleet:
            fleet.enroll("cam", folder / f"{name}-cam", now=now, days=30)
    return folder


@pytest.fixture
def site(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made, tmp_path / "site"))


def test_each_side_knows_itself_and_the_broker(made: Path) -> None:
    device, coordinator = of_device(made / "fleet-cam"), of_coordinator(made / "fleet")
    assert (device.name, coordinator.name) == ("cam", "coordinator")
    for side in (device, coordinator):
        assert (side.host, side.port) == ("mqtt.example.org", 8884)
        assert side.tls().minimum_version == ssl.TLSVersion.TLSv1_2
        assert side.tls().check_hostname
        assert side.tls().verify_mode is ssl.CERT_REQUIRED
        assert "Key" not in repr(side)
        assert "key" not in repr(side)
    assert device.coordinator_key == coordinator.signing_key.public_key()


def test_what_one_seals_the_other_opens(made: Path) -> None:
    device, coordinator = of_device(made / "fleet-cam"), of_coordinator(made / "fleet")

    def passes(sender: Identity, recipient: Identity, header: MessageHeader) -> bytes:
        signed = sign_message(header, b"hello", sender.signing_key, seal_for=sender.peer_seal_key)
        (message,) = messages(signed)
        found = read(message, lambda _topic: sender.signing_key.public_key())
        assert found.chunk is not None
        return unsealed(found.chunk.piece, found.properties, recipient.own_seal_key)

    up = MessageHeader("update", "run1", "cam", 7, 1, "0" * 64)
    down = MessageHeader("model", "run1", "coordinator", 0, 1, "0" * 64)
    assert passes(device, coordinator, up) == b"hello"
    assert passes(coordinator, device, down) == b"hello"


def test_only_dates_are_overlooked(made: Path) -> None:
    side = of_device(made / "fleet-cam")
    assert side.tls(check_dates=False).verify_flags == side.tls().verify_flags | 0x200000
    assert side.tls(check_dates=False).verify_mode is ssl.CERT_REQUIRED


def both(site: Path) -> list[tuple[Callable[[Path], Identity], Path, Path]]:
    """Reader, what it is given, and the folder of its keys."""
    device, fleet = site / "fleet-cam", site / "fleet"
    return [
        (of_device, device, device / "device"),
        (of_coordinator, fleet, fleet / "coordinator"),
    ]


@pytest.mark.parametrize(
    "name", ["ca.pem", "cert.pem", "key.pem", "signing-key.pem", "seal-key.pem"]
)
@pytest.mark.parametrize("damage", ["missing", "torn", "huge"])
def test_a_missing_or_damaged_file_is_named(site: Path, name: str, damage: str) -> None:
    for reader, place, keys in both(site):
        file = keys / name
        if damage == "missing":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:60] if damage == "torn" else bytes(1 << 17))
        with pytest.raises(InputError, match=r"\.pem|certificates cannot be used") as refused:
            reader(place).tls()
        assert str(keys) in str(refused.value)
        assert "backup" in str(refused.value) or "bundle" in str(refused.value)


@pytest.mark.parametrize("name", ["key.pem", "signing-key.pem", "seal-key.pem"])
def test_a_key_that_everybody_may_read_is_refused(site: Path, name: str) -> None:
    for reader, place, keys in both(site):
        (keys / name).chmod(0o644)
        with pytest.raises(InputError, match="chmod 600"):
            reader(place)
        (keys / name).chmod(0o640)
        assert reader(place).name


def test_keys_of_another_kind_or_fleet_are_refused(site: Path) -> None:
    for _reader, _place, keys in both(site):
        shutil.copy(keys / "seal-key.pem", keys / "kept.pem")
    for reader, place, keys in both(site):
        shutil.copy(keys / "key.pem", keys / "seal-key.pem")
        with pytest.raises(InputError, match=r"seal-key\.pem: is not the private key"):
            reader(place)
    shutil.copy(site / "other" / "coordinator" / "seal-key.pem", site / "fleet" / "coordinator")
    shutil.copy(site / "other-cam" / "device" / "seal-key.pem", site / "fleet-cam" / "device")
    for reader, place, keys in both(site):
        with pytest.raises(InputError, match=r"seal-key\.pem: belongs to another fleet"):
            reader(place)
        (keys / "kept.pem").rename(keys / "seal-key.pem")
    shutil.copy(site / "other" / "coordinator" / "signing-key.pem", site / "fleet" / "coordinator")
    with pytest.raises(InputError, match=r"signing-key\.pem: belongs to another fleet"):
        of_coordinator(site / "fleet")
    shutil.copy(site / "other-cam" / "device" / "key.pem", site / "fleet-cam" / "device")
    with pytest.raises(InputError, match="certificates cannot be used"):
        of_device(site / "fleet-cam").tls()


def test_a_folder_that_is_no_bundle_or_fleet(site: Path) -> None:
    with pytest.raises(InputError, match=r"device\.json: cannot be read"):
        of_device(site)
    with pytest.raises(InputError, match=r"fleet\.json: cannot be read"):
        of_coordinator(site)
    about = site / "fleet-cam" / "device" / "device.json"
    about.write_text(about.read_text().replace('"port": 8884', '"port": 0'))
    with pytest.raises(InputError, match=r"device\.json: field 'broker\.port'"):
        of_device(site / "fleet-cam")
