"""Fixtures that several test folders share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED_DATA = Path(os.environ.get("GRADSENSE_DATA", Path(__file__).parents[2] / "shared" / "data"))


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
