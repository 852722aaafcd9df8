"""What a new run is refused for."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradsense.coordinator.opening import open_run
from gradsense.errors import InputError
from gradsense.fleet.jobs import Job


def test_labels_without_the_normal_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'Benign' is missing"):
        open_run(tmp_path, Job(run="porch", labels=("DDoS", "C&C")))
    assert not list(tmp_path.iterdir())
