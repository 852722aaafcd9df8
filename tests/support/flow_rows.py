"""One flow of IoT-23, by the names of FLOW_SCHEMA, without its line number."""

from __future__ import annotations

from typing import Any

ROW: dict[str, Any] = {
    "ts": 1545403816.962094,
    "uid": "CrDn63WjJEmrWGjqf",
    "orig_h": "192.168.1.195",
    "orig_p": 41040,
    "resp_h": "185.244.25.235",
    "resp_p": 80,
    "proto": "tcp",
    "service": None,
    "duration": 3.139211,
    "orig_bytes": 0,
    "resp_bytes": 0,
    "conn_state": "S0",
    "missed_bytes": 0,
    "history": "S",
    "orig_pkts": 3,
    "orig_ip_bytes": 180,
    "resp_pkts": 0,
    "resp_ip_bytes": 0,
    "label": "Malicious",
    "detail": "C&C",
}
