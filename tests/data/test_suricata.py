"""Suricata's flow events as Zeek's flows: every column, every state, every fault."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from gradsense.data.flows import FLOW_SCHEMA
from gradsense.data.sources.lines import Lines, Tally
from gradsense.data.sources.suricata import OTHER_EVENT, SuricataEve, eve_row
from tests.support.flow_rows import EVENT


def event(flow: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    changed = copy.deepcopy(EVENT)
    changed["flow"].update(flow or {})
    changed.update(changes)
    return changed


def tcp(sent: int, answered: int, **more: Any) -> dict[str, Any]:
    return {"tcp_flags_ts": f"{sent:02x}", "tcp_flags_tc": f"{answered:02x}", **more}


def line(record: Any) -> bytes:
    return json.dumps(record).encode()


def parse(*lines: bytes) -> tuple[pl.DataFrame, Tally]:
    path = Path("eve.json")
    block = Lines(b"".join(each + b"\n" for each in lines), 1, path)
    frame = pl.concat([call() for call in SuricataEve(path).plan(block)])
    return frame, block.faults


def row(record: dict[str, Any]) -> dict[str, Any]:
    """One event both ways, which agree."""
    single = eve_row(line(record), 1)
    assert isinstance(single, dict)
    frame, tally = parse(line(record))
    assert not tally.dropped
    assert frame.schema == FLOW_SCHEMA
    assert frame.to_dicts() == [single]
    return single


def test_every_column() -> None:
    assert row(event()) == {
        "ts": 1545403816.962094,
        "uid": "586497171462735",
        "orig_h": "192.168.1.195",
        "orig_p": 41040,
        "resp_h": "185.244.25.235",
        "resp_p": 443,
        "proto": "tcp",
        "service": "ssl",
        "duration": 3.139211,
        "orig_bytes": 192,  # 464 - 4 * (14 + 20 + 32) - 8
        "resp_bytes": 1016,  # 1222 - 3 * (14 + 20 + 32) - 8
        "conn_state": "SF",
        "missed_bytes": 0,
        "history": "ShADadFf",
        "orig_pkts": 4,
        "orig_ip_bytes": 408,  # 464 - 4 * 14
        "resp_pkts": 3,
        "resp_ip_bytes": 1180,  # 1222 - 3 * 14
        "label": None,
        "detail": None,
        "line": 1,
    }


FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


@pytest.mark.parametrize(
    ("sent", "answered", "state", "history"),
    [
        (SYN, 0, "S0", "S"),
        (SYN | ACK | PSH, SYN | ACK | PSH, "S1", "ShADad"),
        (SYN | ACK | FIN, SYN | ACK, "S2", "ShAaF"),
        (SYN | ACK, SYN | ACK | FIN, "S3", "ShAaf"),
        (SYN | ACK | FIN, SYN | ACK | FIN, "SF", "ShAaFf"),
        (SYN, RST | ACK, "REJ", "Sr"),
        (SYN | ACK | PSH | RST, SYN | ACK, "RSTO", "ShADaR"),
        (SYN | ACK | PSH, SYN | ACK | RST, "RSTR", "ShADar"),
        (SYN | RST, 0, "RSTOS0", "SR"),
        (0, SYN | ACK | RST, "RSTRH", "har"),
        (SYN | FIN, 0, "SH", "SF"),
        (0, SYN | ACK | FIN, "SHR", "haf"),
        (ACK | PSH, ACK | PSH, "OTH", "ADad"),
        (0, 0, "OTH", None),  # Suricata did not follow the stream
    ],
)
def test_tcp_states(sent: int, answered: int, state: str, history: str | None) -> None:
    found = row(event(tcp=tcp(sent, answered)))
    assert (found["conn_state"], found["history"]) == (state, history)
    assert (found["orig_bytes"] > 0) == bool(sent & PSH)


@pytest.mark.parametrize(
    ("asked", "got", "state", "history"),
    [(2, 1, "SF", "Dd"), (2, 0, "S0", "D"), (0, 1, "SHR", "d")],
)
def test_udp_states(asked: int, got: int, state: str, history: str) -> None:
    flow = {
        "pkts_toserver": asked,
        "bytes_toserver": asked * (14 + 28 + 30),
        "pkts_toclient": got,
        "bytes_toclient": got * (14 + 28 + 50),
    }
    found = row(event(flow, proto="UDP", app_proto="dns", tcp=None))
    assert (found["conn_state"], found["history"]) == (state, history)
    assert (found["orig_bytes"], found["resp_bytes"]) == (30 * asked, 50 * got)
    assert (found["service"], found["orig_ip_bytes"]) == ("dns", 58 * asked)


def test_a_single_packet_has_neither_duration_nor_payload() -> None:
    flow = {"end": EVENT["flow"]["start"], "pkts_toclient": 0, "bytes_toclient": 0}
    found = row(event(flow, tcp=tcp(SYN, 0)))
    assert (found["duration"], found["orig_bytes"], found["resp_bytes"]) == (None, None, None)
    assert found["conn_state"] == "S0"


def test_icmp_types_stand_for_ports() -> None:
    ping = event(proto="ICMP", icmp_type=8, icmp_code=0, app_proto="failed", tcp=None)
    del ping["src_port"], ping["dest_port"]
    found = row(ping)
    assert (found["orig_p"], found["resp_p"], found["proto"]) == (8, 0, "icmp")
    assert (found["conn_state"], found["history"], found["service"]) == ("OTH", None, None)
    assert row({**ping, "icmp_type": 3, "icmp_code": 1})["resp_p"] == 1
    six = {**ping, "proto": "IPv6-ICMP", "src_ip": "fe80::1", "icmp_type": 135}
    assert (row(six)["resp_p"], row(six)["proto"]) == (136, "icmp")


def test_other_protocols_need_no_ports() -> None:
    other = event(proto="GRE", tcp=None)
    del other["src_port"], other["dest_port"]
    found = row(other)
    assert (found["proto"], found["orig_p"], found["resp_p"]) == ("unknown_transport", 0, 0)


def test_vlan_tags_ipv6_and_gaps() -> None:
    found = row(event(vlan=[100, 200], tcp=tcp(27, 27, gap_ts=True), src_ip="fe80::1"))
    assert found["orig_ip_bytes"] == 464 - 4 * 22
    assert found["orig_bytes"] == 464 - 4 * (22 + 40 + 32) - 8
    assert found["missed_bytes"] is None


@pytest.mark.parametrize(
    ("name", "service"),
    [("failed", None), ("unknown", None), (None, None), ("http2", "http"), ("dcerpc", "dce_rpc")],
)
def test_services(name: str | None, service: str | None) -> None:
    assert row(event(app_proto=name))["service"] == service


def test_times_without_an_offset_are_utc() -> None:
    flow = {"start": "2018-12-21T14:50:16.962094", "end": "2018-12-21T14:50:17.962094Z"}
    found = row(event(flow))
    assert (found["ts"], found["duration"]) == (1545403816.962094, 1.0)


BAD = [
    (event({"start": "yesterday"}), "not a number", "flow.start"),
    (event({"start": None}), "missing value", "flow.start"),
    (event({"end": "never"}), "not a number", "flow.end"),
    (event({"end": "2018-12-21T15:50:00+0100"}), "out of range", "flow.end"),
    (event({"bytes_toserver": -1}), "out of range", "flow.bytes_toserver"),
    (event({"bytes_toserver": 2**63}), "not a number", "flow.bytes_toserver"),
    (event({"pkts_toclient": 1.5}), "not a number", "flow.pkts_toclient"),
    (event(dest_port=65536), "out of range", "dest_port"),
    (event(dest_port=None), "missing value", "dest_port"),
    (event(src_port="http"), "not a number", "src_port"),
    (event(src_ip=None), "missing value", "src_ip"),
    (event(proto=""), "missing value", "proto"),
    (event(flow_id="\ud800"), "invalid JSON", None),
    ([1], "invalid JSON", None),
]


@pytest.mark.parametrize(("record", "reason", "field"), BAD)
def test_faults_are_counted(record: Any, reason: str, field: str | None) -> None:
    assert eve_row(line(record), 2) is None
    frame, tally = parse(line(event()), line(record), line(event()))
    assert frame["line"].to_list() == [1, 3]
    assert {name: (d.count, d.line, d.field) for name, d in tally.dropped.items()} == {
        reason: (1, 2, field)
    }


def test_other_events_have_their_own_reason() -> None:
    dns = {"event_type": "dns", "flow_id": 1}
    assert eve_row(line(dns), 1) == OTHER_EVENT
    frame, tally = parse(line(dns), b"", line(event()), b'{"no": "type"}', b"{")
    assert frame["line"].to_list() == [3]
    assert {name: d.count for name, d in tally.dropped.items()} == {
        OTHER_EVENT: 2,
        "invalid JSON": 1,
    }
