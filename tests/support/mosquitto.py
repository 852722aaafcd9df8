"""A real broker and a listener, for tests that need them."""

from __future__ import annotations

import getpass
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from gradsense.errors import InputError
from gradsense.localfleet import local_broker

WAIT_S = 15.0
#: Whether the running test has the marker ``broker``; set by conftest.
permitted = False


def program() -> str:
    """Mosquitto's; the test skips where there is none."""
    assert permitted, "a test that needs Mosquitto has @pytest.mark.broker"
    try:
        return local_broker.program()
    except InputError as error:
        pytest.skip(str(error))


class Broker:
    """A Mosquitto without persistence, on a free port of this machine."""

    def __init__(self, folder: Path, extra: str = "allow_anonymous true\n") -> None:
        self._command = [program()]
        self.port = local_broker.free_port()
        config = folder / "mosquitto.conf"
        # Started by root it would change to a user that may not read this folder.
        lines = f"listener {self.port} 127.0.0.1\nuser {getpass.getuser()}\n{extra}"
        config.write_text(lines, encoding="utf-8")
        self._command += ["-c", str(config)]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)
        end = time.monotonic() + WAIT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < end, "mosquitto did not start"
                time.sleep(0.05)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class Listener:
    """Subscribes to everything and waits for what it is asked to find."""

    def __init__(self, port: int) -> None:
        self.got: list[tuple[str, str, bool]] = []
        self._news = threading.Condition()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_message = self._on_message
        subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert subscribed.wait(WAIT_S)

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:
        with self._news:
            self.got.append((message.topic, message.payload.decode(), message.retain))
            self._news.notify_all()

    def expect(self, topic: str, payload: str | None = None) -> str:
        """The first message on a topic, with that payload if one is given; it is taken out."""

        def found() -> tuple[str, str, bool] | None:
            fitting = (one for one in self.got if one[0] == topic and payload in (None, one[1]))
            return next(fitting, None)

        with self._news:
            assert self._news.wait_for(found, WAIT_S), (topic, payload, self.got)
            message = found()
            assert message is not None
            self.got.remove(message)
            return message[1]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
