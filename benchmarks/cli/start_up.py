"""CPU seconds until a command has answered: help, version, completion.

python -m benchmarks.cli.start_up [--repeats 5]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys

LINES = (
    *("--version", "--help", "train --help", "compare --help", "watch --help", "edge --help"),
    *("fleet --help", "fleet run --help", "data inspect --help", "completion"),
)


def cpu_seconds(line: str) -> float:
    """User and system time of one process that answers ``line``."""
    args, environment = line.split(), dict(os.environ)
    if line == "completion":
        args = []
        environment |= {
            "_GRADSENSE_COMPLETE": "complete_bash",
            "COMP_WORDS": "gradsense fleet r",
            "COMP_CWORD": "2",
        }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = "from gradsense.cli import main; main()"
    subprocess.run(
        [sys.executable, "-c", code, *args],
        check=True,
        stdout=subprocess.DEVNULL,
        env=environment,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="the smallest of so many is shown")
    repeats = parser.parse_args().repeats
    for line in LINES:
        seconds = min(cpu_seconds(line) for _ in range(repeats))
        print(f"gradsense {line:22} {seconds:.3f} s of CPU")


if __name__ == "__main__":
    main()
