"""What ``edge_bundle`` was made from: the run, its model folder and the flows that it learnt."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def captures(edge_bundle: Path) -> Path:
    """Four synthetic sites with labels."""
    return edge_bundle.parent / "captures"


@pytest.fixture(scope="session")
def run_folder(edge_bundle: Path) -> Path:
    """A run of ``gsfs`` on these sites."""
    return edge_bundle.parent / "run"


@pytest.fixture(scope="session")
def model_dir(run_folder: Path) -> Path:
    return run_folder / "model"
