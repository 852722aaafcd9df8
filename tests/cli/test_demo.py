"""``gradsense demo`` and ``gradsense data synth --json``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradsense.experiments.references import references


@pytest.mark.slow
def test_the_whole_story(gradsense: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "demo"
    told = gradsense("demo", "--out", out, "--rounds", 1, "--json")
    assert told.code == 0
    rows = json.loads(told.out)
    assert [row["algorithm"] for row in rows] == [
        *("fedavg", "fedopt", "gsfs"),
        *references(),
    ]
    assert all(row["synthetic"] for row in rows)
    assert "SYNTHETIC TRAFFIC" in told.err
    assert "of the verdicts agree with the generator" in told.err
    verdicts = (out / "sample" / "verdicts.jsonl").read_text().splitlines()
    assert {"line", "verdict", "score", "resp_h"} <= json.loads(verdicts[0]).keys()
    assert (out / "runs" / "report.html").exists()


def test_it_replaces_only_what_it_made(gradsense: Callable[..., Any], tmp_path: Path) -> None:
    kept = tmp_path / "thesis.txt"
    kept.write_text("years of work")
    gradsense("demo", "--out", tmp_path).complaint("did not make", "choose another --out")
    assert kept.read_text() == "years of work"


def test_synth_counts_as_json(gradsense: Callable[..., Any], tmp_path: Path) -> None:
    told = gradsense("data", "synth", tmp_path, "--sites", 2, "--flows", 60, "--json")
    counts = json.loads(told.out)
    assert counts["synthetic"] is True
    assert len(counts["flows"]) == 2


@pytest.mark.parametrize(
    "command",
    ["demo", "train", "compare", "evaluate", "pretrain", "data inspect", "data synth"],
)
def test_help_shows_an_example(command: str, gradsense: Callable[..., Any]) -> None:
    told = gradsense(*command.split(), "--help")
    assert told.code == 0
    assert f"Example: gradsense {command}" in " ".join(told.out.split())
