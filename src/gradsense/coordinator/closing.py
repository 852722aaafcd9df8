"""From a run's newest global model back to a model folder that everything else reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gradsense.coordinator import snapshots
from gradsense.coordinator.journal import newest_snapshot
from gradsense.coordinator.opening import trainable
from gradsense.errors import InputError
from gradsense.federation.least_squares import LeastSquares
from gradsense.federation.scaffold import weights_of
from gradsense.fleet import jobs
from gradsense.learning.novelty import sketch
from gradsense.learning.statistics import MOMENTS
from gradsense.models import folder
from gradsense.models.heads.influence import SketchedInfluence


def write_newest(fleet: Path, run: str, out: Path) -> int:
    """Write the newest model of a run, also while a coordinator works on it.

    It is not calibrated: the flows for that are at the sites. ``export --data`` does it.

    Returns:
        its version.

    Raises:
        InputError: no such run, a damaged one, or ``out`` holds something else.
        GradsenseError: it cannot be written.
    """
    place = fleet / jobs.RUNS / run
    if not place.is_dir():
        runs = sorted(path.name for path in (fleet / jobs.RUNS).glob("[!.]*"))
        raise InputError(
            "there is no such run",
            hint=f"give one of {', '.join(runs)}" if runs else "gradsense fleet run NAME opens one",
            file=place,
        )
    about = jobs.read(place / jobs.START)
    version, file, sha256 = newest_snapshot(place)
    groups = snapshots.load(place / snapshots.FOLDER / file, sha256)
    classifier = trainable(about, place / jobs.MODEL)
    classifier.load(weights_of(groups["model"]))
    told = {"strategy": about.strategy, "run": run, "version": version, "seed": about.seed}
    score = _score(about, groups["server"].get(MOMENTS))
    folder.save(classifier, out, score=score, extra=told)
    return version


def _score(about: jobs.Job, moments: np.ndarray | None) -> SketchedInfluence | None:
    """The score of what the fleet has not seen; None where no moments came together."""
    rule = about.rules.aggregator
    if not isinstance(rule, LeastSquares) or moments is None or not moments.any():
        return None
    return sketch(
        moments.astype(np.float64),
        len(about.labels),
        sharpness=rule.sharpness,
        regularisation=rule.regularisation,
        seed=about.seed,
    )
