"""One MQTT 5 connection over TLS that comes back by itself; both sides of the fleet use it.

Every attempt to connect has a paho client of its own. One that is kept would, after a break, send
again what had no PUBACK, of which the protocol above knows nothing and which it repeats itself in
its own order. So what was under way is forgotten with its connection, and the link queues nothing
while there is none.

A message counts as received for the broker once ``Link.done`` was called, which a receiver does
once it has made it durable. A broker that holds a session sends again what was not.

The thread of the link calls whoever uses it: such a function must not wait, as nothing is read or
written meanwhile. An error in it is counted by name and logged; the link lives on.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from gradsense.transport.connection_log import Counts, LinkLog, of_error, of_reason, of_tls
from gradsense.transport.identity import Identity
from gradsense.transport.messages import Message
from gradsense.transport.pacing import Backoff
from gradsense.transport.protocol import MAX_PACKET_BYTES
from gradsense.transport.publishes import LinearClient, Publish
from gradsense.transport.revocations import revoked

#: Publishes without PUBACK: so many are on the way at once, so many wait behind them in memory.
#: Mosquitto allows 20 and EMQX 32 on the way; paho does not heed what a broker announces.
_INFLIGHT = 16
_WAITING = 1000
#: For a connection with its TLS handshake: three round trips, with a packet lost twice.
_CONNECT_S = 10.0
#: For the last publishes when the link stops, and again for its thread to end.
_FAREWELL_S = 2.0


@dataclass(frozen=True)
class Arrival:
    """A message that came. ``retained``: the broker had kept it, so it may be old."""

    message: Message
    retained: bool
    _receipt: tuple[paho.Client, int] | None = field(default=None, repr=False, compare=False)


def size(message: Message) -> int:
    """Bytes of a message: topic, properties and payload. MQTT and TLS add a few of their own."""
    text = message.topic + "".join(name + value for name, value in message.pairs)
    return len(text.encode()) + len(message.payload)


class Link:
    """A connection to the broker under one identity. All methods may be called from any thread.

    Args:
        subscriptions: topic filters, subscribed anew with each connection.
        on_message: takes each message; ``done`` must follow, at once or later.
        on_connect: a connection is open and subscribed; whether the broker knew the session. What
            the broker had kept may come a moment before.
        on_disconnect: it ended.
        will: what the broker publishes when the connection breaks.
        session_s: for how long the broker keeps what comes meanwhile; 0: a clean session.
        keepalive_s: silence after which the broker is pinged. That a connection
            is half open is found within about 1.5 times as long, by either side.
        receive_maximum: messages that may come before the first of them is ``done``.
        rng: of this link alone; jitter of the fleet's attempts to connect.
        on_qos_0: takes the topic of a message that was published with QoS 0, which is then dropped:
            nothing of this protocol is. None: such messages are taken.
        retain_as_published: messages that somebody retains come marked as such when they are new,
            too.
        check_dates: whether the dates of the broker's certificate matter, see ``Identity.tls``.

    Raises:
        InputError: the identity's files cannot be used.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        subscriptions: Sequence[str],
        on_message: Callable[[Arrival], None],
        on_connect: Callable[[bool], None] = lambda _session_present: None,
        on_disconnect: Callable[[], None] = lambda: None,
        will: Message | None = None,
        session_s: int = 0,
        keepalive_s: int = 15,
        receive_maximum: int = 16,
        rng: random.Random,
        on_qos_0: Callable[[str], None] | None = None,
        retain_as_published: bool = False,
        check_dates: bool = True,
    ) -> None:
        self._identity, self._check_dates = identity, check_dates
        self._tls = identity.tls(check_dates=check_dates)
        options = SubscribeOptions(qos=1, retainAsPublished=retain_as_published)
        self._filters = [(topic, options) for topic in subscriptions]
        self._on_qos_0 = on_qos_0
        self._on_arrival, self._on_open, self._on_close = on_message, on_connect, on_disconnect
        self._will, self._session_s, self._receive_maximum = will, session_s, receive_maximum
        # paho pings after this silence and gives up after as much again.
        self._keepalive_s = max(1, round(0.75 * keepalive_s))
        self._backoff = Backoff(rng)
        self._thread = threading.Thread(target=self._run, name=f"mqtt-{identity.name}", daemon=True)
        self._stopping, self._abandoned = threading.Event(), False
        self._attempt: _Connection  # the latest, of the link's own thread
        self._current: _Connection | None = None  # the latest, while it is open
        self._log = LinkLog(f"{identity.name}, broker {identity.host}:{identity.port}")
        # Guards the number of publishes without PUBACK. Never held while paho is called, which
        # holds locks of its own when it calls back.
        self._acked = threading.Condition()

    def start(self) -> None:
        """Connect, in a thread of its own, and again after every break until ``stop``."""
        self._thread.start()

    @property
    def connected(self) -> bool:
        """Whether a connection is open and subscribed, as far as is known."""
        current = self._current
        return current is not None and current.opened is not None

    @property
    def unacked(self) -> int:
        """Publishes on this connection that the broker has not acknowledged."""
        current = self._current
        return 0 if current is None else current.unacked

    @property
    def counts(self) -> Counts:
        """What the link saw so far."""
        return self._log.counts

    def publish(self, message: Message) -> bool:
        """Send a message with QoS 1.

        Returns:
            False, and nothing is sent: there is no connection, or too much waits for it. True says
            only that it is on its way.
        """
        current = self._current
        if current is None:
            return False
        with self._acked:
            current.unacked += 1
        properties = _properties(PacketTypes.PUBLISH, message)
        info = current.client.publish(
            message.topic, message.payload, 1, message.retain, properties=properties
        )
        taken = info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS
        if taken:
            self._log.add(sent=1, bytes_sent=size(message))
        else:
            with self._acked:
                current.unacked -= 1
        return taken

    def done(self, arrival: Arrival) -> None:
        """Acknowledge a message to the broker. Harmless after a break."""
        current = self._current
        if arrival._receipt is None or current is None:
            return
        client, mid = arrival._receipt
        if client is current.client:  # the numbers of another connection name other messages
            client.ack(mid, 1)

    def trust(self, crl: Path) -> None:
        """Refuse the broker certificates on this list from now on, on an open connection too."""
        self._identity = replace(self._identity, crl=crl)
        self._tls = self._identity.tls(check_dates=self._check_dates)
        current = self._current
        tls: Any = None if current is None else current.client.socket()
        shown = None if tls is None else tls.getpeercert(binary_form=True)
        if current is not None and shown and revoked(shown, crl.read_bytes()):
            current.client.disconnect()

    def resubscribe(self) -> bool:
        """Let the broker send all retained messages again; False: there is no connection."""
        current = self._current
        return current is not None and self._subscribe(current.client)

    def stop(self, goodbye: Sequence[Message] = ()) -> None:
        """Send these, disconnect so that the last will is not published, and end the thread.

        It takes some seconds at most, whether or not the broker answers. Not to be called by what
        the link calls.
        """
        for message in goodbye:
            self.publish(message)
        with self._acked:
            self._acked.wait_for(lambda: self.unacked == 0, _FAREWELL_S)
        self._stopping.set()
        current = self._current
        if current is not None:
            current.client.disconnect()
        else:
            self._abandoned = True
        if threading.current_thread() is not self._thread and self._thread.is_alive():
            self._thread.join(_FAREWELL_S)
            self._abandoned = True

    # What follows runs in the thread of the link.

    def _run(self) -> None:
        while not self._stopping.is_set():
            attempt = self._attempt = _Connection(self._client())
            try:
                self._serve(attempt)
            except Exception as error:  # whatever a broker sends, the link lives on
                self._log.fault(error)
            self._leave(attempt)
            self._stopping.wait(self._backoff.wait_s(attempt.held_s))

    def _client(self) -> paho.Client:
        client = LinearClient(
            CallbackAPIVersion.VERSION2,
            self._identity.name,  # brokers take it from the certificate anyway
            protocol=MQTTProtocolVersion.MQTTv5,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        client.tls_set_context(self._tls)
        client.connect_timeout = _CONNECT_S
        client.max_inflight_messages_set(_INFLIGHT)
        client.max_queued_messages_set(_WAITING)
        if self._will is not None:
            properties = _properties(PacketTypes.WILLMESSAGE, self._will)
            client.will_set(self._will.topic, self._will.payload, 1, self._will.retain, properties)
        client.on_socket_open = _send_at_once
        # Others only put packets into paho's queue: set, this keeps them from the socket.
        client.on_socket_register_write = lambda *_: None
        client.on_log = self._on_log
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish_came = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        return client

    def _serve(self, attempt: _Connection) -> None:
        properties = _properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = self._session_s
        properties.ReceiveMaximum = self._receive_maximum
        properties.MaximumPacketSize = MAX_PACKET_BYTES
        try:
            attempt.client.connect(
                self._identity.host,
                self._identity.port,
                self._keepalive_s,
                clean_start=self._session_s == 0,
                properties=properties,
            )
        except (OSError, ValueError) as error:  # a host that is no name is a ValueError
            self._log.refused(of_error(error, self._identity))
            return
        tick_s = min(1.0, self._keepalive_s / 4)
        while attempt.client.loop(tick_s) == MQTTErrorCode.MQTT_ERR_SUCCESS:
            if self._abandoned:
                break
        if attempt.opened is None and not attempt.answered and not self._stopping.is_set():
            self._log.refused(of_tls(attempt.complaint))

    def _leave(self, attempt: _Connection) -> None:
        socket = attempt.client.socket()
        if socket is not None:
            socket.close()
        with self._acked:
            self._current = None
            self._acked.notify_all()
        if attempt.opened is not None:
            attempt.held_s = time.monotonic() - attempt.opened
            self._log.held(attempt.held_s)
            self._log.add(disconnects=int(not self._stopping.is_set()))
            self._call(self._on_close)

    def _subscribe(self, client: paho.Client) -> bool:
        if not self._filters:
            return False
        return client.subscribe(self._filters)[0] == MQTTErrorCode.MQTT_ERR_SUCCESS

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            function(*arguments)
        except Exception as error:
            self._log.fault(error)

    # paho calls these.

    def _on_log(self, _client: paho.Client, _data: Any, level: int, text: str) -> None:
        if level == paho.MQTT_LOG_ERR:
            self._attempt.complaint = text

    def _on_connect(
        self, client: paho.Client, _data: Any, flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        client.on_log = None  # it would have every packet written out
        attempt = self._attempt
        if reason.is_failure:
            attempt.answered = True
            self._log.refused(of_reason("connect", str(reason)))
            return
        attempt.session_present = bool(flags.session_present)
        self._current = attempt
        if not self._subscribe(client):
            self._opened(attempt)

    def _opened(self, attempt: _Connection) -> None:
        attempt.answered, attempt.opened = True, time.monotonic()
        self._log.add(connects=1)
        self._call(self._on_open, attempt.session_present)

    def _on_disconnect(
        self, _client: paho.Client, _data: Any, flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self._attempt.answered = True
            self._log.refused(of_reason("disconnect", str(reason)))

    def _on_message(self, client: paho.Client, came: Publish) -> None:
        try:
            if came.mid is None and self._on_qos_0 is not None:
                self._on_qos_0(came.topic)
                return
            message = Message(came.topic, came.pairs, came.payload, came.retain)
            self._log.add(received=1, bytes_received=size(message))
            receipt = None if came.mid is None else (client, came.mid)
            self._on_arrival(Arrival(message, came.retain, receipt))
        except Exception as error:
            # Not acknowledged it would take one of few places and come again with each session.
            self._log.fault(error)
            if came.mid is not None:
                client.ack(came.mid, 1)

    def _on_publish(
        self, _client: paho.Client, _data: Any, _mid: int, reason: ReasonCode, _properties: Any
    ) -> None:
        with self._acked:
            self._attempt.unacked -= 1
            self._acked.notify_all()
        if reason.is_failure:
            self._log.refused(of_reason("publish", str(reason)))

    def _on_subscribe(
        self, _client: paho.Client, _data: Any, _mid: int, reasons: Any, _properties: Any
    ) -> None:
        if self._attempt.opened is None:
            self._opened(self._attempt)
        for reason in reasons:
            if reason.is_failure:
                self._log.refused(of_reason("subscribe", str(reason)))


@dataclass
class _Connection:
    """One attempt to connect, and what came of it."""

    client: paho.Client
    unacked: int = 0
    answered: bool = False
    session_present: bool = False
    complaint: str = ""
    opened: float | None = None
    held_s: float = 0.0


def _properties(packet: int, message: Message | None = None) -> Properties:
    properties = Properties(packet)  # type: ignore[no-untyped-call]
    if message is not None and message.pairs:
        properties.UserProperty = list(message.pairs)
    return properties


def _send_at_once(_client: paho.Client, _data: Any, connection: Any) -> None:
    """Without it a small packet waits until the one before was acknowledged, 40 ms and more."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
