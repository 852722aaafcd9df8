"""What a new run is refused for."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradsense.coordinator.opening import open_run
from gradsense.errors import InputError
from gradsense.fleet.jobs import START, Job, read

LABELS = ("Benign", "DDoS")


def test_a_run_of_statistics_knows_how_long_the_states_of_its_base_are(tmp_path: Path) -> None:
    place = open_run(tmp_path, Job(run="porch", algorithm="gsfs:cap=0.5", labels=LABELS))
    rules = read(place / START).rules
    assert (rules.rule.cap, rules.state_width) == (0.5, 80)
    # Real flows have 107 to 138; a half more is allowed.
    assert 1.4 * 138 < rules.state_length < 1.6 * 138
    trained = open_run(tmp_path, Job(run="hall", algorithm="fedavg", labels=LABELS))
    assert read(trained / START).algorithm == "fedavg"


def test_labels_without_the_normal_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'Benign' is missing"):
        open_run(tmp_path, Job(run="porch", labels=("DDoS", "C&C")))
    assert not list(tmp_path.iterdir())
