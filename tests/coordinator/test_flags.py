"""A device that calls the same records something else is flagged, and nothing happens to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gradsense.coordinator.flags import FLAGGED, Flags
from gradsense.fleet.jobs import JOB_FILE, RUNS, START
from gradsense.learning.statistics import STATISTICS, factorise
from tests.support.toy_fleet import acks, job, new_run, sent, status
from tests.support.toys import update

HEAD = {"score.weight": np.zeros((2, 4), np.float32), "score.bias": np.zeros(2, np.float32)}


def test_a_liar_among_sites_that_see_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / RUNS / "porch"
    run = new_run(folder, HEAD, algorithm="gsfs:share=1.0")
    (folder / START).mkdir()
    (folder / START / JOB_FILE).write_text(job(algorithm="gsfs:share=1.0").text())
    names = [f"site-{number}" for number in range(5)]
    run.take([status(name) for name in names], now=0.0, wall=0.0)
    flags = Flags(tmp_path)
    flags.look()
    assert flags.scores == {"porch": {}}
    for name in names:
        labels = rng.integers(0, 2, 60)
        x = rng.normal(scale=0.3, size=(60, 4)) + 2 * labels[:, None]
        said = 1 - labels if name == "site-3" else labels
        rows = np.hstack([x, np.ones((60, 1)), np.eye(2)[said]])
        delta = {STATISTICS: factorise(rows, 0.0)}
        moved = update(name, samples=60, delta=delta, codec="uniform")
        heard = run.take(sent(moved, run.newest.hash), now=0.0, wall=0.0)
        assert acks(heard) == {(name, 1): ""}
    assert run.newest.version == 1
    flags.look()
    scores = flags.scores["porch"]
    assert {name for name, score in scores.items() if score >= FLAGGED} == {"site-3"}
    assert run.status().devices["site-3"].records > 0
    before = flags.scores
    flags.look()
    assert flags.scores is before, "there is no new model"
