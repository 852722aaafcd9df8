"""Fixtures that several test folders share, and what the markers need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import mosquitto
from tests.support.imports import reached
from tests.support.once import once

# Workers share the cores: threads of torch that wait for each other would only take turns. It must
# be set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED_DATA = Path(os.environ.get("GRADSENSE_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", default=6, type=int, help="SIGKILLs of the tests named test_*kill*")


#: Fixtures that take seconds to make: whichever test is first waits for them.
SLOW = {"resumed", "wrecks", "int8_bundle"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Set the markers that can be told from fixtures and imports: ``slow`` and ``torch``."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & SLOW:
            item.add_marker("slow")
        # Files are only read where it is asked for.
        if "torch" in config.getoption("markexpr") and imports_torch(item.path, fixtures):
            item.add_marker("torch")


def imports_torch(file: Path, fixtures: set[str]) -> bool:
    """Whether a test's file, its folder's conftest or a fixture imports torch."""
    files = [file, *file.parent.glob("conftest.py")]
    return "edge_bundle" in fixtures or any("torch" in reached(one) for one in files)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """``broker`` is set by hand, and no test gets a broker without it."""
    mosquitto.permitted = item.get_closest_marker("broker") is not None


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
    return once(tmp_path_factory, "edge", _make_edge_bundle) / "bundle"


def _make_edge_bundle(folder: Path) -> None:
    # Not at the top: most tests need neither torch nor the seconds that it takes to import.
    from gradsense.config import settings
    from gradsense.data.synthetic.traffic import write_fleet
    from gradsense.detection.export import export
    from gradsense.experiments.bench import set_up
    from gradsense.experiments.corpus import load_corpus
    from gradsense.experiments.run import train

    write_fleet(folder / "captures", sites=4, flows=400, seed=0)
    run = settings(data=folder / "captures", cap=200, rounds=4, seed=0)
    train(set_up(run, load_corpus(run, lambda *_: None)), folder / "run")
    export(folder / "run" / "model", folder / "bundle")


@pytest.fixture(scope="session")
def edge_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unlabelled synthetic log of a network that ``edge_bundle`` never saw."""
    from gradsense.data.synthetic.traffic import write_sample

    path = tmp_path_factory.mktemp("edge-log") / "conn.log"
    write_sample(path, flows=600, seed=1)
    return path
