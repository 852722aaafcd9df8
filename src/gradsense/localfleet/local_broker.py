"""Mosquitto on this machine: its program, a free port for it, and waiting until it listens."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable

from gradsense.errors import GradsenseError, InputError

_START_S = 15.0


def program() -> str:
    """The path of Mosquitto; the folders of root's PATH are searched too.

    Raises:
        InputError: it is not installed.
    """
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    found = shutil.which("mosquitto", path=path)
    if found is None:
        raise InputError("Mosquitto is not installed", hint="apt-get install mosquitto")
    return found


def free_port() -> int:
    """A TCP port of this machine that is not in use now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def await_listener(port: int, ended: Callable[[], bool] = lambda: False) -> None:
    """Wait until a process listens on a port of this machine.

    Args:
        ended: whether the process has ended.

    Raises:
        GradsenseError: the process ended, or none listened for 15 seconds.
    """
    end = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > end or ended():
                raise GradsenseError(f"no process listens on port {port}") from None
            time.sleep(0.05)
