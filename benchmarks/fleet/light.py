"""A light device: a real MQTT 5 connection over mutual TLS, with nothing behind it.

It has no logs, no detector and no disk. All that travels is as a whole device's: certificate and
signing key of its own, the receiver and sender of ``edge.agent``, signed updates, signs of life.
It has no thread either: ``crowd`` drives hundreds in one event loop.

Times are ``time.monotonic()``, which all processes of a machine share.
"""

from __future__ import annotations

import random
import socket
import ssl
import struct
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from gradsense.agent.downlink import Downlink, Repeated
from gradsense.agent.store import AgentStore
from gradsense.agent.uplink import Uplink
from gradsense.federation.update import GlobalModel, Update
from gradsense.learning.learner import Tensors
from gradsense.transport import identity
from gradsense.transport.chunks import Resume
from gradsense.transport.messages import Message, SignedMessage, messages, presence, sign_message
from gradsense.transport.pacing import Rate
from gradsense.transport.payloads import OFFLINE, ONLINE, Ack, model_hash, pack_update
from gradsense.transport.protocol import MAX_PACKET_BYTES, NO_MODEL, MessageHeader, device_filters

#: When a device sends an update: once for each model, again as soon as it is acknowledged, or
#: after a random pause and once for each model. ``bare`` devices verify nothing and send once a
#: model.
Sends = Literal["round", "ceaseless", "paced", "bare"]
#: As ``transport.connection.Link`` has it.
KEEPALIVE_S, _RECEIVE, _INFLIGHT = 11, 16, 16
#: The whole of IPv4 and TCP before each segment's data, with the time stamps that Linux sends.
SEGMENT_BYTES = 52


@dataclass(frozen=True)
class Part:
    """What a crowd plays.

    Attributes:
        rounds: the model after which nobody sends; None: until the command ``quiet``.
        pause_s: mean seconds between two updates of a ``paced`` device.
        delta, packed, samples, codec: of every update.
        seed: of pauses.
    """

    run: str
    sends: Sends
    delta: Tensors = field(repr=False)
    packed: bytes = field(default=b"", repr=False)
    codec: str = "none"
    samples: int = 1
    rounds: int | None = None
    pause_s: float = 1.0
    seed: int = 0


@dataclass
class Wire:
    """What the kernel counted on connections: bytes of TLS records, and TCP segments."""

    sent: int = 0
    received: int = 0
    segments_out: int = 0
    segments_in: int = 0

    def add(self, connection: socket.socket) -> None:
        """Count a connection, from its beginning."""
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        sent, received, out, into = struct.unpack_from("=QQII", info, 120)  # linux/tcp.h
        self.sent += sent
        self.received += received
        self.segments_out += out
        self.segments_in += into


@dataclass
class Seen:
    """What a process' devices saw.

    Attributes:
        connecting: seconds at which each connection was asked for, and ready.
        sent_at: (device, sequence) to when it was first published.
        acked: (device, sequence) to when its acknowledgement was verified.
        adopted: (device, version) to when that model was verified; of ``bare`` devices when the
            ``version``-th message came.
        counts: refusals by name, repeats, broken connections.
    """

    connecting: list[tuple[float, float]] = field(default_factory=list)
    sent_at: dict[tuple[str, int], float] = field(default_factory=dict)
    acked: dict[tuple[str, int], float] = field(default_factory=dict)
    adopted: dict[tuple[str, int], float] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    update_bytes: int = 0
    model_bytes: int = 0


class Pocket:
    """The outbox and the model's name, as ``Uplink`` asks a ``AgentStore`` for them."""

    def __init__(self) -> None:
        self.updates: list[SignedMessage] = []
        self.holds = NO_MODEL

    def head(self) -> SignedMessage | None:
        """The oldest update that was not acknowledged."""
        return self.updates[0] if self.updates else None

    def held(self) -> tuple[int, str]:
        """Version and hash of the model held."""
        return self.holds

    def acknowledged(self, sequence: int, refusal: str = "", *, client: object = None) -> bool:
        """Forget the update."""
        self.updates = [one for one in self.updates if one.properties.header.sequence != sequence]
        return True


class Light:
    """One device on one connection."""

    def __init__(self, bundle: Path, part: Part, seen: Seen) -> None:
        self.identity, self.part, self.seen = identity.of_device(bundle), part, seen
        self.name = self.identity.name
        self.version, self.sent_on, self.sequence, self.quiet = -1, -1, 0, False
        self.pocket = Pocket()
        self.uplink = Uplink(
            cast(AgentStore, self.pocket),
            self.identity.signing_key,
            Rate(None, 1 << 20),
            rng=random.Random(f"{part.seed} {self.name}"),
        )
        self.downlink = Downlink(part.run, self.name, self.identity.coordinator_key)
        self.unacked, self.ready, self.open = 0, False, True
        self.client = self._client()
        self.socket: ssl.SSLSocket  # from ``connect``; paho forgets its own when it breaks

    # The connection -------------------------------------------------------------------------

    def _client(self) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            self.name,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )
        client.tls_set_context(self.identity.tls(check_dates=False))
        client.max_inflight_messages_set(_INFLIGHT)
        will = self._status(OFFLINE)
        client.will_set(
            will.topic,
            will.payload,
            1,
            True,
            packet_properties(PacketTypes.WILLMESSAGE, will.pairs),
        )
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        return client

    def connect(self) -> None:
        """Open the connection; TCP and TLS are done when this returns, MQTT is not."""
        properties = packet_properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 0
        properties.ReceiveMaximum = _RECEIVE
        properties.MaximumPacketSize = MAX_PACKET_BYTES
        self.client.connect(
            self.identity.host, self.identity.port, KEEPALIVE_S, properties=properties
        )
        self.socket = cast(ssl.SSLSocket, self.client.socket())

    def transfer(self) -> bool:
        """Read and write what can be; False: the connection broke."""
        while True:
            if self.client.loop_read() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                return False
            if self.client.socket() is None:
                return False
            if not self.socket.pending():
                return self.flush()

    def flush(self) -> bool:
        """Write what waits; False: the connection broke."""
        return (
            not self.client.want_write()
            or self.client.loop_write() == MQTTErrorCode.MQTT_ERR_SUCCESS
        )

    def _on_connect(
        self, client: paho.Client, _data: Any, _flags: Any, reason: Any, *_: Any
    ) -> None:
        if reason.is_failure:
            self.seen.counts[f"connect: {reason}"] += 1
            return
        filters = device_filters(self.part.run, self.name)
        client.subscribe([(name, SubscribeOptions(qos=1)) for name in filters])

    def _on_subscribe(self, *_: Any) -> None:
        self.ready = True
        if self.part.sends != "bare":
            self._publish(self._status(ONLINE))
            self.uplink.on_connect(time.monotonic())

    def _on_publish(self, *_: Any) -> None:
        self.unacked -= 1

    def _publish(self, message: Message) -> None:
        self.unacked += 1
        properties = packet_properties(PacketTypes.PUBLISH, message.pairs)
        self.client.publish(message.topic, message.payload, 1, message.retain, properties)

    # The device -----------------------------------------------------------------------------

    def _status(self, body: bytes) -> Message:
        key = self.identity.signing_key
        return presence(self.part.run, self.name, body, self.pocket.holds, key)

    def _on_message(self, _client: paho.Client, _data: Any, came: paho.MQTTMessage) -> None:
        now = time.monotonic()
        if self.part.sends == "bare":
            self._adopted(self.version + 1, now, len(came.payload))
            self._start_update()
            return
        pairs = tuple(getattr(came.properties, "UserProperty", ()))
        news = self.downlink.take(Message(came.topic, pairs, bytes(came.payload), came.retain), now)
        match news:
            case GlobalModel():
                self._adopted(news.version, time.monotonic(), len(came.payload))
                self.pocket.holds = news.version, model_hash(news.tensors)
                self._publish(self._status(ONLINE))
                self.uplink.on_model(now)
                if self.part.sends != "paced":
                    self._start_update()
            case Repeated():
                self.uplink.on_model(now)
            case Ack():
                self._acknowledged(news)
            case Resume():
                self.uplink.on_resume(news, now)
        self.send(now)

    def _adopted(self, version: int, now: float, size: int) -> None:
        self.version = version
        self.seen.adopted[self.name, version] = now
        self.seen.model_bytes = max(self.seen.model_bytes, size)

    def _acknowledged(self, ack: Ack) -> None:
        if self.uplink.on_ack(ack):
            self.seen.acked[self.name, ack.sequence] = time.monotonic()
            self.seen.counts[f"refused: {ack.refusal}"] += bool(ack.refusal)
            if self.part.sends == "ceaseless":
                self._start_update()

    def send_in_turn(self) -> None:
        """The pause is over."""
        if self.sent_on < self.version and self.idle:
            self._start_update()
            self.send(time.monotonic())

    def _start_update(self) -> None:
        part = self.part
        over = part.rounds is not None and self.version >= part.rounds
        if self.quiet or over or self.pocket.updates:
            return
        self.sequence += 1
        self.sent_on = self.version
        signed = self._sign()
        self.seen.update_bytes = max(self.seen.update_bytes, signed.properties.body_size)
        if part.sends == "bare":
            self.seen.sent_at[self.name, self.sequence] = time.monotonic()
            for message in messages(signed):
                self._publish(message)
        else:
            self.pocket.updates.append(signed)

    def _sign(self) -> SignedMessage:
        part, (version, digest) = self.part, self.pocket.holds
        update = Update(
            self.name,
            version,
            self.sequence,
            part.samples,
            "every round",
            part.delta,
            codec=part.codec,
            packed=part.packed,
        )
        header = MessageHeader("update", part.run, self.name, self.sequence, version, digest)
        return sign_message(header, pack_update(update), self.identity.signing_key)

    def send(self, now: float) -> None:
        """Publish what is due."""
        due = self.uplink.due(now, connected=self.ready and self.open, unacked=self.unacked)
        for message in due:
            if message.topic.endswith("/update"):
                self.seen.sent_at.setdefault((self.name, self.sequence), now)
            self._publish(message)

    @property
    def idle(self) -> bool:
        """Whether nothing of it is under way."""
        return not self.pocket.updates


def packet_properties(packet: int, pairs: Sequence[tuple[str, str]] = ()) -> Properties:
    """What a packet says beside its payload."""
    properties = Properties(packet)  # type: ignore[no-untyped-call]
    if pairs:
        properties.UserProperty = list(pairs)
    return properties
