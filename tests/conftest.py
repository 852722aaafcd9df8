"""Fixtures that several test folders share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED_DATA = Path(os.environ.get("GRADSENSE_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", default=6, type=int, help="SIGKILLs of tests/edge/test_kill.py")


@pytest.fixture(scope="session")
def iot23() -> Path:
    """The real IoT-23 captures; the test skips where they are not on this machine."""
    path = SHARED_DATA / "iot23"
    if not path.is_dir():
        pytest.skip(f"IoT-23 is not at {path}; set GRADSENSE_DATA to the folder that holds iot23/")
    return path


@pytest.fixture(scope="session")
def zeek_logs() -> Path:
    """Real Zeek logs of other networks; the test skips where they are not on this machine."""
    path = SHARED_DATA / "zeek"
    if not path.is_dir():
        pytest.skip(f"Zeek logs are not at {path}; set GRADSENSE_DATA to the folder with zeek/")
    return path


@pytest.fixture(scope="session")
def edge_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that knows the synthetic fleet: it rings for attacks and has a novelty score."""
    # Not at the top: most tests need neither torch nor the seconds that it takes to import.
    from gradsense.config import settings
    from gradsense.data.synthetic.traffic import write_fleet
    from gradsense.detection.export import export
    from gradsense.experiments.bench import set_up
    from gradsense.experiments.corpus import load_corpus
    from gradsense.experiments.run import train

    root = tmp_path_factory.mktemp("edge")
    write_fleet(root / "captures", sites=4, flows=400, seed=0)
    run = settings(data=root / "captures", cap=200, rounds=4, seed=0)
    train(set_up(run, load_corpus(run, lambda *_: None)), root / "run")
    export(root / "run" / "model", root / "bundle")
    return root / "bundle"


@pytest.fixture(scope="session")
def edge_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unlabelled synthetic log of a network that ``edge_bundle`` never saw."""
    from gradsense.data.synthetic.traffic import write_sample

    path = tmp_path_factory.mktemp("edge-log") / "conn.log"
    write_sample(path, flows=600, seed=1)
    return path
