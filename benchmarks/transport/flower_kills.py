"""What Flower makes of ``kill -9``: a SuperNode's restart, and a SuperLink's during a run.

    python benchmarks/transport/flower_kills.py --flower-python FLOWER/bin/python

Prints a JSON object a finding.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flower_fleet import CENTRE, Fleet, FlowerFailed, deployed

_WINDOW = {"eager": True, "bytes": 650_000, "repeats": 10}
_PATIENCE_S = 150.0


def killed_node(python: Path, folder: Path) -> dict[str, Any]:
    """How long a SuperNode that was killed is refused when it comes back with the same key."""
    with deployed(python, folder, 1) as fleet:
        _kill(fleet, "device-0")
        killed, said = time.monotonic(), list[str]()
        while True:
            try:
                fleet.start_device("device-0")
            except FlowerFailed as error:
                said.extend(line for line in str(error).splitlines() if "[code:" in line)
                time.sleep(1)
            else:
                break
        return {
            "killed": "SuperNode",
            "refused_s": time.monotonic() - killed,
            "refusals": len(said),
            "said": sorted(set(said)),
        }


def killed_link(python: Path, folder: Path, *, disk: bool) -> dict[str, Any]:
    """Whether a run and its node outlive a kill of the SuperLink, started again at once."""
    with deployed(python, folder, 1, disk=disk) as fleet:
        output = fleet.submit(1, [_WINDOW])
        while fleet.logged(CENTRE).count("Push replies") < 3:
            time.sleep(0.2)
        _kill(fleet, CENTRE)
        fleet.start_centre()
        back = time.monotonic()
        while not output.exists() and time.monotonic() - back < _PATIENCE_S:
            time.sleep(1)
        return {
            "killed": "SuperLink",
            "state": "disk" if disk else "memory",
            "run_finished": output.exists(),
            "runs": _runs(fleet),
            "node_still_runs": fleet.started["device-0"].poll() is None,
            "node_said": fleet.logged("device-0").splitlines()[-6:],
        }


def _kill(fleet: Fleet, name: str) -> None:
    fleet.started[name].kill()
    fleet.started[name].wait()


def _runs(fleet: Fleet) -> Any:
    try:
        return json.loads(fleet.flwr("ls", "benchmark", "--format", "json"))
    except (FlowerFailed, ValueError) as error:
        return str(error)


def _findings(python: Path, folder: Path) -> Iterator[dict[str, Any]]:
    yield killed_node(python, folder / "node")
    yield killed_link(python, folder / "memory", disk=False)
    yield killed_link(python, folder / "disk", disk=True)


def main() -> None:
    """Print the findings one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flower-python", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for finding in _findings(given.flower_python, Path(folder)):
            print(json.dumps(finding), flush=True)


if __name__ == "__main__":
    main()
