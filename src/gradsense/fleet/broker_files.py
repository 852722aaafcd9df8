"""The broker's configuration: who may connect, and who may publish and read where.

The broker takes a client's name from its certificate, and its MQTT client id as well, so that no
device can take over another's session. Topics, all under ``gradsense/v2/RUN`` and named in full, so
that nobody can fill the broker with retained messages elsewhere:

- ``up/DEVICE/update``, ``resume-request``, ``presence``: only DEVICE publishes, only the
  coordinator reads.
- ``down/...``: the coordinator publishes, every device reads.
- ``device/DEVICE/...``: the coordinator publishes, only DEVICE reads.

Sources: mosquitto.conf(5); EMQX 5, "Use ACL File", "SSL/TLS" and "Rate Limit" of its manual.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gradsense.fleet.broker_process import PID_FILE
from gradsense.transport.protocol import COORDINATOR, MAX_PACKET_BYTES, ROOT, UP, Kind, Topic


def mosquitto_conf(folder: Path, *, port: int, address: str, user: str) -> str:
    """``mosquitto.conf`` for a broker that lives in ``folder``.

    Args:
        folder: with ca.pem, crl.pem, cert.pem, key.pem, acl and the folder data.
        address: of this machine to listen on; nothing for all.
        user: the owner of these files; a broker that root starts becomes this user.
    """
    return f"""\
# Written by gradsense fleet. Changes are lost when the broker's certificate is rotated.
user {user}
listener {f"{port} {address}".strip()}
allow_anonymous false

tls_version tlsv1.2
cafile {folder}/ca.pem
crlfile {folder}/crl.pem
certfile {folder}/cert.pem
keyfile {folder}/key.pem
require_certificate true
use_identity_as_username true
use_username_as_clientid true
acl_file {folder}/acl
# By this gradsense fleet and the coordinator find the broker, to have it read these files again.
pid_file {folder}/{PID_FILE}

# What waits survives a restart.
persistence true
persistence_location {folder}/data/
autosave_interval 30
persistent_client_expiration 14d

# One device can neither fill the memory nor the queue of the others. Three retained messages of a
# device are the most that it can leave here.
max_packet_size {MAX_PACKET_BYTES}
max_inflight_messages 20
max_queued_messages 5000
max_queued_bytes 67108864
memory_limit 1073741824
max_keepalive 3600
# Small packets go at once and do not wait for the acknowledgement of the one before.
set_tcp_nodelay true
"""


@dataclass(frozen=True)
class Access:
    """Who may publish and read what.

    Attributes:
        runs: of the fleet. While there is none, devices may speak in any: the broker is often
            started first.
        devices: those in force that were enrolled for a run, and which: they may not speak in
            another.
        revoked: names that may nothing, on an open connection either.
    """

    runs: Sequence[str] = ()
    devices: Mapping[str, str] = field(default_factory=dict)
    revoked: Sequence[str] = ()

    def others(self, device: str) -> list[str]:
        """The runs that are not this device's."""
        return [run for run in self.runs if run != self.devices[device]]


def mosquitto_acl(access: Access) -> str:
    """The file behind ``acl_file``: %u is the name in the certificate.

    A denial comes before any pattern.
    """
    lines = ["# Written by gradsense fleet.", f"user {COORDINATOR}", f"topic readwrite {ROOT}/#"]
    for name in access.revoked:
        lines += [f"user {name}", "topic deny #"]
    for name in access.devices:
        if others := access.others(name):
            lines += [f"user {name}", *(f"topic deny {ROOT}/{run}/#" for run in others)]
    for run in access.runs or ["+"]:
        lines += [f"pattern write {topic}" for topic in _published("%u", run).values()]
        lines += [f"pattern read {topic}" for topic in _subscribed("%u", run)]
    return "\n".join([*lines, ""])


def emqx_acl(access: Access) -> str:
    """The same as ``acl.conf`` of EMQX 5.1, first match wins; only presence may be retained."""
    rules = [f'{{deny, {{username, "{name}"}}, all, ["#"]}}.' for name in access.revoked]
    rules.append(f'{{allow, {{username, "{COORDINATOR}"}}, all, ["{ROOT}/#"]}}.')
    for name in access.devices:
        if others := access.others(name):
            denied = _listed(f"{ROOT}/{run}/#" for run in others)
            rules.append(f'{{deny, {{username, "{name}"}}, all, {denied}}}.')
    for run in access.runs or ["+"]:
        topics = _published("${cert_common_name}", run)
        presence = [topics.pop("presence")]
        rules += [
            "{allow, all, {publish, [{qos, 1}, {retain, false}]}, "
            f"{_listed(topics.values())}}}.",
            f"{{allow, all, {{publish, [{{qos, 1}}]}}, {_listed(presence)}}}.",
            f"{{allow, all, subscribe, {_listed(_subscribed('${cert_common_name}', run))}}}.",
        ]
    return "\n".join(["%% Written by gradsense fleet.", *rules, "{deny, all}.", ""])


def _listed(topics: Iterable[str]) -> str:
    return "[" + ", ".join(f'"{topic}"' for topic in topics) + "]"


def _published(device: str, run: str) -> dict[Kind, str]:
    return {kind: str(Topic(run, kind, device)) for kind in UP}


def _subscribed(device: str, run: str) -> tuple[str, ...]:
    return f"{ROOT}/{run}/down/#", f"{ROOT}/{run}/device/{device}/#"


def emqx_conf(port: int) -> str:
    """What ``emqx.conf`` of EMQX 5 needs, with the fleet's files in ``/etc/emqx/gradsense``.

    Devices connect to ``port``, the coordinator to the one after it (before it if it is the last).
    """
    own = port + 1 if port < 65535 else port - 1
    folder = "/etc/emqx/gradsense"
    tls = f"""\
  ssl_options {{
    cacertfile = "{folder}/ca.pem"
    certfile = "{folder}/cert.pem"
    keyfile = "{folder}/key.pem"
    verify = verify_peer
    fail_if_no_peer_cert = true
    versions = ["tlsv1.3", "tlsv1.2"]
  }}"""
    return f"""\
# Written by gradsense fleet. Rates have the form of EMQX 5.1.
listeners.ssl.gradsense {{
  bind = "0.0.0.0:{port}"
  # Of each device, on each node: what the coordinator allows one for long. EMQX 5.8 reads on later
  # from one that sends more. There is no number of connections of a device to set: its client id is
  # the name in its certificate, so a second connection ends the first.
  messages_rate = "100/s"
  bytes_rate = "4MB/s"
  # Of all devices, on each node: handshakes cost CPU, and a stranger can begin one.
  max_conn_rate = "500/s"
{tls}
}}
# For the coordinator alone, without rates. EMQX counts every packet against them, and the
# coordinator acknowledges each message of all devices with one. Rates belong to a listener and
# exempt no client, and access rules do not know listeners: only a firewall keeps devices from here.
listeners.ssl.coordinator {{
  bind = "0.0.0.0:{own}"
{tls}
}}
mqtt {{
  peer_cert_as_username = cn
  peer_cert_as_clientid = cn
  max_packet_size = {MAX_PACKET_BYTES}
}}
authorization {{
  no_match = deny
  sources = [{{type = file, enable = true, path = "{folder}/acl.conf"}}]
}}
"""
