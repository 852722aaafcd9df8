"""``gradsense fleet up`` and what works on its folder: a whole fleet through the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gradsense.data.synthetic.traffic import write_fleet
from gradsense.fleet.jobs import Job
from gradsense.localfleet.local_fleet import LocalFleet

pytestmark = [pytest.mark.broker, pytest.mark.slow]

Command = Callable[..., Any]
RUN = [sys.executable, "-m", "gradsense"]
WAIT_S = 60.0


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fleet of two that has come up, told what it had, and stopped."""
    out = tmp_path_factory.mktemp("up") / "out"
    command = [*RUN, "fleet", "up", "--devices", "2", "--flows", "400", "--play", "2"]
    done = subprocess.run(
        [*command, "--sealed", "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if "Mosquitto is not installed" in done.stderr:
        pytest.skip("mosquitto is not installed; apt-get install mosquitto")
    assert done.returncode == 0, done.stderr
    (out / "said").write_text(done.stdout)
    return out


def test_all_devices_end_on_one_model_and_detect(up: Path) -> None:
    said = (up / "said").read_text()
    found = re.search(
        r"model (\d+) \(\w{12}\) on 2 of 2 devices, of (\d+) updates in [\d,]+ bytes; "
        r"([\d,]+) flows judged",
        said,
    )
    assert found is not None, said
    version, updates, judged = (int(text.replace(",", "")) for text in found.groups())
    assert version >= 1
    assert updates >= 2
    assert judged > 0


def test_nothing_of_it_goes_on(up: Path) -> None:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert str(up).encode() not in entry.read_bytes()
        except OSError:
            continue


def test_status_shows_runs_and_devices(gradsense: Command, up: Path) -> None:
    told = gradsense("fleet", "status", "--fleet", up / "fleet", "--json")
    assert told.code == 0, told.err
    status = json.loads(told.out)
    assert status["stopped"]
    run = status["runs"]["up"]
    assert run["updates"] == sum(one["updates"] for one in run["devices"].values())
    assert {one["held"] for one in run["devices"].values()} == {run["version"]}
    shown = gradsense("fleet", "status", "--fleet", up / "fleet")
    assert "coordinator stopped" in shown.out
    assert "site-02" in shown.out


def test_the_model_comes_out_and_is_good(gradsense: Command, up: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    told = gradsense("fleet", "model", "up", "--fleet", up / "fleet", "--out", out)
    assert told.code == 0, told.err
    scored = gradsense("evaluate", "--model", out, "--data", up / "devices", "--json")
    assert json.loads(scored.out)["scores"]["f1_macro"] > 0.8


def test_what_is_not_there_is_said(gradsense: Command, up: Path, tmp_path: Path) -> None:
    gradsense("fleet", "model", "down", "--fleet", up / "fleet", "--out", tmp_path / "m").complaint(
        "there is no such run", "give one of up"
    )
    gradsense("fleet", "run", "up", "--fleet", up / "fleet", "--labels", "a,b").complaint(
        "is there already", "another name"
    )
    gradsense("fleet", "run", "new", "--fleet", up / "fleet").complaint("--labels")
    gradsense(
        "fleet", "run", "new", "--fleet", up / "fleet", "--labels", "a,b", "--algorithm", "best"
    ).complaint("unknown algorithm", "--algorithm")
    gradsense("fleet", "run", "no good", "--fleet", up / "fleet", "--labels", "a,b").complaint(
        "--run", "1 to 64"
    )
    gradsense("fleet", "up", "--out", up).complaint("is not empty", "new folder")
    gradsense("coordinator", "--fleet", tmp_path).complaint("fleet.json", "gradsense fleet init")
    gradsense("coordinator", "--fleet", up / "fleet", "--metrics", "9109").complaint("HOST:PORT")
    gradsense("fleet", "status", "--fleet", tmp_path).complaint("no fleet can be read there")


def test_a_device_says_what_is_wrong_with_what_it_is_given(
    gradsense: Command, up: Path, tmp_path: Path
) -> None:
    bundle, log = up / "devices" / "site-01" / "bundle", tmp_path / "conn.log"
    given = ("--logs", log, "--state", tmp_path / "state", "--no-detect")
    gradsense("edge", "--bundle", tmp_path, *given).complaint("device.json")
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nlabel = "Benign"\nport = 53\n')
    gradsense("edge", "--bundle", bundle, "--rules", rules, *given).complaint("rule 1", "port")
    other = up / "devices" / "site-02" / "state"
    gradsense("edge", "--bundle", bundle, "--logs", log, "--state", other, "--no-detect").complaint(
        "up/site-02", "--state of its own"
    )


def test_a_wrong_input_of_the_agent_ends_detection_too(up: Path, tmp_path: Path) -> None:
    """The agent is a child of its own: its fault must not be tried again for ever."""
    bundle = up / "devices" / "site-01" / "bundle"
    rules = tmp_path / "rules.toml"
    rules.write_text("[[rule]]\n")
    command = [*RUN, "edge", "--bundle", str(bundle), "--logs", str(tmp_path / "conn.log")]
    done = subprocess.run(
        [*command, "--rules", str(rules), "--state", str(tmp_path / "state")],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
    )
    assert done.returncode == 2, done.stderr
    assert "rule 1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LocalFleet]:
    """A fleet of one."""
    captures = tmp_path / "captures"
    write_fleet(captures, sites=4, flows=600, seed=2)

    def job(labels: tuple[str, ...]) -> Job:
        return Job(run="rules", algorithm="gsfs:floor=0.0", labels=labels)

    try:
        made = LocalFleet(tmp_path / "out", 1, captures=captures, job=job, play_s=0)
    except Exception as error:  # no broker here
        pytest.skip(str(error))
    with made:
        made.prepare()
        yield made


def test_rules_label_what_the_log_does_not(fleet: LocalFleet, tmp_path: Path) -> None:
    site = fleet.sites[0]
    for number, line in enumerate(site.lines):
        cells = line.decode().rstrip("\n").split("\t")
        cells[-1] = "(empty)   -   -"
        site.lines[number] = ("\t".join(cells) + "\n").encode()
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nlabel = "Benign"\nresp_p = [53, 123]\n')
    fleet.start_broker()
    fleet.start_coordinator()
    fleet.start_device(site, "--rules", str(rules))
    fleet.play()
    end = time.monotonic() + WAIT_S
    while fleet.status().get("updates", 0) == 0:
        assert time.monotonic() < end, (fleet.status(), fleet.ended())
        time.sleep(0.2)
    told = fleet.status()["devices"][site.name]
    assert told["updates"] == 1


def test_a_device_stops_when_it_is_told_to(fleet: LocalFleet) -> None:
    site = fleet.sites[0]
    fleet.start_device(site)  # without a broker: it tries again and again
    process = fleet.process(site.name)
    time.sleep(3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT_S) == 0
