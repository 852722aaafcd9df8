"""Alerts as our own JSON, OCSF and ECS, against what the schemas ask for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from gradsense.gateway.alerting import formats
from gradsense.gateway.alerting.alert import SEVERITIES, Alert
from gradsense.gateway.alerting.formats import as_json, iso, milliseconds
from tests.support.sample_alerts import sample

BARE = sample().example.model_copy(
    update={"uid": None, "orig_p": None, "resp_p": None, "proto": None, "service": None}
)
#: Every state, every severity, and an alert of which little is known.
ALERTS = [
    *(sample(state=state) for state in ("open", "update", "closed")),
    *(sample(severity=severity) for severity in SEVERITIES),
    sample(technique=None, ports=(), why=(), example=BARE),
    sample(novelty=2.5, device="2001:db8::1", technique="T9999"),
]

#: OCSF 1.5.0 (github.com/ocsf/ocsf-schema, events/findings/detection_finding.json and what it
#: extends; objects/*.json): required attributes, and of which at least one must be there.
OCSF_REQUIRED = {
    "": ("activity_id", "category_uid", "class_uid", "finding_info", "metadata", "severity_id",
         "time", "type_uid"),
    "finding_info": ("uid",),
    "finding_info.analytic": ("type_id",),
    "metadata": ("product", "version"),
    "device": ("type_id",),
    "remediation": ("desc",),
    "evidences.0.connection_info": ("direction_id",),
    "observables.0": ("type_id",),
}  # fmt: skip
OCSF_ONE_OF = {
    "metadata.product": ("name", "uid"),
    "evidences.0": ("connection_info", "data", "device", "dst_endpoint", "src_endpoint"),
    "evidences.0.src_endpoint": ("ip", "uid", "name", "hostname"),
    "evidences.0.dst_endpoint": ("ip", "uid", "name", "hostname"),
    "device": ("ip", "uid", "name", "hostname"),
}

#: ECS 8.11, written down from its reference: type of each field that we fill; a star is an array.
ECS_FIELDS = {
    "@timestamp": str, "ecs.version": str, "message": str,
    "event.kind": str, "event.category": "*", "event.type": "*", "event.action": str,
    "event.id": str, "event.sequence": int, "event.module": str, "event.dataset": str,
    "event.provider": str, "event.severity": int, "event.risk_score": float, "event.start": str,
    "event.end": str, "event.duration": int,
    "rule.id": str, "rule.name": str, "rule.category": str, "rule.version": str,
    "threat.framework": str, "threat.technique.id": "*", "threat.technique.name": "*",
    "source.address": str, "source.ip": str, "source.port": int,
    "destination.address": str, "destination.ip": str, "destination.port": int,
    "network.type": str, "network.transport": str, "network.protocol": str,
    "host.ip": "*", "related.ip": "*",
    "observer.name": str, "observer.type": str, "observer.vendor": str, "observer.product": str,
    "observer.version": str,
}  # fmt: skip


def at(document: Any, path: str) -> Any:
    for part in filter(None, path.split(".")):
        document = document[int(part) if part.isdigit() else part]
    return document


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value


def test_times() -> None:
    assert iso(1545403816.5) == "2018-12-21T14:50:16.500Z"
    assert iso(0.9996) == "1970-01-01T00:00:01.000Z"
    assert milliseconds(-1.0) == 0
    assert iso(1e30) == "9999-12-31T23:59:59.000Z"


@pytest.mark.parametrize("name", formats.names())
@pytest.mark.parametrize("alert", ALERTS)
def test_every_format_is_one_line_of_json_without_nulls(name: Any, alert: Alert) -> None:
    line = as_json(alert, name)
    assert "\n" not in line
    document = json.loads(line)
    assert document == json.loads(json.dumps(formats.document(alert, name)))
    if name != "gradsense":
        assert [path for path, value in leaves(document) if value is None] == []


def test_our_own_format_reads_back() -> None:
    document = json.loads(as_json(sample(), "gradsense"))
    assert document.pop("first_time") == "2018-12-21T14:50:16.500Z"
    assert document.pop("last_time") == "2018-12-21T14:53:13.250Z"
    assert Alert.model_validate(document) == sample()


@pytest.mark.parametrize("alert", ALERTS)
def test_ocsf_has_what_the_schema_requires(alert: Alert) -> None:
    document = formats.document(alert, "ocsf")
    for path, names in OCSF_REQUIRED.items():
        assert set(names) <= set(at(document, path)), path
    for path, names in OCSF_ONE_OF.items():
        assert set(names) & set(at(document, path)), path
    assert (document["class_uid"], document["category_uid"]) == (2004, 2)
    assert document["type_uid"] == 200400 + document["activity_id"]


@pytest.mark.parametrize("alert", ALERTS)
def test_ocsf_against_the_published_schema(alert: Alert) -> None:
    """Types, enumerations, required and unknown attributes at every depth.

    The package pydantic-ocsf carries the schema's files of version 1.5.0 and makes models of them.
    """
    pytest.importorskip("ocsf", reason="pip install pydantic-ocsf")
    from ocsf.v1_5_0.events import DetectionFinding  # noqa: PLC0415

    document = formats.document(alert, "ocsf")
    assert document["device"]["type_id"] == 7  # IOT, objects/endpoint.json
    # The package does not pass an enumeration on to the objects that extend ``endpoint``.
    document["device"]["type_id"] = 99
    model = DetectionFinding.model_validate(document)
    assert list(unknown(model)) == []


def unknown(model: Any, path: str = "") -> Iterator[str]:
    for name, value in (model.model_extra or {}).items():
        # "data" has the type "json": anything goes. The package makes it an object without fields.
        if not path.endswith(".data"):
            yield f"{path}.{name}={value}"
    for name in type(model).model_fields:
        value = getattr(model, name)
        for inner in value if isinstance(value, list) else [value]:
            if hasattr(inner, "model_extra"):
                yield from unknown(inner, f"{path}.{name}")


def test_ocsf_by_hand() -> None:
    document = formats.document(sample(state="closed", revision=4), "ocsf")
    assert document["type_uid"] == 200403
    assert document["time"] == 1545403993250
    assert document["duration"] == 176750
    assert (document["severity_id"], document["severity"]) == (4, "High")
    assert (document["status_id"], document["status"]) == (99, "Ended")
    assert document["is_alert"] is False
    assert (document["confidence_id"], document["confidence_score"]) == (3, 98)
    assert document["metadata"]["uid"] == "00112233aabbccdd-4"
    assert document["finding_info"]["attacks"] == [
        {"technique": {"uid": "T1498", "name": "Network Denial of Service"}}
    ]
    evidence = document["evidences"][0]
    assert evidence["connection_info"] == {
        "direction_id": 2,
        "direction": "Outbound",
        "protocol_name": "tcp",
        "protocol_num": 6,
        "uid": "CrDn63WjJEmrWGjqf",
    }
    assert evidence["dst_endpoint"] == {"ip": "185.244.25.235", "port": 80}


@pytest.mark.parametrize("alert", ALERTS)
def test_ecs_fields_are_known_and_of_their_type(alert: Alert) -> None:
    for path, value in leaves(formats.document(alert, "ecs")):
        if path.startswith(("gradsense.", "labels.")):
            continue
        kind = ECS_FIELDS[path]
        assert isinstance(value, list if kind == "*" else kind), path


def test_ecs_by_hand() -> None:
    document = formats.document(sample(state="update", revision=2), "ecs")
    assert document["@timestamp"] == "2018-12-21T14:53:13.250Z"
    # event.type of intrusion_detection is one of allowed, denied, info.
    assert document["event"]["category"] == ["intrusion_detection", "network"]
    assert document["event"]["type"] == ["info"]
    assert document["event"]["severity"] == 73
    assert document["event"]["duration"] == 176_750_000_000
    assert document["threat"]["technique"]["id"] == ["T1498"]
    assert document["source"]["port"] == 41040
    assert document["related"]["ip"] == ["185.244.25.235", "192.168.1.195"]
    assert document["labels"]["alert"] == "00112233aabbccdd"
