"""SIGKILL at random moments while the log grows and rotates: every flow is judged once.

The suite kills a few times; ``pytest tests/gateway/test_kill.py --kills 100`` kills a hundred.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from gradsense.gateway.store import GatewayStore

RUN = [sys.executable, "-c", "from gradsense.cli import main; main()", "watch"]


class Writer:
    """Writes a log as Zeek does, in pieces that may end in the middle of a line."""

    def __init__(self, folder: Path, model: Path, rng: random.Random) -> None:
        lines = model.read_bytes().splitlines(keepends=True)
        self.header = [line for line in lines if line.startswith(b"#")]
        self.rows = [line for line in lines if not line.startswith(b"#")]
        self.log, self.rng = folder / "conn.log", rng
        self.uids: list[str] = []
        self.files = 0
        self.rest = b""
        self.file = self._new()

    def write(self, flows: int) -> None:
        """So many flows; the last is left half-written until the next call."""
        data = self.rest
        for _ in range(flows):
            cells = self.rng.choice(self.rows).split(b"\t")
            cells[1] = f"C{len(self.uids):08d}".encode()
            self.uids.append(cells[1].decode())
            data += b"\t".join(cells)
        cut = self.rng.randrange(1, 30)
        self.file.write(data[:-cut])
        self.rest = data[-cut:]

    def rotate(self) -> None:
        """What logrotate and Zeek do: rename, and begin a new file with a new header."""
        self.finish()
        self.log.rename(self.log.with_name(f"conn.{self.files}.log"))
        self.file = self._new()

    def finish(self) -> None:
        self.file.write(self.rest)
        self.rest = b""
        self.file.close()

    def _new(self):
        self.files += 1
        file = self.log.open("ab", buffering=0)
        opened = f"#open\t2026-01-01-00-00-{self.files:02d}\n".encode()
        head = [line for line in self.header if not line.startswith((b"#open", b"#close"))]
        file.write(b"".join([*head[:-2], opened, *head[-2:]]))
        return file


def size_of(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


@pytest.mark.slow
def test_every_flow_is_judged_once(
    edge_bundle: Path, edge_log: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    rng = random.Random(7)
    writer = Writer(tmp_path, edge_log, rng)
    state, verdicts = tmp_path / "state", tmp_path / "verdicts.jsonl"
    command = [*RUN, str(writer.log), "--model", str(edge_bundle), "--state", str(state)]
    command += ["--verdicts", str(verdicts), "--output", "none"]
    kills = int(pytestconfig.getoption("--kills"))
    # A place is remembered from here on: who never watched a log owes it nothing.
    subprocess.run([*command, "--once"], capture_output=True, check=True)
    working = 0
    for kill in range(kills):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        before = size_of(verdicts)
        # A quarter dies while it starts, the others in the middle of work.
        early = rng.random() < 0.25
        patience, more = rng.uniform(0, 0.8), rng.uniform(0, 0.7)
        while patience > 0:
            writer.write(rng.choice([1, 3, 30, 300]))
            if rng.random() < 0.03:
                writer.rotate()
            pause = rng.uniform(0, 0.03)
            time.sleep(pause)
            if early or size_of(verdicts) > before:
                patience = (patience if early else min(more, patience)) - pause - 0.001
        assert child.poll() is None, child.stderr.read().decode()
        child.send_signal(signal.SIGKILL)
        child.communicate()
        working += size_of(verdicts) > before
        if kill % 3 == 0:  # and what happens while nobody watches
            writer.rotate()
            writer.write(5)
    writer.finish()
    last = subprocess.run([*command, "--once", "--json"], capture_output=True, check=False)
    assert last.returncode == 0, last.stderr.decode()
    judged = [json.loads(line) for line in verdicts.read_text().splitlines()]
    seen = Counter(one["uid"] for one in judged)
    assert {uid: n for uid, n in seen.items() if n > 1} == {}
    assert [uid for uid in writer.uids if uid not in seen] == []
    assert [one["uid"] for one in judged] == writer.uids
    assert working >= kills / 2, "most kills should come in the middle of work"
    journal = GatewayStore(state)
    counted = journal.counters()
    assert counted["flows"] == len(writer.uids)
    assert not [name for name in counted if name.startswith("dropped:")]
    assert counted["alarms"] == sum(one["alarm"] for one in judged)
    assert journal.open_groups() == []
    print(f"{kills} kills, {writer.files} files, {len(writer.uids)} flows, {working} while working")
