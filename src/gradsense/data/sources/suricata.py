"""Suricata's ``eve.json``: its flow events as the flows that Zeek would have written.

Field names and units follow Suricata's user guide, "Eve JSON Format" (event type ``flow``), and
Zeek's ``conn.log``. Suricata keeps less of a connection than Zeek, so these are approximations:

- ``conn_state`` follows Zeek's rules (``base/protocols/conn/main.zeek``) on the TCP flags that
  each side ever sent. Their order is unknown: a close after a reset looks like one before it.
- ``history`` has every letter at most once, in the order of an ordinary connection.
- ``orig_ip_bytes``, ``resp_ip_bytes``: Suricata counts whole frames (``GET_PKT_LEN``), so 14
  bytes of Ethernet and 4 for each VLAN tag are taken off every packet.
- ``orig_bytes``, ``resp_bytes``: what is left without IP and transport headers. A TCP header is
  taken as 32 bytes (with timestamps, as Linux sends it), 40 with SYN; a side that never set PSH
  sent no payload.
- ``duration`` and payload are unset where start and end are the same, as in Zeek.
- ``missed_bytes`` is 0, or unset where Suricata saw a gap, since it does not say how large.
- ICMP has Zeek's stand-ins for ports: the type, and the type of its answer or else the code.

Suricata writes no labels. An event may carry those of a labelled data set, under the keys that
labelled Zeek logs have: ``label`` and ``detailedlabel``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeGuard

import polars as pl

from gradsense.data.sources.lines import (
    COLUMNS,
    MAX_LINE_BYTES,
    Lines,
    Row,
    legible,
    to_flows,
    typed_row,
)
from gradsense.data.sources.stream import Calls, RecordSource, RowParser
from gradsense.data.sources.zeek_json import INVALID_JSON, line_by_line, refuse_constant
from gradsense.data.sources.zeek_tsv import DETAIL_NAMES

#: Alerts, DNS and other events share the file with the flows; they are counted, not read.
OTHER_EVENT = "another event than a flow"

#: Flow column to Suricata's own name, for messages.
_NAMES = {
    "ts": "flow.start",
    "uid": "flow_id",
    "orig_h": "src_ip",
    "orig_p": "src_port",
    "resp_h": "dest_ip",
    "resp_p": "dest_port",
    "proto": "proto",
    "service": "app_proto",
    "duration": "flow.end",
    "orig_pkts": "flow.pkts_toserver",
    "orig_ip_bytes": "flow.bytes_toserver",
    "resp_pkts": "flow.pkts_toclient",
    "resp_ip_bytes": "flow.bytes_toclient",
}
_PROTOCOLS = {"tcp": "tcp", "udp": "udp", "icmp": "icmp", "ipv6-icmp": "icmp"}
_OTHER_PROTOCOL = "unknown_transport"
#: Suricata's names of application protocols that Zeek calls otherwise.
_SERVICES = {
    "failed": None,
    "unknown": None,
    "tls": "ssl",
    "http1": "http",
    "http2": "http",
    "doh2": "http",
    "dcerpc": "dce_rpc",
    "krb5": "krb",
    "ike": "ipsec",
    "ikev2": "ipsec",
    "dnp3": "dnp3_tcp",
    "pgsql": "postgresql",
}
#: Types of ICMP requests and their answers, for IPv4 and IPv6; Zeek pairs them in the same way.
_ICMP_ANSWERS = {8: 0, 0: 8, 13: 14, 14: 13, 15: 16, 16: 15, 17: 18, 18: 17, 10: 9, 9: 10}
_ICMP6_ANSWERS = {128: 129, 129: 128, 133: 134, 134: 133, 135: 136, 136: 135}

_FIN, _SYN, _RST, _PSH, _ACK = 0x01, 0x02, 0x04, 0x08, 0x10
_ETHERNET_BYTES, _VLAN_BYTES = 14, 4
_IPV4_BYTES, _IPV6_BYTES = 20, 40
_TRANSPORT_BYTES = {"tcp": 32, "udp": 8, "icmp": 8}
_SYN_EXTRA_BYTES = 8

_Cells = dict[str, str | None]


class SuricataEve(RecordSource):
    """Holds no state between blocks."""

    name: ClassVar = "eve"
    rank: ClassVar = 1
    logs: ClassVar = ("eve.json", "eve.json.gz")
    opening: ClassVar = b"{"

    @classmethod
    def sniff(cls, path: Path, lines: Sequence[bytes]) -> bool:
        return any(line.startswith(cls.opening) and cls.begins(line) for line in lines)

    @classmethod
    def begins(cls, line: bytes) -> bool:
        event = _event(line)
        return event is not None and "event_type" in event

    def plan(self, lines: Lines) -> Calls:
        return [partial(_flows, lines)]

    def row_parser(self) -> RowParser:
        return eve_row


def eve_row(line: bytes, number: int) -> Row | str | None:
    """One clean flow event to a flow; ``OTHER_EVENT`` for another event, None for anything else."""
    event = _event(line) if len(line) <= MAX_LINE_BYTES else None
    if event is None:
        return None
    if event.get("event_type") != "flow":
        return OTHER_EVENT
    if legible(line) is None:
        return None
    cells = _cells(event)
    return typed_row([cells[name] for name in COLUMNS], number)


def _flows(lines: Lines) -> pl.DataFrame:
    cells, numbers = line_by_line(lines, lines.legible(), _line_cells)
    return to_flows(cells, numbers, _NAMES, lines)


def _line_cells(line: bytes) -> _Cells | str:
    event = _event(line)
    if event is None:
        return INVALID_JSON
    return _cells(event) if event.get("event_type") == "flow" else OTHER_EVENT


def _event(line: bytes) -> dict[str, Any] | None:
    """One JSON object; None if the line is none or holds half a surrogate pair."""
    try:
        event = json.loads(line.decode(), parse_constant=refuse_constant)
        if b"\\u" in line:
            json.dumps(event, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def _cells(event: dict[str, Any]) -> _Cells:
    """The flow's columns as text. A value that cannot be used stays as written, to be counted."""
    flow, tcp = _part(event, "flow"), _part(event, "tcp")
    proto = _text(event.get("proto"))
    if proto is not None:
        proto = _PROTOCOLS.get(proto.lower(), _OTHER_PROTOCOL)
    orig_p, resp_p = _ports(event, proto)
    begin, length = _times(flow)
    service = _text(event.get("app_proto"))
    cells: _Cells = dict.fromkeys(COLUMNS)
    cells |= {
        "ts": begin,
        "uid": _text(event.get("flow_id")),
        "orig_h": _text(event.get("src_ip")),
        "orig_p": orig_p,
        "resp_h": _text(event.get("dest_ip")),
        "resp_p": resp_p,
        "proto": proto,
        "service": None if service is None else _SERVICES.get(service, service),
        "duration": length,
        "orig_pkts": _text(flow.get("pkts_toserver")),
        "resp_pkts": _text(flow.get("pkts_toclient")),
        "missed_bytes": None if tcp.get("gap_ts") or tcp.get("gap_tc") else "0",
        "label": _text(event.get("label")),
        "detail": next(filter(None, (_text(event.get(key)) for key in DETAIL_NAMES)), None),
    }
    sent, answered = _flags(tcp, "tcp_flags_ts"), _flags(tcp, "tcp_flags_tc")
    tags = event.get("vlan")
    frame = _ETHERNET_BYTES + _VLAN_BYTES * (len(tags) if isinstance(tags, list) else 0)
    payloads = []
    for side, way, flags in (("orig", "toserver", sent), ("resp", "toclient", answered)):
        packets, total = flow.get(f"pkts_{way}"), flow.get(f"bytes_{way}")
        if not (_is_count(packets) and _is_count(total)):
            cells[f"{side}_ip_bytes"] = _text(total)
            payloads.append(0)
            continue
        ip_bytes = max(0, total - frame * packets)
        payloads.append(_payload(ip_bytes, packets, flags, proto, cells["orig_h"]))
        cells[f"{side}_ip_bytes"] = str(ip_bytes)
        cells[f"{side}_bytes"] = None if length is None else str(payloads[-1])
    if proto is not None:
        counts = (flow.get("pkts_toserver"), flow.get("pkts_toclient"))
        asked, got = (_is_count(number) and number > 0 for number in counts)
        cells["conn_state"] = _state(proto, sent, answered, asked, got, any(payloads))
        cells["history"] = _history(proto, sent, answered, payloads)
    return cells


def _part(event: dict[str, Any], name: str) -> dict[str, Any]:
    part = event.get(name)
    return part if isinstance(part, dict) else {}


def _text(value: object) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    return str(value) if type(value) is int else json.dumps(value)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**63


def _times(flow: dict[str, Any]) -> tuple[str | None, str | None]:
    """Start in seconds since the epoch, and duration in seconds; None for a duration of 0."""
    start, end = _text(flow.get("start")), _text(flow.get("end"))
    begin = _seconds(start)
    if begin is None:
        return start, None
    finish = _seconds(end)
    if finish is None:
        return f"{begin:.6f}", end
    length = round(finish - begin, 6)
    return f"{begin:.6f}", f"{length:.6f}" if length else None


def _seconds(text: str | None) -> float | None:
    """ISO 8601 with an offset, ``2017-04-07T22:24:37.251547+0100``; without one it is UTC."""
    try:
        time = datetime.fromisoformat(text or "")
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _ports(event: dict[str, Any], proto: str | None) -> tuple[str | None, str | None]:
    source, destination = event.get("src_port"), event.get("dest_port")
    if proto == "icmp":
        kind, code = event.get("icmp_type"), event.get("icmp_code")
        if not _is_count(kind):
            return "0", "0"
        answers = _ICMP6_ANSWERS if ":" in str(event.get("src_ip")) else _ICMP_ANSWERS
        return str(kind), _text(answers.get(kind, code)) or "0"
    if proto == _OTHER_PROTOCOL:  # only SCTP among them has ports
        return _text(source) or "0", _text(destination) or "0"
    return _text(source), _text(destination)


def _flags(tcp: dict[str, Any], name: str) -> int:
    """All TCP flags that one side ever sent; 0 where Suricata did not follow the stream."""
    try:
        return int(str(tcp.get(name, "0")), 16)
    except ValueError:
        return 0


def _payload(ip_bytes: int, packets: int, flags: int, proto: str | None, host: str | None) -> int:
    if proto == "tcp" and not flags & _PSH:
        return 0
    network = _IPV6_BYTES if host is not None and ":" in host else _IPV4_BYTES
    headers = packets * (network + _TRANSPORT_BYTES.get(proto or "", 0))
    return max(0, ip_bytes - headers - (_SYN_EXTRA_BYTES if flags & _SYN else 0))


def _state(  # noqa: PLR0917
    proto: str, sent: int, answered: int, asked: bool, got: bool, payload: bool
) -> str:
    """Zeek's ``conn_state``; ``asked`` and ``got``: whether the two sides sent a packet."""
    if proto == "tcp":
        return _tcp_state(sent, answered, payload)
    if proto == "udp":
        return ("SF" if got else "S0") if asked else ("SHR" if got else "OTH")
    return "OTH"


def _tcp_state(sent: int, answered: int, payload: bool) -> str:
    """After Zeek's ``conn_state``; a side without SYN is what Zeek calls inactive or partial."""
    opened, accepted = bool(sent & _SYN), bool(answered & _SYN)
    if answered & _RST:
        refused = opened and not accepted
        if refused or (sent & _RST and not payload):
            return "REJ"
        return "RSTR" if opened else "RSTRH"
    if sent & _RST:
        return "RSTO" if accepted else "RSTOS0"
    return _unreset_state(sent, answered, opened, accepted)


def _unreset_state(sent: int, answered: int, opened: bool, accepted: bool) -> str:
    if sent & answered & _FIN:
        return "SF"
    if sent & _FIN:
        return "S2" if accepted else "SH"
    if answered & _FIN:
        return "S3" if opened else "SHR"
    if opened and not answered:
        return "S0"
    return "S1" if opened and accepted else "OTH"


def _history(proto: str, sent: int, answered: int, payloads: list[int]) -> str | None:
    """Zeek's letters, upper case for the originator."""
    out, back = (size > 0 for size in payloads)
    marks = {
        "tcp": (
            ("S", sent & _SYN),
            ("h", answered & _SYN),
            ("A", sent & _ACK),
            ("D", out),
            ("a", answered & _ACK and not (answered & _RST and not answered & _SYN)),
            ("d", back),
            ("F", sent & _FIN),
            ("f", answered & _FIN),
            ("R", sent & _RST),
            ("r", answered & _RST),
        ),
        "udp": (("D", out), ("d", back)),
    }.get(proto, ())
    return "".join(letter for letter, seen in marks if seen) or None
