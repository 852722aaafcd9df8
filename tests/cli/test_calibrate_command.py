"""``gradsense calibrate`` as a person meets it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradsense.detection import bundle

Command = Callable[..., Any]


@pytest.fixture
def edge(edge_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(edge_bundle, tmp_path / "edge"))


def test_a_copy_gets_the_thresholds(
    gradsense: Command, edge: Path, edge_log: Path, tmp_path: Path
) -> None:
    before, out = bundle.read(edge)[0], tmp_path / "here"
    said = gradsense("calibrate", edge_log, "--model", edge, "--out", out)
    assert said.code == 0, said.err
    for text in ("before", "now", "p(benign) below", "conn.log", f"--model {out}"):
        assert text in said.out
    assert bundle.read(edge)[0] == before
    after = bundle.read(out)[0]
    flows = sum(not line.startswith("#") for line in edge_log.read_text().splitlines())
    assert (after.alarm.flows, after.alarm.source) == (flows, "conn.log")
    assert (after.files, after.novelty) == (before.files, before.novelty)
    assert after.reference is not None
    assert after.reference.flows == flows


def test_in_place_and_few_flows_are_said(gradsense: Command, edge: Path, edge_log: Path) -> None:
    exported = bundle.read(edge)[0]
    said = gradsense(
        *("calibrate", edge_log, edge_log, "--model", edge),
        *("--share", "0.0001", "--novelty", "--json"),
    )
    assert said.code == 0, said.err
    assert "takes 10,000 flows and these are 1," in said.err
    after = bundle.read(edge)[0]
    assert json.loads(said.out) == after.model_dump(mode="json")
    assert after.novelty != exported.novelty
    assert after.provenance["site"]["exported"]["alarm"] == exported.alarm.model_dump()


@pytest.mark.parametrize("wrong", ["model", "benign"])
def test_bad_input_is_one_line_and_changes_nothing(
    wrong: str, gradsense: Command, edge: Path, edge_log: Path, tmp_path: Path
) -> None:
    given = {"model": edge, "benign": edge_log} | {wrong: tmp_path / "nowhere"}
    before = (edge / "manifest.json").read_bytes()
    options = [given["benign"], "--model", given["model"]]
    gradsense("calibrate", *options).complaint("nowhere")
    assert (edge / "manifest.json").read_bytes() == before
