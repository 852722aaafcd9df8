"""SIGKILL at random moments and at the worst ones: the run ends as if nothing had happened.

The suite kills a few times at random; ``--kills 100`` kills a hundred times, over both algorithms.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from gradsense.coordinator.journal import RunJournal
from gradsense.coordinator.snapshots import KEPT_MODELS
from tests.support import crash_child
from tests.support.toy_fleet import open_run

ALGORITHMS = ("gsfs:share=1.0:deadline_s=1000", "fedbuff:updates=3")
ROOT = Path(__file__).parents[2]
#: Place, when, at which call. The first call of ``commit`` and ``out`` is the devices' coming.
WORST = [
    ("fsync", "before", 1),  # the model's file has no bytes for certain
    ("fsync", "after", 1),
    ("rename", "before", 2),
    ("rename", "after", 1),  # the file is there, the folder is not synced
    ("fsync", "after", 2),
    ("save", "after", 3),  # the model is durable, the journal does not name it
    ("transaction", "before", 3),
    ("transaction", "after", 3),
    ("commit", "before", 4),
    ("commit", "after", 2),  # the models that went out of use are not swept
    ("sweep", "after", 2),
    ("out", "before", 5),  # durable, and not acknowledged
]


class Child:
    """Starts the driver on one run, again and again."""

    def __init__(self, algorithm: str, root: Path) -> None:
        self.algorithm, self.folder, self.told = algorithm, root / "run", root / "acked"
        root.mkdir(exist_ok=True)
        self.told.touch()
        crash_child.make(algorithm, self.folder)

    def start(self, *kill: object) -> subprocess.Popen[bytes]:
        script = str(Path(crash_child.__file__))
        command = [sys.executable, script, self.algorithm, str(self.folder), str(self.told)]
        return subprocess.Popen(
            [*command, *map(str, kill)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))},
            stderr=subprocess.PIPE,
        )

    def acked(self) -> list[str]:
        return self.told.read_text().splitlines()

    def finish(self) -> None:
        child = self.start()
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors.decode()


def check(child: Child, undisturbed: Child) -> None:
    """As if nothing had happened: model, state, and each update decided once."""
    runs = [open_run(one.folder) for one in (undisturbed, child)]
    calm, killed = (run.status() for run in runs)
    assert (killed.version, killed.hash) == (calm.version, calm.hash)
    assert calm.version >= 10
    (values, _), (wanted, _) = (run._remember().coordinator.snapshot() for run in runs)
    times = [entry.pop("arrived_s") for one in (values, wanted) for entry in one["pooled"]]
    times += [one.pop("issued_at") for one in (values, wanted)]
    assert values == wanted
    assert all(at <= killed.now or at <= calm.now for at in times)
    count = len(crash_child.DEVICES) * crash_child.SEQUENCES
    refused = crash_child.SEQUENCES // 5
    assert (killed.updates, killed.refused) == (count - refused, {"bad-sample-count": refused})
    for run in runs:
        run.close()
    ledger = RunJournal(child.folder)
    decided = Counter(
        (event.device, str(event.sequence), event.refusal)
        for event in ledger.events(0)
        if event.sequence is not None
    )
    ledger.close()
    assert set(decided.values()) == {1}
    assert {(*line.split(" "),) for line in child.acked()} == decided.keys()
    assert len(list((child.folder / "models").iterdir())) <= KEPT_MODELS + 1


@pytest.fixture(scope="module", params=ALGORITHMS)
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Child:
    child = Child(request.param, tmp_path_factory.mktemp("calm"))
    child.finish()
    return child


@pytest.mark.slow
def test_killed_at_the_worst_moments(undisturbed: Child, tmp_path: Path) -> None:
    child = Child(undisturbed.algorithm, tmp_path)
    for kill in WORST:
        process = child.start(*kill)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, (kill, errors.decode())
    assert len(child.acked()) < len(undisturbed.acked())
    child.finish()
    check(child, undisturbed)


@pytest.mark.slow
def test_killed_at_random(undisturbed: Child, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    rng, kills, working, runs = random.Random(3), 0, 0, 0
    wanted = -(-int(pytestconfig.getoption("--kills")) // len(ALGORITHMS))
    while kills < wanted:
        runs += 1
        child = Child(undisturbed.algorithm, tmp_path / str(runs))
        while kills < wanted and len(child.acked()) < len(undisturbed.acked()):
            process, before = child.start(), len(child.acked())
            early = rng.random() < 0.2
            while not early and process.poll() is None and len(child.acked()) == before:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.5 if early else 0.08))
            process.kill()
            _, errors = process.communicate()
            assert process.returncode in {0, -signal.SIGKILL}, errors.decode()
            kills += process.returncode != 0
            working += process.returncode != 0 and len(child.acked()) > before
        child.finish()
        check(child, undisturbed)
    assert working >= wanted / 3, "most kills should come in the middle of work"
    print(f"{kills} kills, {working} of them while it worked, {runs} runs")
