"""Choosing a baseline's setting on validation flows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from gradsense.config import settings
from gradsense.errors import InputError
from gradsense.experiments import results, tune
from gradsense.experiments.compare import PlannedRun, plan
from gradsense.federation.algorithm import algorithms
from tests.support.report_rows import federated, scores

#: Macro-F1 on validation flows, and on test flows, where another value is better.
FOUND = {"0.001": (0.2, 0.3), "0.01": (0.7, 0.6), "0.1": (0.7, 0.9), "1": (0.1, 0.2)}


def made(runs: Sequence[PlannedRun], *rest: object) -> tuple[str, ...]:
    """Every run as if it had been made, its scores those of ``FOUND``."""
    for run in runs:
        validation, test = FOUND[run.settings.algorithm.rpartition("=")[2]]
        row = federated(run.settings.algorithm, f1=test, validation=scores(validation))
        run.out.mkdir(parents=True)
        results.save([row], run.out / "results.json")
    return ()


def test_the_first_best_on_validation_flows_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "run_all", made)
    named, base = ["fedavg", "fedyogi", "fedadam:lr=0.3"], settings(seed=7)
    runs = tune.trials(base, named, tmp_path / "out")
    assert {run.settings.seed for run in runs} == {7}, "the first seed only"
    chosen, notes = tune.choose(
        runs, named, tmp_path / "out", workers=1, resume=False, on_news=lambda job, news: None
    )
    assert chosen == ["fedavg", "fedyogi:lr=0.01", "fedadam:lr=0.3"]
    assert notes == (
        "fedyogi:lr=0.01 was chosen by macro-F1 on validation flows, seed 7: "
        "lr=0.001 0.200, lr=0.01 0.700, lr=0.1 0.700, lr=1 0.100",
    )
    # The comparison finds the chosen value's first seed where the search left it.
    planned = plan(base, chosen, 2, tmp_path / "out", references=False)
    assert [run.out.exists() for run in planned] == [False, True, False, False, False, False]


def test_a_comparison_that_is_there_is_not_searched_over(tmp_path: Path) -> None:
    runs = tune.trials(settings(), ["fedadam"], tmp_path)
    runs[0].out.mkdir()
    (runs[0].out / "settings.json").write_text("{}")
    with pytest.raises(InputError, match="holds a comparison already"):
        tune.choose(
            runs, ["fedadam"], tmp_path, workers=1, resume=False, on_news=lambda job, news: None
        )


def test_nothing_to_search_takes_no_run(tmp_path: Path) -> None:
    assert tune.trials(settings(), ["fedavg", "gsfs", "fedavgm:momentum=0.1"], tmp_path) == []


@pytest.mark.parametrize("name", algorithms())
def test_every_value_that_an_algorithm_names_fits_it(name: str) -> None:
    tried = tune.candidates(name)
    assert len(tried) == (1 if (found := algorithms()[name].search) is None else len(found[1]))
    if name in {"fedopt", "fedadam", "fedyogi", "fedadagrad", "fedavgm", "fedprox"}:
        assert len(tried) > 1
