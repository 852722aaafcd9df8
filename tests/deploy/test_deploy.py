"""What is deployed: units, container and settings fit the commands and the package."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # a dependency of transformers

from gradsense.gateway.alerting.sinks.prometheus import PrometheusSettings
from gradsense.gateway.settings import read
from tests.support.deployed import DEPLOY, ROOT, check, commands, known, unit, values

GATEWAY = DEPLOY / "zeek-gateway"
UNITS = sorted(DEPLOY.glob("*.service"))
DOCS = [ROOT / "docs" / f"{name}.md" for name in ("deploy", "edge", "fleet", "sinks")]
PAGES = [*DOCS, *sorted(DEPLOY.rglob("*.md"))]


def gateway_settings(path: Path) -> Any:
    secrets = {"MQTT_PASSWORD": "m", "WEBHOOK_TOKEN": "w"}
    return read(path, environ=secrets)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_run_commands_that_exist(path: Path) -> None:
    assert set(unit(path)) == {"Unit", "Service", "Install"}
    (start,) = values(path, "ExecStart")
    program, *command = shlex.split(start)
    assert Path(program).name == "gradsense"
    assert path.stem == f"gradsense-{command[0]}"
    check(command)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_are_locked_up(path: Path) -> None:
    service = dict(unit(path)["Service"])
    for key in ("NoNewPrivileges", "MemoryDenyWriteExecute", "ProtectHome"):
        assert service[key] == "yes", key
    assert service.get("DynamicUser") == "yes" or service["User"] == "gradsense"
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    # A mistake in the settings must not be tried every five seconds for ever.
    assert (service["Restart"], service["RestartPreventExitStatus"]) == ("on-failure", "2")


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_set_what_the_libraries_need_there(path: Path) -> None:
    environment = dict(
        word.split("=", 1) for line in values(path, "Environment") for word in line.split()
    )
    # Without this, polars dies of MemoryDenyWriteExecute when it is imported.
    assert environment["POLARS_SKIP_CPU_CHECK"] == "1"
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"


def test_the_credentials_of_serve_are_those_that_it_loads() -> None:
    path = DEPLOY / "gradsense-serve.service"
    loaded = {value.split(":")[0] for value in values(path, "LoadCredential")}
    (start,) = values(path, "ExecStart")
    assert loaded == set(re.findall(r"\$\{CREDENTIALS_DIRECTORY\}/(\w+)", start))


@pytest.mark.parametrize("folder", [DEPLOY, GATEWAY], ids=lambda folder: folder.name)
def test_settings_are_accepted(folder: Path) -> None:
    assert gateway_settings(folder / "watch.toml").sink


def containerfile() -> list[str]:
    """Instructions, with continued lines joined and comments left out."""
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip()]


def test_the_container_installs_an_extra_that_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert any('".[${EXTRA}]"' in line for line in containerfile())
    assert "ARG EXTRA=edge" in containerfile()
    assert "edge" in project["optional-dependencies"]


def test_the_container_copies_what_the_ignore_file_lets_through() -> None:
    copied = {
        word.rstrip("/")
        for line in containerfile()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }
    ignore = (DEPLOY / "Containerfile.dockerignore").read_text(encoding="utf-8").split("\n")
    assert copied == {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)


def test_the_container_runs_a_command_that_exists_and_not_as_root() -> None:
    instructions = dict(line.split(" ", 1) for line in containerfile())
    assert instructions["USER"] == "gradsense"
    command = yaml.safe_load(instructions["CMD"])
    assert yaml.safe_load(instructions["ENTRYPOINT"]) == ["gradsense"]
    check(command)


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((GATEWAY / "compose.yaml").read_text(encoding="utf-8"))
    return found


def test_compose_runs_what_the_container_file_builds() -> None:
    service = compose()["services"]["gradsense"]
    context = GATEWAY / service["build"]["context"]
    assert context.resolve() == ROOT
    assert (context / service["build"]["dockerfile"]).is_file()
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    check(service["command"])


def test_compose_mounts_files_and_volumes_that_exist() -> None:
    whole = compose()
    for service in whole["services"].values():
        for source in (volume.split(":")[0] for volume in service["volumes"]):
            made_by_the_operator = source == "./edge"
            if source.startswith("."):
                assert made_by_the_operator or (GATEWAY / source).is_file(), source
            else:
                assert source in whole["volumes"]


def test_compose_gives_the_settings_their_secrets_and_publishes_their_port() -> None:
    service = compose()["services"]["gradsense"]
    settings = gateway_settings(GATEWAY / "watch.toml")
    (metrics,) = (sink for sink in settings.sink if isinstance(sink, PrometheusSettings))
    port = metrics.address.rpartition(":")[2]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    named = set(re.findall(r'"env:(\w+)"', (GATEWAY / "watch.toml").read_text(encoding="utf-8")))
    assert named == set(service["environment"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


def anchors(page: Path) -> set[str]:
    """What GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_pages_have_links_and_commands() -> None:
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    assert sum(len(re.findall(r"\]\([^)]+#[^)]+\)", text)) for text in texts) > 5
    assert sum(len(commands(page)) for page in PAGES) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_text_have_options_that_exist(page: Path) -> None:
    for name, given in commands(page):
        assert given <= known(name)[0], f"{name} {given}"
