"""Uploads with gradsense, with Flower and over plain TLS, side by side on this machine.

    python -m venv FLOWER && FLOWER/bin/pip install flwr
    python -m benchmarks.transport.compare --flower-python FLOWER/bin/python --output FILE

``ours.py``, ``flower_bench.py`` and ``floor.py`` say what each time begins and ends with.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.transport import floor, flower_bench, ours
from benchmarks.transport.figures import SIZES, plot, show


def _rows(given: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    python, sizes, repeats = given.flower_python, given.sizes, given.repeats
    yield from floor.run(sizes, repeats, folder / "floor")
    yield from ours.run(sizes, repeats, folder / "ours")
    if python is not None:
        yield from flower_bench.run(sizes, repeats, python, folder / "flower", disk=given.disk)
    for devices in given.devices:
        yield from floor.memory(sizes, devices, folder / f"floor-{devices}")
        yield from ours.memory(sizes, devices, folder / f"ours-{devices}")
        if python is not None:
            at = folder / f"flower-{devices}"
            yield from flower_bench.memory(sizes, devices, python, at, disk=given.disk)


def main() -> None:
    """Write all rows to a file, a JSON object a line, and show them as tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flower-python", type=Path, help="of an environment with flwr")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="bytes")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--devices", type=int, nargs="*", default=[5], help="for the memory")
    parser.add_argument("--disk", action="store_true", help="SuperLink's state in a database file")
    parser.add_argument("--plot", type=Path, help="picture of the uploads to write")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder, given.output.open("w") as out:
        # Row by row: what was measured stays, should a later deployment fail.
        for row in _rows(given, Path(folder)):
            rows.append(row)
            out.write(f"{json.dumps(row)}\n")
            out.flush()
    show(rows)
    if given.plot is not None:
        plot(rows, given.plot)


if __name__ == "__main__":
    main()
