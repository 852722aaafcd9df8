"""A small model that training wrote, the flows it learnt from, and its bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradsense.config import settings
from gradsense.detection.export import export
from gradsense.experiments.bench import set_up
from gradsense.experiments.corpus import load_corpus
from gradsense.experiments.run import train
from gradsense.telemetry.synthetic import write_fleet


@pytest.fixture(scope="session")
def captures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three synthetic sites with labels."""
    root = tmp_path_factory.mktemp("captures")
    write_fleet(root, sites=3, flows=300, seed=0)
    return root


@pytest.fixture(scope="session")
def run_folder(captures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ``gsfs`` on these sites."""
    chosen = settings(data=captures, strategy="gsfs", cap=100, rounds=4, seed=1)
    out = tmp_path_factory.mktemp("run")
    train(set_up(chosen, load_corpus(chosen)), out)
    return out


@pytest.fixture(scope="session")
def model_dir(run_folder: Path) -> Path:
    return run_folder / "model"


@pytest.fixture(scope="session")
def edge_bundle(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float32 bundle of that model."""
    out = tmp_path_factory.mktemp("edge") / "bundle"
    export(model_dir, out)
    return out
