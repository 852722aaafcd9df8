"""Lines between devices and broker that can be cut, for tests and ``benchmarks/network.py``.

- ``Cables``: each device lives in a network namespace of its own, and a thread carries its IP
  packets from one TUN interface to another. It delays them, loses some or carries none. The
  kernels' own TCP has to cope with it, as with ``tc netem``, which not every kernel has. Needs
  root.
- ``Proxy``: a device's TCP connection goes through a relay that stands still or resets it. Needs
  nothing, but a lost packet cannot be had this way.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import selectors
import shutil
import socket
import struct
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

_TUN, _MTU = Path("/dev/net/tun"), 1500
#: linux/if_tun.h: TUNSETIFF, and IFF_TUN | IFF_NO_PI.
_TUNSETIFF, _TUN_FLAGS = 0x400454CA, 0x1001
_TCP, _SYN, _SYN_ACK = 6, 0x02, 0x12


# Cables -----------------------------------------------------------------------------------------


@dataclass
class Line:
    """One device's cable. What is set here holds from the next packet on.

    Attributes:
        name: of its namespace, and of the interface in there.
        delay_s: of every packet, in each direction.
        loss: share of packets that are lost, in each direction.
        cut: no packet passes, and nobody is told: connections are half open.
        up: bytes of packets that the device sent, whether they passed or not.
        ports: from which the device opened connections.
        lost: packets that did not pass.
    """

    name: str
    fd: int
    delay_s: float = 0.0
    loss: float = 0.0
    cut: bool = False
    up: int = 0
    lost: int = 0
    ports: set[int] = field(default_factory=set)

    def heal(self) -> None:
        """As new."""
        self.delay_s, self.loss, self.cut = 0.0, 0.0, False

    def plug(self, inserted: bool) -> None:
        """Insert or pull the plug: the device sees that its interface is up or down."""
        _ip("-n", self.name, "link", "set", self.name, "up" if inserted else "down")


class Cables:
    """A star of cables around this machine. Use it in a ``with`` block: nothing stays behind.

    Args:
        count: of devices.
        rng: which packets are lost.

    Attributes:
        address: of this machine in the star, where the broker is reached.
        lines: one for each device.
    """

    def __init__(self, count: int, rng: random.Random) -> None:
        self._rng, self._undo = rng, ExitStack()
        # Two rigs at once, or what else has addresses here, must not meet.
        subnet = f"10.77.{os.getpid() % 256}"
        self.address = f"{subnet}.1"
        self.lines: list[Line] = []
        self._queue: list[tuple[float, int, int, bytes]] = []  # due, order, to which, packet
        self._order = 0
        self._stop = threading.Event()
        hub = f"gs{os.getpid()}h"
        with ExitStack() as unwind:  # what was made goes again if the rest cannot be
            unwind.push(self._undo)
            self._hub = self._interface(hub)
            _ip("addr", "add", f"{self.address}/24", "dev", hub)
            _ip("link", "set", hub, "up", "mtu", str(_MTU))
            for number in range(count):
                self.lines.append(self._line(number, f"{subnet}.{10 + number}/24"))
            unwind.pop_all()
        self._thread = threading.Thread(target=self._carry, name="cables", daemon=True)
        self._thread.start()

    def _interface(self, name: str) -> int:
        fd = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
        self._undo.callback(os.close, fd)  # the interface goes with it
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH", name.encode(), _TUN_FLAGS))
        return fd

    def _line(self, number: int, address: str) -> Line:
        name = f"gs{os.getpid()}n{number}"
        _ip("netns", "add", name)
        self._undo.callback(_ip, "netns", "del", name)
        fd = self._interface(name)
        _ip("link", "set", name, "netns", name)
        _ip("-n", name, "addr", "add", address, "dev", name)
        _ip("-n", name, "link", "set", name, "up", "mtu", str(_MTU))
        _ip("-n", name, "link", "set", "lo", "up")
        return Line(name, fd)

    def __enter__(self) -> Cables:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._undo.close()

    def _carry(self) -> None:
        with selectors.DefaultSelector() as selector:
            for number, fd in enumerate([self._hub, *(line.fd for line in self.lines)]):
                selector.register(fd, selectors.EVENT_READ, number - 1)
            while not self._stop.is_set():
                wait = self._queue[0][0] - time.monotonic() if self._queue else 0.05
                for key, _ in selector.select(min(0.05, max(0.0, wait))):
                    self._read(key.fd, key.data)
                while self._queue and self._queue[0][0] <= time.monotonic():
                    _, _, fd, packet = heapq.heappop(self._queue)
                    with suppress(OSError):  # the plug is pulled
                        os.write(fd, packet)

    def _read(self, fd: int, number: int) -> None:
        """Take what one interface sends; -1 is this machine's own."""
        with suppress(OSError):  # no more for now, or the plug is pulled
            while True:
                packet = os.read(fd, _MTU + 64)
                if packet[0] >> 4 != 4:
                    continue
                upwards = number >= 0
                place = number if upwards else packet[19] - 10
                if 0 <= place < len(self.lines):
                    self._send(self.lines[place], packet, upwards)

    def _send(self, line: Line, packet: bytes, upwards: bool) -> None:
        if upwards:
            line.up += len(packet)
            _note_port(line.ports, packet)
        if line.cut or self._rng.random() < line.loss:
            line.lost += 1
            return
        self._order += 1
        due = time.monotonic() + line.delay_s
        heapq.heappush(self._queue, (due, self._order, self._hub if upwards else line.fd, packet))


def _note_port(ports: set[int], packet: bytes) -> None:
    begin = 4 * (packet[0] & 15)
    if packet[9] == _TCP and packet[begin + 13] & _SYN_ACK == _SYN:
        ports.add(int.from_bytes(packet[begin : begin + 2], "big"))


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, timeout=20)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.decode().strip()}")


def why_no_cables() -> str:
    """Why namespaces cannot be had here; empty: they can."""
    if shutil.which("ip") is None or not _TUN.exists():
        return "needs Linux with the command ip and /dev/net/tun"
    try:
        with Cables(1, random.Random(0)):
            return ""
    except (OSError, subprocess.SubprocessError) as error:
        return f"network namespaces are not permitted here: {error}"


# The proxy --------------------------------------------------------------------------------------


class Proxy:
    """Relays TCP connections to one address until told otherwise. Use it in a ``with`` block."""

    def __init__(self, host: str, port: int) -> None:
        self._to = (host, port)
        self._open, self._stop = threading.Event(), threading.Event()
        self._refusing = False
        self._open.set()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._open.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._reset()

    def stall(self) -> None:
        """Carry nothing more and tell nobody: connections are half open, new ones hang."""
        self._open.clear()

    def cut(self) -> None:
        """Reset all connections, and every new one, until ``heal``."""
        self._refusing = True
        self._reset()

    def heal(self) -> None:
        """Carry again."""
        self._refusing = False
        self._open.set()

    def _reset(self) -> None:
        for end in tuple(self._sockets):
            _abort(end)

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self._refusing:
                    raise OSError
                far = socket.create_connection(self._to, 5)
            except OSError:
                _abort(near)
                continue
            far.settimeout(None)
            self._sockets.update((near, far))
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self._open.wait()
                sink.sendall(data)
        except OSError:
            _abort(sink)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        self._sockets.discard(source)


def _abort(end: socket.socket) -> None:
    """Close so that the other side gets a reset."""
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        end.close()
