"""A fleet that is restored from a backup while its devices go on: nothing lost, nothing twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fleet_rig import Rig, query

pytestmark = [pytest.mark.broker, pytest.mark.slow]

DEVICES, FLOWS, WAIT_S = 3, 400, 90.0


def kill(rig: Rig, name: str) -> None:
    process = rig.process(name)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def feed(rig: Rig, until: int) -> None:
    """Let every device's log grow to so many flows."""
    for site in rig.sites:
        with site.log.open("ab") as log:
            log.writelines(site.lines[site.played : until])
        site.played = max(site.played, min(until, len(site.lines)))


def settled(rig: Rig) -> None:
    names = [site.name for site in rig.sites]
    assert rig.wait(lambda: rig.audit().told and rig.presence().current(names), WAIT_S) is not None


def test_the_restore_drill(tmp_path: Path) -> None:
    with Rig(tmp_path / "rig", DEVICES, flows=FLOWS) as rig:
        rig.prepare()
        rig.start()
        feed(rig, 100)
        settled(rig)
        command = ["fleet", "backup", str(tmp_path / "copy"), "--fleet", str(rig.fleet)]
        subprocess.run([sys.executable, "-m", "gradsense", *command], check=True)
        saved = rig.audit()

        for until in (160, 230):
            feed(rig, until)
            settled(rig)
        before = rig.audit()
        assert before.pooled.total() > saved.pooled.total()
        kill(rig, "coordinator")
        feed(rig, FLOWS)  # the devices go on; what they send waits at the broker

        rig.fleet.rename(tmp_path / "lost")
        shutil.copytree(tmp_path / "copy", rig.fleet)
        ((version,),) = query(rig.journal, "SELECT max(version) FROM models")
        ((lost,),) = query(
            tmp_path / "lost" / rig.journal.relative_to(rig.fleet),
            "SELECT max(version) FROM models",
        )
        assert version < lost
        rig.start_coordinator()
        settled(rig)

        after = rig.audit()
        assert set(after.pooled.values()) == {1}
        assert (after.twice, after.lost, after.refused) == (0, 0, 0)
        assert after.samples == {site.name: len(site.lines) for site in rig.sites}
        again = sum(
            value
            for site in rig.sites
            for (value,) in query(
                site.folder / "state" / "agent.sqlite3",
                "SELECT value FROM counters WHERE name = 'offered-again'",
            )
        )
        assert again == before.pooled.total() - saved.pooled.total()
