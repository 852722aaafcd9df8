"""Alerts as OCSF Detection Finding, class 2004 of schema 1.5.0 (https://schema.ocsf.io/1.5.0)."""

from __future__ import annotations

from typing import Any

import gradsense
from gradsense.gateway.alerting.alert import SEVERITIES, TECHNIQUES, Alert
from gradsense.gateway.alerting.formats import milliseconds, present

VERSION = "1.5.0"

_CLASS = 2004
_ACTIVITIES = {"open": (1, "Create"), "update": (2, "Update"), "closed": (3, "Close")}
_SEVERITY_NAMES = ("Informational", "Low", "Medium", "High", "Critical")
#: Internet Protocol numbers of Zeek's ``proto``, from IANA.
_PROTOCOL_NUMBERS = {"icmp": 1, "tcp": 6, "udp": 17}


def document(alert: Alert) -> dict[str, Any]:
    """One Detection Finding; create, update and close of one alert share ``finding_info.uid``."""
    activity, activity_name = _ACTIVITIES[alert.state]
    first, last = milliseconds(alert.first_ts), milliseconds(alert.last_ts)
    rank = SEVERITIES.index(alert.severity)
    closed = alert.state == "closed"
    confidence = 3 if alert.probability >= 0.9 else 2 if alert.probability >= 0.6 else 1
    return {
        "activity_id": activity,
        "activity_name": activity_name,
        "category_uid": 2,
        "category_name": "Findings",
        "class_uid": _CLASS,
        "class_name": "Detection Finding",
        "type_uid": _CLASS * 100 + activity,
        "type_name": f"Detection Finding: {activity_name}",
        "time": last,
        "start_time": first,
        "end_time": last,
        "duration": last - first,
        "count": alert.flows,
        "severity_id": rank + 1,
        "severity": _SEVERITY_NAMES[rank],
        # The traffic ended and nothing was resolved: the schema has no status for that.
        "status_id": 99 if closed else 1,
        "status": "Ended" if closed else "New",
        "is_alert": not closed,
        "confidence_id": confidence,
        "confidence": ("Low", "Medium", "High")[confidence - 1],
        "confidence_score": round(alert.probability * 100),
        "message": alert.sentence,
        "metadata": {
            "version": VERSION,
            "uid": alert.key,
            "correlation_uid": alert.id,
            "log_provider": alert.sensor,
            "product": {
                "name": "gradsense",
                "vendor_name": "gradsense",
                "version": gradsense.__version__,
            },
        },
        "finding_info": _finding(alert, first, last),
        "device": {"ip": alert.device, "type_id": 7, "type": "IOT"},
        "evidences": [_evidence(alert)],
        "observables": [
            _address("device.ip", alert.device),
            _address("evidences.src_endpoint.ip", alert.example.orig_h),
            _address("evidences.dst_endpoint.ip", alert.example.resp_h),
        ],
        "remediation": {"desc": alert.advice},
    }


def _finding(alert: Alert, first: int, last: int) -> dict[str, Any]:
    finding: dict[str, Any] = {
        "uid": alert.id,
        "title": alert.title,
        "desc": alert.sentence,
        "types": [alert.label],
        "created_time": first,
        "modified_time": last,
        "first_seen_time": first,
        "last_seen_time": last,
        "data_sources": ["network flow log"],
        "analytic": {
            "name": "gradsense",
            "uid": alert.model,
            "type_id": 4,
            "type": "Learning (ML/DL)",
        },
    }
    if alert.technique is not None:
        technique = {"uid": alert.technique, "name": TECHNIQUES.get(alert.technique)}
        finding["attacks"] = [{"technique": present(technique)}]
    return finding


def _evidence(alert: Alert) -> dict[str, Any]:
    flow = alert.example
    proto = (flow.proto or "").lower()
    connection = {
        "direction_id": 2 if flow.orig_h == alert.device else 1,
        "direction": "Outbound" if flow.orig_h == alert.device else "Inbound",
        "protocol_name": proto or None,
        "protocol_num": _PROTOCOL_NUMBERS.get(proto),
        "uid": flow.uid,
    }
    return {
        "connection_info": present(connection),
        "src_endpoint": present({"ip": flow.orig_h, "port": flow.orig_p}),
        "dst_endpoint": present({"ip": flow.resp_h, "port": flow.resp_p, "svc_name": flow.service}),
        "data": present(
            {
                "log": flow.log,
                "line": flow.line,
                "peers": alert.peers,
                "ports": [{"port": port, "flows": flows} for port, flows in alert.ports],
                "novelty": alert.novelty,
                "why": list(alert.why),
            }
        ),
    }


def _address(name: str, value: str) -> dict[str, Any]:
    return {"name": name, "type_id": 2, "type": "IP Address", "value": value}
