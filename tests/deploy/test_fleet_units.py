"""The units of a fleet: what they may do, and that they agree on paths with one another."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.deployed import DEPLOY, ROOT, option, unit, values

UNITS = sorted(DEPLOY.glob("*.service"))
EDGE, COORDINATOR = DEPLOY / "gradsense-edge.service", DEPLOY / "gradsense-coordinator.service"
DROP_IN = DEPLOY / "mosquitto.service.d" / "gradsense-fleet.conf"
#: What detection alone is given by gradsense-watch.service.
WATCH_MB = 256
_ANALYZE = shutil.which("systemd-analyze")


def command(path: Path) -> list[str]:
    return shlex.split(values(path, "ExecStart")[-1])


def megabytes(text: str) -> int:
    found = re.fullmatch(r"(\d+)([MG])", text)
    assert found is not None, text
    return int(found[1]) * (1024 if found[2] == "G" else 1)


@pytest.mark.skipif(_ANALYZE is None, reason="needs systemd")
@pytest.mark.parametrize("path", [*UNITS, DROP_IN], ids=lambda path: path.name)
def test_systemd_knows_every_setting(path: Path, tmp_path: Path) -> None:
    shown = tmp_path / path.name
    if path == DROP_IN:
        shown = tmp_path / "mosquitto.service"
        shown.write_text("[Service]\nType=notify\nExecStart=/bin/true\n")
        path = shutil.copytree(path.parent, tmp_path / path.parent.name) / path.name
        fix = path
    else:
        fix = Path(shutil.copy(path, shown))
    program = re.compile(r"^(ExecStart=)/\S+", re.MULTILINE)  # not installed where tests run
    fix.write_text(program.sub(rf"\1{sys.executable}", fix.read_text()))
    assert _ANALYZE is not None
    told = subprocess.run(
        [_ANALYZE, "verify", "--man=no", "--recursive-errors=no", str(shown)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    about = [
        line for line in told.stderr.splitlines() if str(tmp_path) in line or shown.name in line
    ]
    assert about == []
    assert told.returncode == 0, told.stderr


def test_the_agent_may_lower_its_priority_and_nothing_else_of_resources() -> None:
    # Filters add up in order: os.nice would fail with EPERM without the last.
    assert values(EDGE, "SystemCallFilter") == [
        "@system-service",
        "~@privileged @resources",
        "setpriority",
    ]


def test_memory_of_the_edge_unit_is_for_both_processes() -> None:
    (limit,) = values(EDGE, "MemoryMax")
    assert megabytes(limit) == WATCH_MB + int(option(command(EDGE), "--memory"))
    (watch,) = values(DEPLOY / "gradsense-watch.service", "MemoryMax")
    assert megabytes(watch) == WATCH_MB


def test_the_end_of_the_agent_is_not_that_of_detection() -> None:
    service = dict(unit(EDGE)["Service"])
    assert service["OOMPolicy"] == "continue"
    assert service["KillMode"] == "mixed"
    assert {"CPUWeight", "IOWeight", "MemoryMax"} <= set(service)


def test_edge_takes_over_from_watch() -> None:
    assert dict(unit(EDGE)["Unit"])["Conflicts"] == "gradsense-watch.service"
    assert values(EDGE, "StateDirectory") == values(
        DEPLOY / "gradsense-watch.service", "StateDirectory"
    )


def test_broker_and_coordinator_read_the_same_fleet_and_not_the_authority() -> None:
    fleet = Path(option(command(COORDINATOR), "--fleet"))
    (state,) = values(COORDINATOR, "StateDirectory")
    assert fleet.parent == Path("/var/lib") / state
    assert values(COORDINATOR, "InaccessiblePaths") == [f"-{fleet / 'ca'}"]
    assert command(DROP_IN)[1:] == ["-c", str(fleet / "broker" / "mosquitto.conf")]
    assert values(DROP_IN, "ExecStart")[0] == "", "the unit's own command is taken back first"
    assert values(DROP_IN, "TemporaryFileSystem") == [str(fleet.parent)]
    assert values(DROP_IN, "BindPaths") == [str(fleet / "broker")]


def test_the_page_installs_every_unit_and_the_folders_that_units_name() -> None:
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    for path in (EDGE, COORDINATOR, DROP_IN):
        assert str(path.relative_to(ROOT)) in text
    assert option(command(EDGE), "--bundle") in text
    assert f"--home-dir {Path(option(command(COORDINATOR), '--fleet')).parent} " in text
    assert option(command(COORDINATOR), "--metrics") in text
    assert f"MemoryMax={values(EDGE, 'MemoryMax')[0]}" in text
