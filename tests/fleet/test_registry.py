"""The registry: who is in force, and that it is still so after a restart."""

from __future__ import annotations

import hashlib
import re
import sqlite3
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.errors import InputError
from gradsense.fleet.registry import MIGRATIONS, Enrolment, Registry, device_id

KEY, OTHER = bytes(range(32)), bytes(32)


def entry(name: str = "a", serial: int = 1, at: float = 100.0, key: bytes = KEY) -> Enrolment:
    return Enrolment(name, "device", serial, issued=at, expires=at + 50, signing_key=key)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry.sqlite3", make=True)


def test_an_id_is_enrolled_once_until_it_is_revoked(registry: Registry) -> None:
    registry.add(entry())
    with pytest.raises(InputError, match="fleet rotate a"):
        registry.add(entry(serial=2))
    assert registry.revoke("a", 110.0).revoked == 110.0
    assert registry.revoke("a", 120.0).revoked == 110.0, "the first time counts"
    registry.add(entry(serial=2, at=130.0))
    assert registry.revocations() == [(1, 110.0)]
    assert [(one.serial, one.state(140.0)) for one in registry.members()] == [(2, "active")]


def test_rotation_puts_a_certificate_in_the_place_of_another(registry: Registry) -> None:
    with pytest.raises(InputError, match="fleet enroll a"):
        registry.rotate(entry())
    registry.add(entry())
    registry.rotate(entry(serial=2, at=110.0, key=OTHER))
    assert registry.revocations() == [(1, 110.0)]
    assert registry.signing_key("a", 111.0) == OTHER
    registry.revoke("a", 112.0)
    with pytest.raises(InputError, match="fleet enroll a"):
        registry.rotate(entry(serial=3))
    assert registry.revocations() == [(1, 110.0), (2, 112.0)]


def test_updates_are_believed_only_from_devices_in_force(registry: Registry) -> None:
    registry.add(entry())
    registry.add(Enrolment("coordinator", "coordinator", 9, 0.0, 1e9, KEY))
    assert registry.signing_key("a", 149.0) == KEY
    assert registry.signing_key("a", 150.0) is None, "expired"
    assert registry.signing_key("b", 120.0) is None
    assert registry.signing_key("coordinator", 120.0) is None
    registry.revoke("a", 130.0)
    assert registry.signing_key("a", 131.0) is None


def test_states_and_fingerprint() -> None:
    one = entry()
    assert [one.state(at) for at in (100.0, 149.9, 150.0)] == ["active", "active", "expired"]
    assert Enrolment("a", "device", 1, 0.0, 1.0, revoked=0.5).state(9.0) == "revoked"
    assert one.fingerprint == hashlib.sha256(KEY).hexdigest()
    assert Enrolment("broker", "broker", 1, 0.0, 1.0).fingerprint == ""


def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    file = tmp_path / "registry.sqlite3"
    first = Registry(file, make=True)
    serial = 2**159 + 7  # as long as serials get, RFC 5280 4.1.2.2
    first.add(entry("a", serial))
    first.add(entry("b", 2))
    first.revoke("b", 105.0)
    again = Registry(file)  # the first is never closed, as after a kill
    assert again.members() == first.members()
    assert again.find("a") == entry("a", serial)
    assert again.revocations() == [(2, 105.0)]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_name_that_never_was_is_not_revoked(registry: Registry) -> None:
    with pytest.raises(InputError, match="never enrolled"):
        registry.revoke("ghost", 1.0)


def test_a_file_of_a_newer_version_or_another_kind_is_refused(tmp_path: Path) -> None:
    newer, other = tmp_path / "newer", tmp_path / "other"
    sqlite3.connect(newer).execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    other.write_bytes(b"no database " * 100)
    with pytest.raises(InputError, match="version"):
        Registry(newer)
    with pytest.raises(InputError, match="no registry"):
        Registry(other)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(max_size=70), st.from_regex(r"[A-Za-z0-9._+#/$ -]{1,70}", fullmatch=True)))
def test_an_id_is_a_topic_level_a_file_name_and_a_common_name_or_refused(text: str) -> None:
    safe = re.fullmatch(r"[A-Za-z0-9._-]+", text) is not None and text.isascii()
    allowed = safe and text[0] not in "._-" and len(text) <= 64
    if allowed and text.lower() not in {"broker", "coordinator"}:
        assert device_id(text) == text
        assert not set(text) & set("+#/$%\"'\\\n\0 {}")
        assert Path(text).name == text
    else:
        with pytest.raises(InputError) as refused:
            device_id(text)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text", ["", "a/b", "..", "+", "#", "%u", "a\n", "ä", "a" * 65, "Coordinator", "BROKER", "-x"]
)
def test_ids_that_would_do_harm(text: str) -> None:
    with pytest.raises(InputError):
        device_id(text)
