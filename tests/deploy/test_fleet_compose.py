"""The compose file of a fleet: mounts, names and ports fit, and rules name metrics that exist."""

from __future__ import annotations

import re
import tomllib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from gradsense.coordinator.exporter import StatusCollector
from gradsense.fleet.broker_files import mosquitto_conf
from tests.support.deployed import DEPLOY, ROOT, check, documents, option

HERE = DEPLOY / "compose"
#: What the operator writes into .env.
ENV = {"FLEET": "/srv/gradsense/fleet", "BROKER": "mqtt.example.org", "OWNER": "1000:1000"}


def resolved(value: Any) -> Any:
    """With what .env says in place of ``${NAME}`` and ``${NAME:?message}``."""
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)(?::\?[^}]*)?\}", lambda found: ENV[found[1]], value)
    if isinstance(value, list):
        return [resolved(one) for one in value]
    if isinstance(value, dict):
        return {key: resolved(one) for key, one in value.items()}
    return value


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    (found,) = documents(HERE / "compose.yaml")
    return resolved(found)


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    (found,) = documents(HERE / "alerts.yaml")
    return [rule for group in found["groups"] for rule in group["rules"]]


def mounts(service: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Path inside to path outside, and whether it may be written."""
    found = {}
    for line in service["volumes"]:
        outside, inside, *mode = line.split(":")
        found[inside] = (outside, mode != ["ro"])
    return found


def exported_metrics() -> set[str]:
    """Names as Prometheus sees them."""
    run = defaultdict[str, Any](int, {"refused": {"replay": 1}})
    status = {
        **{"connected": True, "runs": {"home": run}, "counts": Counter(), "link": Counter()},
        **{"unreadable": {}, "shut_out": {}, "turned_away": {}, "contradictions": {}},
    }
    metrics = StatusCollector(lambda: status).collect()
    return {sample.name for metric in metrics for sample in metric.samples}


def test_the_broker_finds_every_path_of_its_configuration(compose: dict[str, Any]) -> None:
    service, fleet = compose["services"]["mosquitto"], Path(ENV["FLEET"])
    conf = mosquitto_conf(fleet / "broker", port=8883, address="", user="op")
    named = {Path(word) for word in conf.split() if word.startswith("/")}
    assert fleet / "broker" / "key.pem" in named
    found = mounts(service)
    for path in named:
        assert found[str(fleet / "broker")] == (str(fleet / "broker"), False)
        assert fleet / "broker" in [path, *path.parents]
    data = fleet / "broker" / "data"
    assert data in named
    assert found[str(data)] == (str(data), True)
    assert service["command"] == ["mosquitto", "-c", f"{fleet}/broker/mosquitto.conf"]
    assert service["ports"] == ["8883:8883"]
    assert service["networks"]["default"]["aliases"] == [ENV["BROKER"]]


def test_the_coordinator_sees_the_fleet_without_its_authority(compose: dict[str, Any]) -> None:
    service = compose["services"]["coordinator"]
    check(service["command"])
    fleet = option(service["command"], "--fleet")
    assert mounts(service) == {fleet: (ENV["FLEET"], True)}
    assert f"{fleet}/ca" in service["tmpfs"]
    assert f"{fleet}/status.json" in service["healthcheck"]["test"][1]
    assert service["user"] == ENV["OWNER"] == compose["services"]["mosquitto"]["user"]


def test_the_coordinators_image_is_built_with_an_extra_that_exists(compose: dict[str, Any]) -> None:
    build = compose["services"]["coordinator"]["build"]
    context = HERE / build["context"]
    assert context.resolve() == ROOT
    assert (context / build["dockerfile"]).is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert build["args"]["EXTRA"] in project["optional-dependencies"]


@pytest.mark.parametrize("name", ["mosquitto", "coordinator", "prometheus"])
def test_services_are_locked_up(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["restart"] == "unless-stopped"


def test_prometheus_asks_the_coordinator_and_reads_the_rules(compose: dict[str, Any]) -> None:
    (settings,) = documents(HERE / "prometheus.yaml")
    port = option(compose["services"]["coordinator"]["command"], "--metrics").rpartition(":")[2]
    (job,) = settings["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"coordinator:{port}"]}]
    service = compose["services"]["prometheus"]
    found = mounts(service)
    (config,) = (word for word in service["command"] if word.startswith("--config.file="))
    inside = Path(config.partition("=")[2])
    for name in (inside.name, *settings["rule_files"]):
        outside, writable = found[str(inside.parent / name)]
        assert (HERE / outside).is_file()
        assert not writable
    assert service["ports"] == ["127.0.0.1:9090:9090"]


def test_rules_name_metrics_that_exist(rules: list[dict[str, Any]]) -> None:
    exported = exported_metrics()
    for rule in rules:
        named = set(re.findall(r"\bgradsense_\w+", rule["expr"]))
        assert named, rule["alert"]
        assert named <= exported, rule["alert"]
        assert rule["for"]
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"]


def test_the_page_tells_of_every_rule_and_every_metric(rules: list[dict[str, Any]]) -> None:
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    for rule in rules:
        assert f"| `{rule['alert']}` |" in text
    for name in exported_metrics():
        short = name.removeprefix("gradsense_coordinator_")
        assert re.search(rf"`{short}[`{{]", text), name


def test_env_of_the_page_is_what_the_file_asks_for(compose: dict[str, Any]) -> None:
    asked = set(re.findall(r"\$\{(\w+)", (HERE / "compose.yaml").read_text(encoding="utf-8")))
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"printf '(FLEET=.*?)'", text)
    assert {part.partition("=")[0] for part in line.split(r"\n") if part} == asked == set(ENV)
