"""One flow of IoT-23, by the names of FLOW_SCHEMA without its line; one event of Suricata."""

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
# In the form of the example in Suricata's user guide, "Eve JSON Format", event type flow.
EVENT: dict[str, Any] = {
    "timestamp": "2018-12-21T15:51:30.000000+0100",
    "flow_id": 586497171462735,
    "event_type": "flow",
    "src_ip": "192.168.1.195",
    "src_port": 41040,
    "dest_ip": "185.244.25.235",
    "dest_port": 443,
    "proto": "TCP",
    "app_proto": "tls",
    "flow": {
        "pkts_toserver": 4,
        "pkts_toclient": 3,
        "bytes_toserver": 464,
        "bytes_toclient": 1222,
        "start": "2018-12-21T15:50:16.962094+0100",
        "end": "2018-12-21T15:50:20.101305+0100",
        "age": 4,
        "state": "closed",
        "reason": "timeout",
        "alerted": False,
    },
    "tcp": {"tcp_flags": "1b", "tcp_flags_ts": "1b", "tcp_flags_tc": "1b", "state": "closed"},
}
