"""The manifests for Kubernetes fit together. No cluster is asked."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gradsense.fleet.broker_files import emqx_conf
from tests.support.deployed import DEPLOY, ROOT, check, documents, option

HERE = DEPLOY / "kubernetes"
FILES = sorted(HERE.glob("*.yaml"))
_KUBECTL = shutil.which("kubectl")

Manifest = dict[str, Any]


def manifests(kind: str) -> list[Manifest]:
    return [one for path in FILES for one in documents(path) if one["kind"] == kind]


each_workload = pytest.mark.parametrize(
    "workload", manifests("StatefulSet"), ids=lambda one: one["metadata"]["name"]
)


def named(kind: str, name: str) -> Manifest:
    (found,) = (one for one in manifests(kind) if one["metadata"]["name"] == name)
    return found


def labels(workload: Manifest) -> set[tuple[str, str]]:
    return set(workload["spec"]["template"]["metadata"]["labels"].items())


def containers(workload: Manifest) -> list[Manifest]:
    pod = workload["spec"]["template"]["spec"]
    return [*pod.get("initContainers", []), *pod["containers"]]


def ports(workload: Manifest) -> dict[str, int]:
    return {
        port["name"]: port["containerPort"]
        for container in containers(workload)
        for port in container.get("ports", [])
    }


def environment(workload: Manifest) -> dict[str, Any]:
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def asked(text: str, secret: str) -> set[str]:
    """Keys of a secret that the page makes."""
    (command,) = re.findall(
        rf"create secret generic {secret} (.*)$", text.replace("\\\n", " "), re.MULTILINE
    )
    files = {Path(name).name for name in re.findall(r"--from-file (\S+)", command)}
    return files | set(re.findall(r"--from-literal ([\w-]+)=", command))


RE = re.MULTILINE | re.DOTALL


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")


def test_kustomization_lists_every_file() -> None:
    (settings,) = documents(HERE / "kustomization.yaml")
    optional = {"servicemonitor.yaml"}
    files = {path.name for path in FILES} - {"kustomization.yaml"}
    assert set(settings["resources"]) == files - optional
    (space,) = manifests("Namespace")
    assert settings["namespace"] == space["metadata"]["name"]
    used = {container["image"] for one in manifests("StatefulSet") for container in containers(one)}
    assert {image["name"] for image in settings["images"]} <= used


@pytest.mark.parametrize("service", manifests("Service"), ids=lambda one: one["metadata"]["name"])
def test_services_select_one_workload_and_ports_of_it(service: Manifest) -> None:
    selector = set(service["spec"]["selector"].items())
    (workload,) = (one for one in manifests("StatefulSet") if selector <= labels(one))
    for port in service["spec"]["ports"]:
        # The coordinator knows the one port that devices know, and meets another listener there.
        target = "mqtts" if port["targetPort"] == "coordinator" else port["targetPort"]
        assert port["targetPort"] in ports(workload)
        assert ports(workload)[target] == port["port"]


@each_workload
def test_workload_selects_its_own_pods_and_has_a_headless_service(workload: Manifest) -> None:
    assert set(workload["spec"]["selector"]["matchLabels"].items()) <= labels(workload)
    service = named("Service", workload["spec"]["serviceName"])
    assert service["spec"]["clusterIP"] == "None"
    assert set(service["spec"]["selector"].items()) <= labels(workload)


@each_workload
def test_workload_mounts_volumes_that_it_has_and_all_of_them(workload: Manifest) -> None:
    pod = workload["spec"]["template"]["spec"]
    claims = {claim["metadata"]["name"] for claim in workload["spec"]["volumeClaimTemplates"]}
    has = claims | {volume["name"] for volume in pod.get("volumes", [])}
    used = {one["name"] for c in containers(workload) for one in c["volumeMounts"]}
    assert used == has


def test_workload_probes_ask_ports_that_it_has() -> None:
    asked = [
        probe["httpGet"]["port"] in ports(workload)
        for workload in manifests("StatefulSet")
        for container in containers(workload)
        for probe in (container.get("readinessProbe", {}), container.get("livenessProbe", {}))
        if "httpGet" in probe
    ]
    assert asked
    assert all(asked)


@each_workload
def test_workload_may_run_in_a_restricted_namespace(workload: Manifest) -> None:
    pod = workload["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in containers(workload):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("kind", ["NetworkPolicy", "PodDisruptionBudget", "ServiceMonitor"])
def test_other_selectors_find_something(kind: str) -> None:
    (one,) = manifests(kind)
    spec = one["spec"]
    selector = set((spec.get("selector") or spec["podSelector"])["matchLabels"].items())
    if kind == "ServiceMonitor":
        service = named("Service", "coordinator")
        assert selector <= set(service["metadata"]["labels"].items())
        assert spec["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
    else:
        assert selector <= labels(named("StatefulSet", "emqx"))


def test_the_network_policy_names_ports_of_emqx() -> None:
    (policy,) = manifests("NetworkPolicy")
    named_there = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
    assert named_there == set(ports(named("StatefulSet", "emqx"))) - {"dashboard"}


def test_emqx_listens_where_the_fleets_configuration_says() -> None:
    workload, conf = named("StatefulSet", "emqx"), emqx_conf(8883)
    assert f'bind = "0.0.0.0:{ports(workload)["mqtts"]}"' in conf
    (emqx,) = containers(workload)
    places = {mount["mountPath"]: mount for mount in emqx["volumeMounts"]}
    folder = places["/etc/emqx/gradsense"]["name"]
    files = re.findall(r'"(/\S+)"', conf)
    assert files
    assert all(file.startswith("/etc/emqx/gradsense/") for file in files)
    whole = places["/opt/emqx/etc/emqx.conf"]
    assert (whole["name"], whole["subPath"]) == (folder, "emqx.conf")


def test_devices_have_rates_and_the_coordinator_alone_a_listener_without() -> None:
    workload = named("StatefulSet", "emqx")
    devices, coordinator = re.findall(r"listeners\.ssl\.\w+ \{\n(.*?)^\}", emqx_conf(8883), RE)
    for rate in ("messages_rate", "bytes_rate", "max_conn_rate"):
        assert re.search(rf'^  {rate} = "\d+(MB)?/s"$', devices, re.MULTILINE)
        assert rate not in coordinator
    assert f'bind = "0.0.0.0:{ports(workload)["coordinator"]}"' in coordinator
    assert devices[devices.index("  ssl_options") :] in coordinator, "the same certificates"
    (policy,) = manifests("NetworkPolicy")
    (rule,) = (
        rule for rule in policy["spec"]["ingress"] if {"port": "coordinator"} in rule["ports"]
    )
    (source,) = rule["from"]
    selector = set(source["podSelector"]["matchLabels"].items())
    assert selector <= labels(named("StatefulSet", "coordinator"))
    assert not selector <= labels(workload)
    (public,) = (one for one in manifests("Service") if one["spec"].get("type") == "LoadBalancer")
    assert "coordinator" not in {port["targetPort"] for port in public["spec"]["ports"]}


def test_emqx_has_no_listener_beside_the_fleets() -> None:
    given = environment(named("StatefulSet", "emqx"))
    for kind in ("TCP", "SSL", "WS", "WSS"):
        assert given[f"EMQX_LISTENERS__{kind}__DEFAULT__ENABLE"] == "false"
    # Or the service's own variables, EMQX_PORT and the like, are taken for settings.
    pod = named("StatefulSet", "emqx")["spec"]["template"]["spec"]
    assert pod["enableServiceLinks"] is False


def test_emqx_nodes_find_one_another_by_their_headless_service() -> None:
    workload = named("StatefulSet", "emqx")
    service, given = workload["spec"]["serviceName"], environment(workload)
    domain = f"{service}.$(POD_NAMESPACE).svc.cluster.local"
    assert given["EMQX_CLUSTER__DNS__NAME"] == domain
    assert given["EMQX_NODE__NAME"] == f"emqx@$(POD_NAME).{domain}"
    order = list(given)
    for name in ("POD_NAME", "POD_NAMESPACE"):  # only what stands before is put in
        assert order.index(name) < order.index("EMQX_NODE__NAME")
    assert named("Service", service)["spec"]["publishNotReadyAddresses"] is True


def test_the_page_makes_the_secrets_that_are_asked_for(page: str) -> None:
    workload = named("StatefulSet", "emqx")
    keys = {
        value["secretKeyRef"]["key"]
        for value in environment(workload).values()
        if isinstance(value, dict) and "secretKeyRef" in value
    }
    assert asked(page, "emqx") == keys
    (volume,) = workload["spec"]["template"]["spec"]["volumes"]
    files = re.findall(r'"/etc/emqx/gradsense/([\w.]+)"', emqx_conf(8883))
    assert asked(page, volume["secret"]["secretName"]) == {*files, "emqx.conf"}


def test_one_coordinator_with_a_disk_of_its_own() -> None:
    workload = named("StatefulSet", "coordinator")
    assert workload["spec"]["replicas"] == 1
    (claim,) = workload["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    wait, coordinator = containers(workload)
    check(coordinator["args"])
    fleet = option(coordinator["args"], "--fleet")
    for container in (wait, coordinator):
        assert {"name": claim["metadata"]["name"], "mountPath": fleet} in container["volumeMounts"]
    port = option(coordinator["args"], "--metrics").rpartition(":")[2]
    assert ports(workload) == {"metrics": int(port)}


def test_the_page_ends_the_wait_of_the_coordinator(page: str) -> None:
    wait, _ = containers(named("StatefulSet", "coordinator"))
    (flag,) = re.findall(r"-e (\S+) \]", wait["command"][-1])
    assert f"-c {wait['name']} -- touch {flag}" in page


@pytest.mark.skipif(_KUBECTL is None, reason="needs kubectl")
def test_kustomize_builds_it() -> None:
    assert _KUBECTL is not None
    built = subprocess.run(
        [_KUBECTL, "kustomize", str(HERE)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    assert "image: gradsense-fleet:" in built.stdout
