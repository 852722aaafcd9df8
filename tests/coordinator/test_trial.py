"""An update that ends the process is tried in a child at the next start, and refused by name."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gradsense.coordinator import trial
from gradsense.coordinator.trial import SetAside, Suspect, Trials
from gradsense.errors import NotFinite
from gradsense.federation.update import Update
from gradsense.learning.statistics import STATISTICS
from gradsense.transport.payloads import pack_update
from tests.support import trial_child
from tests.support.toy_fleet import acks, new_run, open_run, sent, status
from tests.support.toys import factor_of, update

ROOT = Path(__file__).parents[2]
HEAD = {"score.weight": np.zeros((2, 1), np.float32), "score.bias": np.zeros(2, np.float32)}
ONE, TWO = Suspect("a", 1, "ab" * 32), Suspect("gate-7", 10**17, "cd" * 32)


def ends(folder: Path, suspect: Suspect) -> None:
    """A process that ends while it handles this update."""
    child = os.fork()
    if child == 0:
        try:
            Trials(folder).handle(suspect, int, lambda: os.kill(os.getpid(), signal.SIGKILL))
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def test_what_is_handled_is_named_until_it_is_done(tmp_path: Path) -> None:
    trials = Trials(tmp_path)
    assert trials.handle(ONE, int, lambda: Trials(tmp_path).suspects) == [ONE]
    assert Trials(tmp_path).suspects == []

    def refuses() -> None:
        raise NotFinite("no number")

    with pytest.raises(NotFinite):
        trials.handle(ONE, refuses, refuses)
    assert Trials(tmp_path).suspects == []


def test_whatever_else_it_raises_makes_it_suspect_at_once(tmp_path: Path) -> None:
    def fails() -> None:
        raise MemoryError

    trials = Trials(tmp_path)
    with pytest.raises(MemoryError):
        trials.handle(ONE, fails, fails)
    assert trials.suspects == Trials(tmp_path).suspects == [ONE]
    with pytest.raises(SetAside):
        trials.handle(ONE, fails, fails)
    assert trials.suspects == Trials(tmp_path).suspects == []


def test_an_honest_update_that_was_interrupted_is_handled_once_here(tmp_path: Path) -> None:
    ends(tmp_path, ONE)
    ends(tmp_path, TWO)  # the first is not forgotten over the second
    trials, done = Trials(tmp_path), []
    assert trials.suspects == [ONE, TWO]
    trials.handle(TWO, int, lambda: done.append("two"))
    assert (done, trials.suspects, Trials(tmp_path).suspects) == (["two"], [ONE], [ONE])
    trials.handle(ONE, int, lambda: done.append("one"))
    assert (done, Trials(tmp_path).suspects) == (["two", "one"], [])


def test_what_a_child_survives_may_end_the_process_thrice_in_all(tmp_path: Path) -> None:
    for _ in range(3):
        ends(tmp_path, ONE)
        assert set(Trials(tmp_path).suspects) == {ONE}
    with pytest.raises(SetAside):
        Trials(tmp_path).handle(ONE, int, lambda: pytest.fail("never again"))
    assert Trials(tmp_path).suspects == []


def test_a_child_without_an_end_is_ended(tmp_path: Path) -> None:
    ends(tmp_path, ONE)
    with pytest.raises(SetAside):
        Trials(tmp_path, timeout_s=0.05).handle(ONE, lambda: time.sleep(600), int)


def test_a_child_may_not_take_all_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_CHILD_BYTES", 64 << 20)
    ends(tmp_path, ONE)
    with pytest.raises(SetAside):
        Trials(tmp_path).handle(ONE, lambda: bytes(256 << 20), int)


def test_more_suspects_than_the_file_holds_and_lines_that_are_none(tmp_path: Path) -> None:
    many = [Suspect("x" * 64, 10**17 + number, "ef" * 32) for number in range(40)]
    trials = Trials(tmp_path)
    trials.suspects = many
    trials.handle(ONE, int, lambda: None)
    assert (tmp_path / trial.FILE).stat().st_size == trial._FILE_BYTES
    assert Trials(tmp_path).suspects == many[-trial._MOST :]
    for noise in (b"", b"\xff" * 5000, b"a b c d\n", b"a one two\n"):
        (tmp_path / trial.FILE).write_bytes(noise)
        assert Trials(tmp_path).suspects == []


# A coordinator's process ------------------------------------------------------------------------


def start(folder: Path, acked: Path, how: str) -> int:
    script = str(Path(trial_child.__file__))
    return subprocess.run(
        [sys.executable, script, str(folder), str(acked), how],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))},
        timeout=60,
        check=False,
    ).returncode


def test_a_body_that_kills_the_coordinator_does_so_once(tmp_path: Path) -> None:
    folder, acked = tmp_path / "run", tmp_path / "acked"
    acked.touch()
    trial_child.make(folder)
    assert start(folder, acked, "deadly") == -signal.SIGKILL
    assert acked.read_text() == "b 1 \n"  # it came before
    for how in ("deadly", "harmless"):  # for good, whatever it would do by now
        acked.write_text("")
        assert start(folder, acked, how) == 0
        assert acked.read_text() == "b 1 \na 1 set-aside\nc 1 \n"
    run = open_run(folder)
    assert run.status().refused == {"set-aside": 1}
    assert (run.status().updates, run.status().devices["a"].sequence) == (2, 1)


def test_an_update_that_was_interrupted_by_chance_is_pooled(tmp_path: Path) -> None:
    folder, acked = tmp_path / "run", tmp_path / "acked"
    acked.touch()
    trial_child.make(folder)
    assert start(folder, acked, "deadly") == -signal.SIGKILL
    acked.write_text("")
    assert start(folder, acked, "harmless") == 0
    assert acked.read_text() == "b 1 \na 1 \nc 1 \n"
    run = open_run(folder)
    assert (run.status().refused, run.status().updates) == ({}, 3)


def read(device: str, sequence: int) -> Update:
    delta = {STATISTICS: factor_of(sequence, 8)}
    return update(device, sequence=sequence, samples=8, delta=delta, codec="uniform")


def test_an_update_that_makes_the_next_model_of_the_journal_is_no_less_innocent(
    tmp_path: Path,
) -> None:
    """A child has no connection to the journal that holds what devices have contributed."""
    run = new_run(tmp_path, HEAD, algorithm="gsfs:share=0.3")
    run.take([status("cam"), status("bell")], now=0.0, wall=0.0)
    for device in ("cam", "bell"):
        run.take(sent(read(device, 1), run.newest.hash), now=0.0, wall=0.0)
    run.close()
    again = read("cam", 2)
    digest = hashlib.sha256(pack_update(again)).hexdigest()
    (tmp_path / trial.FILE).write_text(f"cam 2 {digest}\n")
    run = open_run(tmp_path)
    heard = run.take(sent(again, run.newest.hash), now=1.0, wall=0.0)
    assert acks(heard) == {("cam", 2): ""}
    assert run.status().version == 3
