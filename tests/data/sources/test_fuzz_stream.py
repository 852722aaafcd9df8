"""A live log may hold anything: mutated lines of every format never raise and are all counted.

As a program, ``python -m tests.data.sources.test_fuzz_stream 1000000``, it runs longer.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from gradsense.data.sources.lines import MAX_LINE_BYTES, Tally, undecodable
from gradsense.data.sources.stream import LogStream
from tests.support.fuzz_lines import HEADS, mutated

PATH = Path("fuzz.log")


def uncounted(block: bytes, *, first: bool) -> int:
    """How many lines hold no record and are no fault: blank ones and legible comments."""
    block = block.removeprefix(b"\xef\xbb\xbf") if first else block
    lines = block.replace(b"\r\n", b"\n").split(b"\n")[:-1]
    return sum(
        not line.strip()
        or (
            line.startswith(b"#")
            and len(line) <= MAX_LINE_BYTES
            and b"\0" not in line
            and not undecodable(line)
        )
        for line in lines
    )


def fuzz(lines: int, seed: int) -> dict[str, Any]:
    """Send about ``lines`` mutated lines of many short logs through ``LogStream``.

    Returns:
        ``lines``, ``flows``, ``dropped`` by reason, ``uncounted`` (blank lines and comments), and
        ``seconds``. A line that is lost or counted twice raises AssertionError.
    """
    rng, begin = random.Random(seed), time.perf_counter()
    total, silent, read, dropped = 0, 0, 0, dict[str, int]()
    while total < lines:
        kind = rng.choice(list(HEADS))
        stream, tally = LogStream(PATH), Tally()
        written = [*HEADS[kind], *(mutated(kind(rng), rng) for _ in range(rng.randint(1, 800)))]
        while written:
            size = rng.choice((1, 2, 10, 300))
            block = b"".join(line + b"\n" for line in written[:size])
            written = written[size:]
            first, before, counted = stream.line, tally.read, tally.total_dropped
            flows = stream.parse(block, tally)
            quiet = uncounted(block, first=first == 1)
            assert len(flows) == tally.read - before
            assert stream.line - first == block.count(b"\n")
            assert len(flows) + (tally.total_dropped - counted) + quiet == block.count(b"\n"), block
            numbers = (
                flows["line"].to_list()
                if isinstance(flows, pl.DataFrame)
                else [row["line"] for row in flows]
            )
            assert numbers == sorted(set(numbers))
            assert all(first <= number < stream.line for number in numbers)
            silent += quiet
            if rng.random() < 0.05:
                stream = LogStream.restore(PATH, json.loads(json.dumps(stream.state())))
        total += stream.line - 1
        read += tally.read
        for reason, drop in tally.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + drop.count
    seconds = round(time.perf_counter() - begin, 1)
    return {
        "lines": total,
        "flows": read,
        "dropped": dict(sorted(dropped.items())),
        "uncounted": silent,
        "seconds": seconds,
    }


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_mutated_lines_never_raise_and_are_all_counted(seed: int) -> None:
    result = fuzz(10_000, seed)
    assert result["flows"] > 3000
    assert len(result["dropped"]) > 6
    assert (
        result["flows"] + sum(result["dropped"].values()) + result["uncounted"] == result["lines"]
    )


if __name__ == "__main__":
    print(json.dumps(fuzz(int(sys.argv[1]), seed=0), indent=2))
