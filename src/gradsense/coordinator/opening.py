"""A run's models as folders: the one that everybody starts from, and the newest one.

    FLEET/runs/NAME/start/      what devices get: job.json, edge/, and model/ if they train weights
    FLEET/runs/NAME/model/      the model folder that the run began with
    FLEET/runs/NAME/...         the coordinator's journal and models

This is the one part of coordination that needs torch, and only the operator's machine runs it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradsense.coordinator.lookup import ContributionsIn, newest_snapshot
from gradsense.coordinator.run import Run
from gradsense.detection.export import export
from gradsense.errors import GradsenseError, InputError
from gradsense.federation.algorithm import fields_of
from gradsense.federation.rules.rule import SumRule
from gradsense.fleet.jobs import EDGE, JOB_FILE, MODEL, RUNS, START, Job
from gradsense.fleet.jobs import read as read_job
from gradsense.learning.answers import fleet_score
from gradsense.models import folder
from gradsense.models.build import build
from gradsense.models.classifier import TextClassifier
from gradsense.models.heads.readout import Readout, state_width
from gradsense.prompts.templates import get_template
from gradsense.storage.files import replacing

_PROMPTS = 256


def open_run(
    fleet: Path,
    job: Job,
    *,
    model: Path | None = None,
    size: str = "nano",
    template: str = "context",
    on_step: Callable[[str], None] = lambda step: None,
) -> Path:
    """Make the folder of a run, whole or not at all.

    Args:
        fleet: the fleet's folder.
        job: its labels are the model's.
        model: a model folder to start from; None builds a new one.
        size: of the new one, or a Hugging Face folder or name.
        template: of the new one.
        on_step: called with what is being done now.

    Returns:
        the run's folder.

    Raises:
        InputError: there is such a run, the model does not fit the algorithm, or the labels
            lack the normal one.
        GradsenseError: it cannot be written.
    """
    place = fleet / RUNS / job.run
    if place.exists():
        raise InputError("is there already", hint="give the run another name", file=place)
    on_step("building the model")
    classifier = _first(job, model, size, template)
    job = _measured(job, classifier)
    try:
        with replacing(place) as fresh:
            fresh.chmod(0o700)
            Run.create(fresh, job, classifier.tensors())
            if model is None:
                folder.save(classifier, fresh / MODEL)
            else:
                shutil.copytree(model, fresh / MODEL)
            on_step("exporting it for devices")
            export(fresh / MODEL, fresh / START / EDGE, on_step=on_step)
            if job.rules.trains:
                shutil.copytree(fresh / MODEL, fresh / START / MODEL)
            (fresh / START / JOB_FILE).write_text(job.text(), encoding="utf-8")
    except OSError as error:
        raise GradsenseError(
            f"{place}: the run cannot be written ({error.strerror or error})"
        ) from error
    return place


def trainable(job: Job, model: Path) -> TextClassifier:
    """A model folder, with what the run's algorithm trains and nothing else trainable.

    Raises:
        InputError: the folder is damaged, or has no head that the algorithm could train.
    """
    loaded, algorithm = folder.load(model), job.rules
    if not algorithm.frozen:
        return loaded
    if not isinstance(loaded.model, Readout):
        raise InputError(
            f"algorithm '{job.algorithm}' trains a head of gradsense's own, which this model lacks",
            hint="give a model that gsfs trained, or none; or choose gsfs-tune",
            file=model,
        )
    loaded.model.base.requires_grad_(False)
    return TextClassifier(
        loaded.model,
        loaded.tokenizer,
        labels=loaded.labels,
        template=loaded.template,
        base=loaded.base,
    )


def _first(job: Job, model: Path | None, size: str, template: str) -> TextClassifier:
    algorithm = job.rules
    if model is None:
        words = get_template(template)
        words.task.check_labels(job.labels)
        return build(
            size,
            template=words,
            labels=job.labels,
            seed=job.seed,
            readout=algorithm.readout,
            frozen=algorithm.frozen,
        )
    classifier = trainable(job, model)
    classifier.template.task.check_labels(job.labels)
    if classifier.labels != job.labels:
        raise InputError(
            f"the model's labels are {', '.join(classifier.labels)}",
            hint="leave --labels out, or give a model of these",
            file=model,
        )
    return classifier


def _measured(job: Job, classifier: TextClassifier) -> Job:
    """The job, its algorithm with the base's state length, where it has such a setting.

    Measured on prompts of random words, which reach as far as those of flows do, and a half more.
    """
    network, template = classifier.model, classifier.template
    if "state_length" not in dict(fields_of(job.rules)) or not isinstance(network, Readout):
        return job
    words, rng = template.vocabulary(), np.random.default_rng(job.seed)
    drawn = rng.integers(len(words), size=(_PROMPTS, template.length or template.budget))
    encoded = classifier.encode([" ".join(words[i] for i in row) for row in drawn.tolist()])
    width = state_width(network.base)
    with torch.inference_mode():
        states = classifier.features(encoded, torch.arange(_PROMPTS)).reshape(-1, width)
    longest = 1.5 * float(states.square().sum(dim=1).max())
    algorithm = f"{job.algorithm}:state_width={width}:state_length={longest:.4g}"
    return job.model_copy(update={"algorithm": algorithm})


def write_newest(fleet: Path, run: str, out: Path) -> int:
    """Write the newest model of a run, also while a coordinator works on it.

    It is not calibrated: the flows for that are at the sites. ``export --data`` does it.

    Returns:
        its version.

    Raises:
        InputError: no such run, a damaged one, or ``out`` holds something else.
        GradsenseError: it cannot be written.
    """
    place = fleet / RUNS / run
    if not place.is_dir():
        runs = sorted(path.name for path in (fleet / RUNS).glob("[!.]*"))
        raise InputError(
            "there is no such run",
            hint=f"give one of {', '.join(runs)}" if runs else "gradsense fleet run NAME opens one",
            file=place,
        )
    about = read_job(place / START)
    version, groups = newest_snapshot(place)
    classifier = trainable(about, place / MODEL)
    algorithm = about.rules
    classifier.load(algorithm.weights(groups["model"]))
    extra = {"algorithm": about.algorithm, "run": run, "version": version, "seed": about.seed}
    rule, state = algorithm.rule, dict[str, Any](groups["server"])
    if isinstance(rule, SumRule):
        state |= rule.total(groups["model"], ContributionsIn(place))
    statistics = algorithm.statistics(state)
    score = fleet_score(statistics, len(about.labels), seed=about.seed)
    folder.save(classifier, out, score=score, extra=extra)
    return version
