"""A SuperLink and its SuperNodes on this machine, over TLS and with authenticated nodes."""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.processes import marked
from benchmarks.transport.certificates import HOST, Certificates

APP = Path(__file__).parent / "flower_app"
CENTRE = "centre"
# Nothing may leave this machine, and nothing may be installed while we measure.
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
_CONNECTION = """[superlink]
default = "benchmark"

[superlink.benchmark]
address = "{address}"
root-certificates = "{authority}"
"""


class FlowerFailed(RuntimeError):
    """A Flower command failed or took too long; the message ends with what it logged."""


@dataclass
class Fleet:
    """Flower's processes of one deployment; ``roots`` names the two kinds of trees."""

    binaries: Path
    folder: Path
    database: Path | None
    environment: Mapping[str, str]
    port: int
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def roots(self) -> dict[str, int]:
        """Process ids of the SuperLink (``centre``) and of every SuperNode (``device-N``)."""
        return {name: process.pid for name, process in self.started.items()}

    def start_centre(self) -> None:
        """Start the SuperLink; return when it answers."""
        authority = self.folder / "tls" / "ca.pem"
        home = self._home(CENTRE)
        home.mkdir(parents=True, exist_ok=True)
        connection = _CONNECTION.format(address=f"{HOST}:{self.port}", authority=authority)
        (home / "config.toml").write_text(connection)
        command: list[str | Path] = ["flower-superlink", "--host", HOST, "--port", str(self.port)]
        command += ["--ssl-ca-certfile", authority, "--enable-supernode-auth"]
        command += ["--ssl-certfile", self.folder / "tls" / f"{CENTRE}.pem"]
        command += ["--ssl-keyfile", self.folder / "tls" / f"{CENTRE}.key"]
        if self.database is not None:
            command += ["--database", self.database]
        self._start(CENTRE, command)
        _until(lambda: _answers(self.port), 60, lambda: self.logged(CENTRE))

    def start_device(self, name: str) -> None:
        """Start a SuperNode; return when the SuperLink has let it in."""
        key = self.folder / "tls" / f"{name}.ssh"
        if not key.exists():
            _write_node_key(key)
            self.flwr("supernode", "register", str(key.with_suffix(".pub")), "benchmark")
        command: list[str | Path] = ["flower-supernode", "--superlink", f"{HOST}:{self.port}"]
        command += ["--root-certificates", self.folder / "tls" / "ca.pem"]
        command += ["--auth-supernode-private-key", key]
        command += ["--host", HOST, "--port", str(_free_port())]
        seen = len(self.logged(name))
        self._start(name, command)
        _until(
            lambda: "SuperNode ID:" in self.logged(name)[seen:],
            60,
            lambda: self.logged(name),
            alive=lambda: self.started[name].poll() is None,
        )

    def submit(self, devices: int, windows: Sequence[Mapping[str, Any]]) -> Path:
        """Start the app over these windows of uploads; the file that it will write."""
        output = self.folder / f"run-{secrets.token_hex(4)}.json"
        config = output.with_suffix(".toml")
        # JSON strings are TOML strings.
        values = {"devices": devices, "windows": json.dumps(windows), "output": str(output)}
        config.write_text(
            "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        )
        self.flwr("run", str(APP), "benchmark", "--run-config", str(config))
        return output

    def run(self, devices: int, windows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Run the app over these windows of uploads and return what it wrote."""
        output = self.submit(devices, windows)
        patience = 120 + 30 * devices * sum(window["repeats"] for window in windows)
        _until(output.exists, patience, lambda: self.logged(CENTRE))
        found = json.loads(output.read_text())
        if "error" in found:
            raise FlowerFailed(found["error"])
        return list(found)

    def flwr(self, *arguments: str) -> str:
        """Run the command line client ``flwr`` and return what it printed."""
        done = subprocess.run(
            [self.binaries / "flwr", *arguments],
            env=self._environment(CENTRE),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            raise FlowerFailed(f"flwr {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return str(done.stdout)

    def _start(self, name: str, command: Sequence[str | Path]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.started[name] = subprocess.Popen(
                [self.binaries / command[0], *command[1:]],
                env=self._environment(name),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _environment(self, name: str) -> dict[str, str]:
        # SuperLink and SuperNode start their helpers by name, from the PATH.
        path = f"{self.binaries}:{self.environment['PATH']}"
        return {**self.environment, **_QUIET, "PATH": path, "FLWR_HOME": str(self._home(name))}

    def _home(self, name: str) -> Path:
        return self.folder / "homes" / name

    def logged(self, name: str) -> str:
        """What the process ``name`` has written so far."""
        log = self.folder / f"{name}.log"
        return log.read_text(errors="replace") if log.exists() else ""


@contextlib.contextmanager
def deployed(python: Path, folder: Path, devices: int, *, disk: bool = False) -> Iterator[Fleet]:
    """A running fleet of ``devices`` SuperNodes; every process of it is gone afterwards.

    ``python`` is the interpreter of a virtual environment with ``flwr``. The SuperLink's state is
    in memory, as by default, or with ``disk`` in a database in ``folder``.
    """
    folder = folder.resolve()
    Certificates(folder / "tls").server(CENTRE)
    with marked(secrets.token_hex(8)) as environment:
        database = folder / "superlink.sqlite3" if disk else None
        # Not resolved: the interpreter of a virtual environment is a link out of it.
        fleet = Fleet(python.absolute().parent, folder, database, environment, _free_port())
        try:
            fleet.start_centre()
            for number in range(devices):
                fleet.start_device(f"device-{number}")
            yield fleet
        finally:
            _stop(list(fleet.started.values()))


def _stop(started: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in reversed(started):
        process.send_signal(signal.SIGTERM)
    for process in reversed(started):
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _write_node_key(file: Path) -> None:
    """A node's key pair, P-384 in OpenSSH's format: ``file`` and its ``.pub``."""
    key = ec.generate_private_key(ec.SECP384R1())
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    file.chmod(0o600)
    file.with_suffix(".pub").write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
    )


def _until(
    true: Callable[[], bool],
    patience_s: float,
    logged: Callable[[], str],
    alive: Callable[[], bool] = lambda: True,
) -> None:
    deadline = time.monotonic() + patience_s
    while not true():
        if time.monotonic() > deadline or not alive():
            raise FlowerFailed("\n".join(logged().splitlines()[-20:]))
        time.sleep(0.1)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1):
        return True
    return False


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as server:
        return int(server.getsockname()[1])
