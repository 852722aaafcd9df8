"""From a run's newest global model back to a model folder that everything else reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gradsense.cloud.coordination import models
from gradsense.cloud.coordination.ledger import newest_snapshot
from gradsense.cloud.coordination.opening import trainable
from gradsense.engines import job
from gradsense.errors import InputError
from gradsense.federation.least_squares import LeastSquares
from gradsense.federation.scaffold import weights_of
from gradsense.learning.moments import MOMENTS
from gradsense.learning.novelty import sketch
from gradsense.models import folder
from gradsense.models.novelty import SketchedInfluence


def write_newest(fleet: Path, run: str, out: Path) -> int:
    """Write the newest model of a run, also while a coordinator works on it.

    It is not calibrated: the flows for that are at the sites. ``export --data`` does it.

    Returns:
        its version.

    Raises:
        InputError: no such run, a damaged one, or ``out`` holds something else.
        GradsenseError: it cannot be written.
    """
    place = fleet / job.RUNS / run
    if not place.is_dir():
        runs = sorted(path.name for path in (fleet / job.RUNS).glob("[!.]*"))
        raise InputError(
            "there is no such run",
            mend=f"give one of {', '.join(runs)}" if runs else "gradsense fleet run NAME opens one",
            file=place,
        )
    about = job.read(place / job.START)
    version, file, sha256 = newest_snapshot(place)
    groups = models.load(place / models.FOLDER / file, sha256)
    classifier = trainable(about, place / job.MODEL)
    classifier.load(weights_of(groups["model"]))
    told = {"strategy": about.strategy, "run": run, "version": version, "seed": about.seed}
    score = _score(about, groups["server"].get(MOMENTS))
    folder.save(classifier, out, score=score, extra=told)
    return version


def _score(about: job.Job, moments: np.ndarray | None) -> SketchedInfluence | None:
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
