"""The broker's configuration: who may connect, and who may publish and read where.

The broker takes a client's name from its certificate, and its MQTT client id as well, so that no
device can take over another's session. Topics, all under ``gradsense/v2/RUN``:

- ``up/DEVICE/...``: only DEVICE publishes, only the coordinator reads.
- ``down/...``: the coordinator publishes, every device reads.
- ``device/DEVICE/...``: the coordinator publishes, only DEVICE reads.

Sources: mosquitto.conf(5); EMQX 5, "Use ACL File" and "SSL/TLS" of its manual.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gradsense.transport.protocol import COORDINATOR, MAX_PACKET_BYTES, ROOT


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

# What waits for devices that sleep survives a restart.
persistence true
persistence_location {folder}/data/
autosave_interval 30
persistent_client_expiration 14d

# One device can neither fill the memory nor the queue of the others.
max_packet_size {MAX_PACKET_BYTES}
max_inflight_messages 20
max_queued_messages 100000
max_queued_bytes 67108864
memory_limit 1073741824
max_keepalive 3600
# Small packets go at once and do not wait for the acknowledgement of the one before.
set_tcp_nodelay true
"""


def mosquitto_acl(revoked: Iterable[str] = ()) -> str:
    """The file behind ``acl_file``: %u is the name in the certificate.

    Revoked names are denied here as well, as this reaches connections that are open.
    """
    denied = "".join(f"\nuser {name}\ntopic deny #\n" for name in revoked)
    return f"""\
# Written by gradsense fleet.
user {COORDINATOR}
topic readwrite {ROOT}/#
{denied}
pattern write {ROOT}/+/up/%u/#
pattern read {ROOT}/+/down/#
pattern read {ROOT}/+/device/%u/#
"""


def emqx_acl(revoked: Iterable[str] = ()) -> str:
    """The same as ``acl.conf`` of EMQX 5, first match wins."""
    denied = "".join(f'{{deny, {{username, "{name}"}}, all, ["#"]}}.\n' for name in revoked)
    own = "${cert_common_name}"
    return f"""\
%% Written by gradsense fleet.
{denied}{{allow, {{username, "{COORDINATOR}"}}, all, ["{ROOT}/#"]}}.
{{allow, all, publish, ["{ROOT}/+/up/{own}/#"]}}.
{{allow, all, subscribe, ["{ROOT}/+/down/#", "{ROOT}/+/device/{own}/#"]}}.
{{deny, all}}.
"""


def emqx_conf(port: int) -> str:
    """What ``emqx.conf`` of EMQX 5 needs, with the fleet's files in ``/etc/emqx/gradsense``."""
    folder = "/etc/emqx/gradsense"
    return f"""\
# Written by gradsense fleet.
listeners.ssl.gradsense {{
  bind = "0.0.0.0:{port}"
  ssl_options {{
    cacertfile = "{folder}/ca.pem"
    certfile = "{folder}/cert.pem"
    keyfile = "{folder}/key.pem"
    verify = verify_peer
    fail_if_no_peer_cert = true
    versions = ["tlsv1.3", "tlsv1.2"]
  }}
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
