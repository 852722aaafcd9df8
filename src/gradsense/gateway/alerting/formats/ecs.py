"""Alerts in Elastic Common Schema 8.11 (https://www.elastic.co/guide/en/ecs/8.11), nested."""

from __future__ import annotations

from typing import Any

import gradsense
from gradsense.gateway.alerting.alert import TECHNIQUES, Alert
from gradsense.gateway.alerting.formats import iso, milliseconds, present

VERSION = "8.11.0"

#: As Elastic's own rules number them.
_SEVERITIES = {"info": 1, "low": 21, "medium": 47, "high": 73, "critical": 99}


def document(alert: Alert) -> dict[str, Any]:
    """One event of kind ``alert``; all messages of one alert share ``labels.alert``.

    What ECS has no field for is under ``gradsense``.
    """
    flow = alert.example
    event: dict[str, Any] = {
        "@timestamp": iso(alert.last_ts),
        "ecs": {"version": VERSION},
        "message": alert.sentence,
        "event": {
            "kind": "alert",
            "category": ["intrusion_detection", "network"],
            "type": ["info"],
            "action": f"alert-{alert.state}",
            "id": alert.key,
            "sequence": alert.revision,
            "module": "gradsense",
            "dataset": "gradsense.alert",
            "provider": alert.sensor,
            "severity": _SEVERITIES[alert.severity],
            "risk_score": round(alert.probability * 100, 1),
            "start": iso(alert.first_ts),
            "end": iso(alert.last_ts),
            "duration": (milliseconds(alert.last_ts) - milliseconds(alert.first_ts)) * 1_000_000,
        },
        "rule": {
            "id": alert.label,
            "name": alert.title,
            "category": "model",
            "version": alert.model,
        },
        "source": _endpoint(flow.orig_h, flow.orig_p),
        "destination": _endpoint(flow.resp_h, flow.resp_p),
        "network": _network(alert),
        "host": {"ip": [alert.device]},
        "related": {"ip": sorted({alert.device, flow.orig_h, flow.resp_h})},
        "observer": {
            "name": alert.sensor,
            "type": "ids",
            "vendor": "gradsense",
            "product": "gradsense",
            "version": gradsense.__version__,
        },
        "labels": {"alert": alert.id, "class": alert.label, "state": alert.state},
        "gradsense": _own(alert),
    }
    if alert.technique is not None:
        technique: dict[str, Any] = {"id": [alert.technique]}
        if alert.technique in TECHNIQUES:
            technique["name"] = [TECHNIQUES[alert.technique]]
        event["threat"] = {"framework": "MITRE ATT&CK", "technique": technique}
    return event


def _endpoint(address: str, port: int | None) -> dict[str, Any]:
    return present({"address": address, "ip": address, "port": port})


def _network(alert: Alert) -> dict[str, Any]:
    flow = alert.example
    return present(
        {
            "type": "ipv6" if ":" in flow.resp_h else "ipv4",
            "transport": flow.proto.lower() if flow.proto else None,
            "protocol": flow.service.lower() if flow.service else None,
        }
    )


def _own(alert: Alert) -> dict[str, Any]:
    own = {
        "advice": alert.advice,
        "flows": alert.flows,
        "peers": alert.peers,
        "ports": [{"port": port, "flows": flows} for port, flows in alert.ports],
        "probability": alert.probability,
        "why": list(alert.why),
        "log": alert.example.log,
        "line": alert.example.line,
        "uid": alert.example.uid,
        "novelty": alert.novelty,
    }
    return present(own)
