"""A Mosquitto on this machine: where its program is, a port for it, and when it listens."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable

from gradsense.errors import GradsenseError, InputError

_START_S = 15.0


def program() -> str:
    """The path of Mosquitto, also where only root's shell would look.

    Raises:
        InputError: it is not installed.
    """
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    found = shutil.which("mosquitto", path=path)
    if found is None:
        raise InputError("Mosquitto is not installed", hint="apt-get install mosquitto")
    return found


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def await_listener(port: int, ended: Callable[[], bool] = lambda: False) -> None:
    """Wait until somebody listens on a port of this machine.

    Args:
        ended: whether there is nothing left to wait for.

    Raises:
        GradsenseError: nobody did for 15 seconds.
    """
    end = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > end or ended():
                raise GradsenseError(f"nobody listens on port {port}") from None
            time.sleep(0.05)
