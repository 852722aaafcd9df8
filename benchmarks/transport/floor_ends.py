"""The two ends of the floor, a process each, with nothing beyond the standard library.

``receive`` writes every message to a file, syncs it and answers with the moment (Unix time, ns)
and its own CPU time so far (ns). ``send`` reads commands ``BYTES REPEATS`` from standard input and
prints a JSON list of messages for each. A frame is a length of 8 bytes and so many bytes.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import struct
import sys
import threading
import time
from pathlib import Path

_LENGTH = struct.Struct("!Q")
_ANSWER = struct.Struct("!QQ")
_PIECE = 1 << 16


def receive(folder: Path, context: ssl.SSLContext, listener: socket.socket) -> None:
    """Serve every connection in a thread of its own, for ever."""
    print(listener.getsockname()[1], flush=True)
    while True:
        raw, _ = listener.accept()
        _no_delay(raw)
        link = context.wrap_socket(raw, server_side=True)
        threading.Thread(target=_serve, args=(link, folder), daemon=True).start()


def _serve(link: ssl.SSLSocket, folder: Path) -> None:
    file = folder / f"{threading.get_ident()}.bin"
    while head := link.recv(_LENGTH.size):
        (missing,) = _LENGTH.unpack(head + _exactly(link, _LENGTH.size - len(head)))
        with file.open("wb") as out:
            while missing:
                piece = link.recv(min(_PIECE, missing))
                if not piece:
                    return
                out.write(piece)
                missing -= len(piece)
            out.flush()
            os.fsync(out.fileno())
        link.sendall(_ANSWER.pack(time.time_ns(), time.process_time_ns()))


def send(context: ssl.SSLContext, port: int) -> None:
    """Upload what standard input asks for until it ends."""
    raw = socket.create_connection(("127.0.0.1", port))
    _no_delay(raw)
    with context.wrap_socket(raw, server_hostname="localhost") as link:
        print("ready", flush=True)
        for line in sys.stdin:
            size, repeats = map(int, line.split())
            print(json.dumps([_upload(link, size) for _ in range(repeats)]), flush=True)


def _upload(link: ssl.SSLSocket, size: int) -> dict[str, int]:
    payload = os.urandom(size)
    decided, cpu = time.time_ns(), time.process_time_ns()
    link.sendall(_LENGTH.pack(size))
    link.sendall(payload)
    had, centre_cpu = _ANSWER.unpack(_exactly(link, _ANSWER.size))
    return {
        "decided": decided,
        "had": had,
        "answered": time.time_ns(),
        "cpu_device": time.process_time_ns() - cpu,
        "cpu_centre_so_far": centre_cpu,
    }


def _exactly(link: ssl.SSLSocket, size: int) -> bytes:
    read = b""
    while len(read) < size:
        piece = link.recv(size - len(read))
        if not piece:
            raise ConnectionError("the other end closed in the middle of a frame")
        read += piece
    return read


def _no_delay(link: socket.socket) -> None:
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def main() -> None:
    """``receive FOLDER`` or ``send PORT``, each followed by authority, certificate and key."""
    role, where, authority, certificate, key = sys.argv[1:]
    server = role == "receive"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority)
    context.load_cert_chain(certificate, key)
    context.verify_mode = ssl.CERT_REQUIRED
    if server:
        receive(Path(where), context, socket.create_server(("127.0.0.1", 0)))
    else:
        send(context, int(where))


if __name__ == "__main__":
    main()
