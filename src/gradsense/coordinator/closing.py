"""From a run's newest global model back to a model folder that everything else reads."""

from __future__ import annotations

from pathlib import Path

from gradsense.coordinator import snapshots
from gradsense.coordinator.journal import newest_snapshot
from gradsense.coordinator.opening import trainable
from gradsense.errors import InputError
from gradsense.fleet import jobs
from gradsense.learning.answers import fleet_score
from gradsense.models import folder


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
    algorithm = about.rules
    classifier.load(algorithm.weights(groups["model"]))
    extra = {"algorithm": about.algorithm, "run": run, "version": version, "seed": about.seed}
    statistics = algorithm.statistics(groups["server"])
    score = fleet_score(statistics, len(about.labels), seed=about.seed)
    folder.save(classifier, out, score=score, extra=extra)
    return version
