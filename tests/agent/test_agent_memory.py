"""The agent's memory: state and update together or not at all, also when it is killed."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradsense.agent.labelling import Gathered
from gradsense.agent.store import FILE, MIGRATIONS, NO_MODEL, AgentStore
from gradsense.errors import GradsenseError, InputError
from gradsense.federation.algorithm import get_algorithm
from gradsense.federation.client import Client
from gradsense.federation.update import GlobalModel
from gradsense.storage.sqlite import StorageFull
from gradsense.transport.messages import SignedMessage, sign_message
from gradsense.transport.payloads import model_hash
from gradsense.transport.protocol import MessageHeader

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
TENSORS = {"score.weight": np.float32([[1, 2], [3, 4]]), "score.bias": np.float32([0, -1])}


def signed(sequence: int, body: bytes = b"update") -> SignedMessage:
    return sign_message(MessageHeader("update", "plant", "gate", sequence, 2, "ab" * 32), body, KEY)


def state(sequence: int) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"sequence": sequence}, {"local": TENSORS, "reference": TENSORS}


def gathered(phrase_ids: np.ndarray, places: dict[str, Any], *, taken: bytes = b"", flows: int = 0):
    """Rows of class 0, 1, 2, ..., each for seven flows."""
    rows = len(phrase_ids)
    counts = Counter({"flows": flows} if flows else {})
    return Gathered(phrase_ids, np.arange(rows), np.full(rows, 7), places, taken, counts)


def picked(rows: int) -> np.ndarray:
    return np.arange(3 * rows, dtype=np.uint16).reshape(rows, 3)


@pytest.fixture
def memory(tmp_path: Path) -> AgentStore:
    return AgentStore(tmp_path / "state")


def test_a_fresh_memory_holds_nothing(memory: AgentStore) -> None:
    assert memory.client() is None
    assert memory.model() is None
    assert memory.head() is None
    assert memory.held() == NO_MODEL
    assert (memory.outbox_bytes, outbox_count(memory), memory.full) == (0, 0, False)
    assert (memory.places(), memory.taken(), memory.counters(), list(memory)) == ({}, b"", {}, [])


def test_everything_is_there_for_the_next_process(tmp_path: Path) -> None:
    first = AgentStore(tmp_path)
    client = Client("gate", learner=None, algorithm=get_algorithm("gsfs-tune"))
    model = GlobalModel(2, TENSORS, frozenset({"gate", "barn"}))
    client.adopt(model)
    client.sequence = 1
    first.save(client.snapshot(), update=signed(1), model=model)
    assert first.held() == (2, model_hash(TENSORS))
    first.close()
    again = AgentStore(tmp_path)
    restored = Client("gate", learner=None, algorithm=get_algorithm("gsfs-tune"))
    restored.restore(*again.client())
    assert restored.snapshot()[0] == client.snapshot()[0]
    assert restored.state.local is restored.state.reference, "shared, so nothing counts as unsent"
    kept = again.model()
    assert (kept.version, kept.participants) == (2, {"gate", "barn"})
    assert again.held() == (2, model_hash(kept.tensors)) == (2, model_hash(TENSORS))
    assert again.head() == signed(1)
    assert again.counters() == {}


def test_outbox_goes_in_order_and_an_acknowledgement_counts_once(memory: AgentStore) -> None:
    for sequence in (1, 2, 3):
        memory.save(state(sequence), update=signed(sequence, bytes(10)))
    assert (outbox_count(memory), memory.outbox_bytes) == (3, 30)
    assert memory.acknowledged(1)
    assert not memory.acknowledged(1), "a repeated one changes nothing"
    assert memory.head() == signed(2, bytes(10))
    changed = ({"sequence": 3, "told": 0}, {})
    assert memory.acknowledged(2, "not-finite", client=changed)
    assert not memory.acknowledged(2, "not-finite", client=state(9)), "nor the state"
    assert memory.client()[0] == changed[0]
    assert memory.counters() == {"acknowledged": 1, "refused:not-finite": 1}
    assert memory.head() == signed(3, bytes(10))


def test_outbox_is_full_at_its_bound(tmp_path: Path) -> None:
    memory = AgentStore(tmp_path, most_bytes=20)
    memory.save(state(1), update=signed(1, bytes(19)))
    assert not memory.full
    memory.save(state(2), update=signed(2, bytes(1)))
    assert memory.full
    memory.save(state(3), update=signed(3))
    assert outbox_count(memory) == 3, "what was made is never dropped"
    memory.acknowledged(1)
    assert not memory.full


def test_an_update_of_another_number_is_a_defect(memory: AgentStore) -> None:
    with pytest.raises(ValueError, match="number"):
        memory.save(state(2), update=signed(1))
    assert (memory.client(), memory.head()) == (None, None)


def test_batches_come_with_the_places_that_they_were_read_up_to(memory: AgentStore) -> None:
    memory.append(gathered(picked(2), {"a": {"at": 5}, "b": 1}, taken=b"w", flows=9))
    memory.append(gathered(picked(0), {"a": {"at": 6}}, taken=b"x", flows=1))
    memory.append(gathered(picked(1), {"a": {"at": 7}}, taken=b"x"))
    assert memory.places() == {"a": {"at": 7}, "b": 1}
    assert (memory.taken(), memory.counters()) == (b"x", {"flows": 10})
    assert len(memory) == 2, "what has no rows is no batch"
    phrase_ids, labels, weights = memory[0]
    assert (phrase_ids.dtype, labels.dtype, weights.dtype) == (np.uint16, np.int64, np.int64)
    assert phrase_ids.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (labels.tolist(), weights.tolist()) == ([0, 1], [7, 7])
    with pytest.raises(IndexError):
        memory[2]
    assert [len(batch[1]) for batch in memory] == [2, 1]


def outbox_count(memory: AgentStore) -> int:
    return int(memory._db.all("SELECT count(*) FROM outbox")[0][0])


def limit(memory: AgentStore, pages: int) -> None:
    """SQLite's own way to a full disk."""
    (used,) = memory._db.connection.execute("PRAGMA page_count").fetchone()
    memory._db.connection.execute(f"PRAGMA max_page_count={used + pages}")


def test_a_full_disk_takes_in_nothing_and_later_all(memory: AgentStore) -> None:
    memory.save(state(1), update=signed(1))
    limit(memory, 1)
    # More than a page, and nothing that packs: the signed follows state and model.
    body = random.Random(0).randbytes(20_000)
    model = GlobalModel(1, TENSORS)
    with pytest.raises(StorageFull, match="full"):
        memory.save(state(2), update=signed(2, body), model=model)
    assert memory.client()[0] == {"sequence": 1}
    assert (outbox_count(memory), memory.counters(), memory.model()) == (1, {}, None)
    assert memory.held() == NO_MODEL
    phrase_ids = np.frombuffer(random.Random(0).randbytes(20_000), np.uint16)
    big = gathered(phrase_ids[:, None], {"a": 1})
    with pytest.raises(StorageFull):
        memory.append(big)
    assert (memory.places(), len(memory)) == ({}, 0)
    limit(memory, 100)
    memory.save(state(2), update=signed(2, body), model=model)
    memory.append(big)
    assert (outbox_count(memory), memory.counters(), len(memory)) == (2, {}, 1)
    assert memory.held() == (1, model_hash(TENSORS))


def test_nobody_else_reads_it(memory: AgentStore) -> None:
    memory.save(state(1))
    folder = memory.file.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = [file for file in folder.iterdir() if file.name.startswith(FILE)]
    assert len(files) == 3, "the file itself, its log and that log's index"
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_one_process_at_a_time(memory: AgentStore) -> None:
    with pytest.raises(InputError, match="another gradsense"):
        AgentStore(memory.file.parent)
    memory.close()
    AgentStore(memory.file.parent).close()


def test_what_is_no_memory_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database, but long enough to be looked at" * 100)
    with pytest.raises(InputError, match="no state"):
        AgentStore(tmp_path)
    (tmp_path / FILE).unlink()
    AgentStore(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(InputError, match="version 99"):
        AgentStore(tmp_path)


@pytest.mark.parametrize("waiting", [0, 2])
def test_updates_of_protocol_1_are_dropped_and_counted(tmp_path: Path, waiting: int) -> None:
    with sqlite3.connect(tmp_path / FILE) as db:
        db.executescript(f"{MIGRATIONS[0]} PRAGMA user_version=1;")
        rows = [(number, '[["gs-schema", "1"]]', b"body") for number in range(1, waiting + 1)]
        db.executemany("INSERT INTO outbox VALUES (?, ?, ?)", rows)
    memory = AgentStore(tmp_path)
    assert memory.head() is None
    assert memory.counters() == ({"refused:unsupported-schema": waiting} if waiting else {})


def test_a_damaged_state_says_so(memory: AgentStore) -> None:
    memory.save(state(1))
    memory._db.connection.execute("UPDATE states SET body = substr(body, 1, 20)")
    with pytest.raises(GradsenseError, match="damaged"):
        memory.client()


# Killed ---------------------------------------------------------------------------------------


def work_for_ever(folder: Path) -> None:
    """Make updates and hear of them, as fast as it goes; told on stdout after each."""
    rng = random.Random()
    memory = AgentStore(folder)
    saved = memory.client()
    sequence = saved[0]["sequence"] if saved else 0
    while True:
        sequence += 1
        tensors = {"local": {"w": np.full(50_000, sequence, np.float32)}}
        body = rng.randbytes(rng.choice([100, 300_000]))
        memory.save(({"sequence": sequence}, tensors), update=signed(sequence, body))
        os.write(1, f"{sequence}\n".encode())
        while outbox_count(memory) > rng.randrange(4):
            memory.acknowledged(memory.head().properties.header.sequence)


@pytest.mark.slow
def test_state_and_outbox_agree_after_a_kill(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    rng = random.Random(5)
    before = 0
    kills = int(pytestconfig.getoption("--kills"))
    for _ in range(kills):
        child = subprocess.Popen([sys.executable, __file__, str(tmp_path)], stdout=subprocess.PIPE)
        told = int(child.stdout.readline())
        assert told > before, "it goes on where the killed one stopped"
        time.sleep(rng.uniform(0, 0.15))
        child.send_signal(signal.SIGKILL)
        told = max([told, *map(int, child.communicate()[0].split())])
        memory = AgentStore(tmp_path)
        values, tensors = memory.client()
        sequence = values["sequence"]
        assert told <= sequence <= told + 1, "what was told is durable"
        assert set(tensors["local"]["w"].tolist()) == {sequence}
        acknowledged = memory.counters().get("acknowledged", 0)
        rows = memory._db.all("SELECT sequence FROM outbox ORDER BY sequence")
        waiting = [row[0] for row in rows]
        assert waiting == list(range(acknowledged + 1, sequence + 1))
        head = memory.head()
        assert head is None or head.properties.body_size == len(head.body)
        memory.close()
        before = sequence
    assert before > 2 * kills, "most of them should come in the middle of work"


if __name__ == "__main__":
    work_for_ever(Path(sys.argv[1]))


def test_a_memory_is_of_one_device_in_one_run(tmp_path: Path) -> None:
    memory = AgentStore(tmp_path)
    memory.claim("porch", "cam")
    memory.claim("porch", "cam")
    for run, device in (("porch", "bell"), ("garden", "cam")):
        with pytest.raises(InputError, match=r"of porch/cam \(run/device\)"):
            memory.claim(run, device)
    memory.close()
