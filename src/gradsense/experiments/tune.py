"""``compare --tune``: the one published setting of each baseline, chosen on validation flows.

An algorithm names the setting and its values in ``search``. Each value is run once, with the first
seed; the one whose last global model has the best macro-F1 on the validation part is then run with
every seed. Test flows are not looked at. Its first seed has been run by then, and is only read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gradsense.config import RunSettings
from gradsense.experiments.compare import OnNews, PlannedRun, plan, prepare, run_all
from gradsense.experiments.rundir import load_row
from gradsense.federation.algorithm import fields_of, get_algorithm


def candidates(spec: str) -> list[str]:
    """What an algorithm is tried as; only itself where there is nothing to search.

    A value that the specification fixes is not searched.

    >>> candidates("fedadam")
    ['fedadam:lr=0.001', 'fedadam:lr=0.01', 'fedadam:lr=0.1', 'fedadam:lr=1']
    >>> candidates("fedadam:lr=0.3"), candidates("gsfs")
    (['fedadam:lr=0.3'], ['gsfs'])
    """
    algorithm = get_algorithm(spec)
    if algorithm.search is None:
        return [spec]
    key, values = algorithm.search
    fixed = {change.partition("=")[0] for change in spec.split(":")[1:]}
    if key in fixed or key not in dict(fields_of(algorithm)):
        return [spec]
    return [f"{spec}:{key}={value:g}" for value in values]


def trials(base: RunSettings, algorithms: Sequence[str], out: Path) -> list[PlannedRun]:
    """The runs that the search takes; none where there is nothing to search.

    Raises:
        InputError: settings that ``compare.check`` turns down.
    """
    tried = [one for spec in algorithms if len(found := candidates(spec)) > 1 for one in found]
    return plan(base, tried, 1, out, references=False) if tried else []


def choose(
    runs: Sequence[PlannedRun],
    algorithms: Sequence[str],
    out: Path,
    *,
    workers: int,
    resume: bool,
    on_news: OnNews,
) -> tuple[list[str], tuple[str, ...]]:
    """Run the trials into ``out``, the comparison's folder.

    Returns:
        Each algorithm as it did best, and a sentence on each choice.

    Raises:
        InputError: an unwritable ``out``, or one that holds a comparison and no ``resume``.
        GradsenseError: as ``compare.compare``.
    """
    prepare(out, resume=resume)
    run_all(runs, workers, resume, on_news)
    scores: dict[str, float] = {}
    for run in runs:
        validation = load_row(run.out).validation
        scores[run.settings.algorithm] = 0.0 if validation is None else validation.f1_macro
    chosen, notes = [], []
    for spec in algorithms:
        tried = candidates(spec)
        best = max(tried, key=lambda one: scores.get(one, 0.0))  # the first of equals
        chosen.append(best)
        if len(tried) > 1:
            values = ", ".join(f"{one.rpartition(':')[2]} {scores[one]:.3f}" for one in tried)
            notes.append(
                f"{best} was chosen by macro-F1 on validation flows, seed {runs[0].settings.seed}: "
                f"{values}"
            )
    return chosen, tuple(notes)
