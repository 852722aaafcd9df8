"""``gradsense fleet``: what it writes, says, refuses, and never shows."""

from __future__ import annotations

import json
import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gradsense.fleet import enrolment
from gradsense.fleet.jobs import Job

Command = Callable[..., object]
BUNDLE = {
    "device.json",
    "ca.pem",
    "cert.pem",
    "key.pem",
    "signing-key.pem",
    "seal-key.pem",
    "crl.pem",
}


@pytest.fixture
def run(gradsense: Command, tmp_path: Path) -> Callable[..., str]:
    """A fleet subcommand that must succeed; returns what it printed, which is never a secret."""
    root = tmp_path / "fleet"

    def call(command: str, *args: object) -> str:
        outcome = gradsense("fleet", command, "--fleet", root, *args)
        assert outcome.code == 0, outcome.err  # type: ignore[attr-defined]
        said: str = outcome.out + outcome.err  # type: ignore[attr-defined]
        assert "PRIVATE KEY" not in said
        return str(outcome.out)  # type: ignore[attr-defined]

    return call


@pytest.fixture
def root(tmp_path: Path, run: Callable[..., str]) -> Path:
    run("init")
    return tmp_path / "fleet"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_nobody_else_may_read_a_fleet_or_a_bundle(
    run: Callable[..., str], root: Path, tmp_path: Path
) -> None:
    run("enroll", "a", "--out", tmp_path / "a")
    run("enroll", "b", "--out", tmp_path / "b.zip")
    run("revoke", "b")
    for path in (root, *root.rglob("*"), tmp_path / "a" / "device", tmp_path / "b.zip"):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    for path in (tmp_path / "a" / "device").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert [path for path in tmp_path.rglob("*") if path.name.endswith((".new", ".old"))] == []


def test_a_bundle_holds_all_that_a_device_needs_and_the_fleet_keeps_no_copy(
    run: Callable[..., str], root: Path, tmp_path: Path
) -> None:
    said = json.loads(run("enroll", "porch-cam", "--out", tmp_path / "one.zip", "--json"))
    with zipfile.ZipFile(tmp_path / "one.zip") as bundle:
        assert set(bundle.namelist()) == {f"device/{name}" for name in BUNDLE}
        assert {member.external_attr >> 16 for member in bundle.infolist()} == {0o600}
        files = {name: bundle.read(f"device/{name}") for name in BUNDLE}
    about, fleet = json.loads(files["device.json"]), enrolment.read(root)
    assert about == {
        "format": 1,
        "fleet": fleet.fleet,
        "broker": {"host": "localhost", "port": 8883},
        "coordinator_key": fleet.coordinator_key,
        "coordinator_seal_key": fleet.coordinator_seal_key,
        "fleet_seal_key": fleet.fleet_seal_key,
        "device": "porch-cam",
    }
    for name, public in (
        ("signing-key.pem", fleet.coordinator_key),
        ("seal-key.pem", fleet.coordinator_seal_key),
        ("fleet-seal-key.pem", fleet.fleet_seal_key),
    ):
        secret = load_pem_private_key((root / "coordinator" / name).read_bytes(), None)
        assert secret.public_key().public_bytes_raw().hex() == public  # type: ignore
    assert files["seal-key.pem"] == (root / "coordinator" / "fleet-seal-key.pem").read_bytes()
    kept = b"".join(contents(root).values())
    for name in ("key.pem", "signing-key.pem"):
        assert files[name].splitlines()[1] not in kept
    mine = load_pem_private_key(files["signing-key.pem"], None).public_key()
    with enrolment.opened(root) as opened:
        found = opened.registry.find("porch-cam")
    assert found is not None
    assert found.signing_key == mine.public_bytes_raw()  # type: ignore[union-attr]
    assert said["signing_key"] == found.fingerprint
    assert said["state"] == "active"


@pytest.fixture
def start(root: Path) -> Callable[[str], Path]:
    """Makes a run that devices may be given."""

    def make(name: str) -> Path:
        folder = root / "runs" / name / "start"
        (folder / "edge").mkdir(parents=True)
        (folder / "job.json").write_text(Job(run=name, labels=("Benign", "DDoS")).text())
        (folder / "edge" / "model.onnx").write_bytes(name.encode() * 1000)
        return folder

    return make


def unpacked(bundle: Path, folder: str) -> dict[str, bytes]:
    """The files of one folder of a bundle."""
    if bundle.is_dir():
        found = contents(bundle / folder)
        return {str(Path(name).relative_to(bundle)): body for name, body in found.items()}
    with zipfile.ZipFile(bundle) as archive:
        assert {member.external_attr >> 16 for member in archive.infolist()} == {0o600}
        return {name: archive.read(name) for name in archive.namelist() if name.startswith(folder)}


@pytest.mark.parametrize("out", ["bundle", "bundle.zip"])
def test_a_bundle_holds_what_the_run_starts_from(
    run: Callable[..., str], start: Callable[[str], Path], tmp_path: Path, out: str
) -> None:
    start("one")
    wanted = {"run/job.json": b"", "run/edge/model.onnx": b"one" * 1000}
    assert "fleet run" not in run("enroll", "a", "--out", tmp_path / f"first-{out}")
    found = unpacked(tmp_path / f"first-{out}", "run")
    assert set(found) == set(wanted)
    assert found["run/edge/model.onnx"] == wanted["run/edge/model.onnx"]
    assert len(unpacked(tmp_path / f"first-{out}", "device")) == len(BUNDLE)
    start("two")
    run("rotate", "a", "--run", "two", "--out", tmp_path / out)
    assert unpacked(tmp_path / out, "run")["run/edge/model.onnx"] == b"two" * 1000
    for path in (tmp_path / out).rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_without_a_run_the_note_says_how_to_add_one(
    run: Callable[..., str], root: Path, tmp_path: Path
) -> None:
    assert "gradsense fleet run NAME" in run("enroll", "a", "--out", tmp_path / "a")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["device"]


def test_which_run_is_meant_must_be_clear(
    gradsense: Command, root: Path, start: Callable[[str], Path], tmp_path: Path
) -> None:
    def complain(*args: object, parts: tuple[str, ...]) -> None:
        outcome = gradsense("fleet", "enroll", "a", "--fleet", root, "--out", tmp_path / "a", *args)
        outcome.complaint(*parts)  # type: ignore[attr-defined]
        assert not (tmp_path / "a" / "device").exists()

    complain("--run", "ghost", parts=("is no run", "has none", "fleet run"))
    one = start("one")
    start("two")
    complain(parts=("several runs: one, two", "--run"))
    complain("--run", "../runs/one", parts=("is no run", "has one, two"))
    (one / "job.json").write_text("{}")
    complain("--run", "one", parts=("job.json", "field 'run'"))
    (tmp_path / "a" / "run").mkdir(parents=True)
    complain("--run", "two", parts=("is there already",))


def test_the_life_of_a_device(run: Callable[..., str], root: Path, tmp_path: Path) -> None:
    def state() -> dict[str, tuple[str, str]]:
        rows = json.loads(run("list", "--json"))
        return {row["id"]: (row["state"], row["serial"]) for row in rows}

    assert set(state()) == {"broker", "coordinator"}
    run("enroll", "a", "--out", tmp_path / "1.zip")
    first = state()["a"]
    run("rotate", "a", "--out", tmp_path / "2.zip")
    second = state()["a"]
    assert first[0] == second[0] == "active"
    assert first[1] != second[1]
    assert "SIGHUP" in run("revoke", "a")
    assert state()["a"] == ("revoked", second[1])
    run("enroll", "a", "--out", tmp_path / "3.zip")
    assert state()["a"][0] == "active"
    assert "porch" not in run("list")
    assert state()["a"][1] in run("list")


def test_parts_of_the_fleet_are_rotated_and_the_coordinators_signing_key_stays(
    run: Callable[..., str], root: Path
) -> None:
    before, about = contents(root), enrolment.read(root)
    run("rotate", "--broker")
    run("rotate", "--coordinator")
    after = contents(root)
    changed = {
        str(Path(name).relative_to(root))
        for name in after
        if name in before and after[name] != before[name] and "sqlite" not in name
    }
    assert changed == {
        *("broker/cert.pem", "broker/key.pem", "broker/crl.pem"),
        *("coordinator/cert.pem", "coordinator/key.pem", "coordinator/crl.pem"),
    }
    assert enrolment.read(root) == about


def test_a_broker_that_runs_already_is_shown_its_rules(run: Callable[..., str]) -> None:
    said = run("init", "--broker", "mqtt.example.org", "--port", "8884")
    assert "pattern write gradsense/v2/+/up/%u/update" in said
    assert '{allow, all, {publish, [{qos, 1}]}, ["gradsense/v2/+/up/' in said


def test_a_fleet_that_is_there_is_not_touched(
    gradsense: Command, root: Path, tmp_path: Path
) -> None:
    before = contents(root)
    outcome = gradsense("fleet", "init", "--fleet", root)
    outcome.complaint("is there already", "nothing was changed")  # type: ignore[attr-defined]
    assert contents(root) == before
    (tmp_path / "taken").write_text("x")
    outcome = gradsense("fleet", "init", "--fleet", tmp_path / "taken")
    outcome.complaint("is there already")  # type: ignore[attr-defined]


def test_what_is_refused(
    gradsense: Command, run: Callable[..., str], root: Path, tmp_path: Path
) -> None:
    def complain(*args: object, parts: tuple[str, ...]) -> None:
        before = json.loads(run("list", "--json"))
        outcome = gradsense("fleet", *args, "--fleet", root)
        outcome.complaint(*parts)  # type: ignore[attr-defined]
        assert json.loads(run("list", "--json")) == before

    run("enroll", "a", "--out", tmp_path / "a.zip")
    complain("enroll", "a", "--out", tmp_path / "b.zip", parts=("is enrolled", "fleet rotate a"))
    complain("enroll", "b", "--out", tmp_path / "a.zip", parts=("is there already", "--out"))
    complain("enroll", "../b", parts=("is no id", "A-Z"))
    complain("enroll", "coordinator", parts=("part of the fleet",))
    complain("enroll", "b", "--days", "9999", "--out", tmp_path / "b.zip", parts=("authority",))
    complain("revoke", "ghost", parts=("never enrolled",))
    complain("revoke", "broker", parts=("part of the fleet",))
    complain("rotate", "ghost", "--out", tmp_path / "g.zip", parts=("not enrolled",))
    complain("rotate", parts=("--broker or --coordinator",))
    complain("rotate", "a", "--broker", parts=("one thing",))
    assert not (tmp_path / "b.zip").exists()
    nowhere = gradsense("fleet", "list", "--fleet", tmp_path / "none")
    nowhere.complaint("no fleet", "fleet init")  # type: ignore[attr-defined]
    bad = gradsense("fleet", "init", "--fleet", tmp_path / "new", "--broker", "a b\n")
    bad.complaint("no host name", "--broker")  # type: ignore[attr-defined]
    assert not (tmp_path / "new").exists()


def test_a_bundle_that_cannot_be_written_says_what_to_do(
    gradsense: Command, run: Callable[..., str], root: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    outcome = gradsense(
        "fleet", "enroll", "a", "--fleet", root, "--out", tmp_path / "file" / "a.zip"
    )
    outcome.complaint("could not be written", "fleet rotate a", code=1)  # type: ignore[attr-defined]
    assert "a" not in {row["id"] for row in json.loads(run("list", "--json"))}


def test_a_damaged_authority_is_named_and_not_quoted(gradsense: Command, root: Path) -> None:
    (root / "ca" / "ca-key.pem").write_text("-----BEGIN PRIVATE KEY-----\nhush\n")
    outcome = gradsense("fleet", "revoke", "a", "--fleet", root)
    outcome.complaint("do not belong together", "backup")  # type: ignore[attr-defined]
    assert "hush" not in outcome.err  # type: ignore[attr-defined]
    (root / "fleet.json").write_text("{}")
    outcome = gradsense("fleet", "list", "--fleet", root)
    outcome.complaint("fleet.json", "backup")  # type: ignore[attr-defined]


EMPTIED: dict[str, Callable[[Path], object]] = {
    "emptied": lambda file: file.write_bytes(b""),
    "missing": Path.unlink,
    "cut to a page": lambda file: file.write_bytes(file.read_bytes()[:4096]),
    "cut in a page": lambda file: file.write_bytes(file.read_bytes()[:700]),
}


@pytest.mark.parametrize("how", EMPTIED)
def test_a_registry_that_a_full_disk_emptied_is_no_empty_fleet(
    how: str, gradsense: Command, root: Path, tmp_path: Path
) -> None:
    """Else nobody would be enrolled, and whoever is revoked would be let in again."""
    EMPTIED[how](root / "registry.sqlite3")
    before, access = contents(root), contents(root / "broker")
    for command in (
        *(("fleet", "list"), ("fleet", "enroll", "a", "--out", tmp_path / "a.zip")),
        *(("fleet", "revoke", "a"), ("fleet", "rotate", "--broker")),
        *(("fleet", "backup", tmp_path / "copy"), ("coordinator",)),
    ):
        outcome = gradsense(*command, "--fleet", root)
        outcome.complaint("registry.sqlite3", "backup")  # type: ignore[attr-defined]
    assert contents(root / "broker") == access
    name = str(root / "registry.sqlite3")
    assert contents(root).get(name) == before.get(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fleet"]


def test_without_the_library_it_says_how_to_get_it(
    gradsense: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [
        name
        for name in sys.modules
        if name.startswith(("gradsense.fleet.", "gradsense.coordinator."))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    outcome = gradsense("fleet", "init", "--fleet", tmp_path / "new")
    outcome.complaint("cryptography", "gradsense[fleet]")  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", ["init", "enroll", "revoke", "rotate", "list"])
def test_help_has_an_example(gradsense: Command, command: str) -> None:
    outcome = gradsense("fleet", command, "--help")
    assert outcome.code == 0  # type: ignore[attr-defined]
    assert f"gradsense fleet {command}" in outcome.out  # type: ignore[attr-defined]
