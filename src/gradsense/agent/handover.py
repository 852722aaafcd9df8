"""From a new global model to the bundle that this device's detector takes over.

A new head means other probabilities, so the thresholds of the head before do not hold any more.
Where this site has labelled flows enough, they are found anew, by the graph that will judge;
where it has not, those that the run began with stay, and the manifest names which it was.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradsense.agent.reader import Batches, Rows
from gradsense.detection import bundle
from gradsense.detection.bundle import GRAPH_FILE, MANIFEST_FILE, TOKENIZER_FILE, Manifest
from gradsense.detection.calibrate import alarm_threshold, log_odds
from gradsense.detection.head import Head, with_head
from gradsense.detection.session import Opened, open_bundle
from gradsense.errors import GradsenseError, InputError
from gradsense.federation.update import GlobalModel
from gradsense.fleet import jobs
from gradsense.learning.alarms import FALSE_ALARM_SHARE
from gradsense.learning.calibration import COLDEST, HOTTEST, reference, softmax
from gradsense.storage.files import replacing
from gradsense.transport.payloads import model_hash

#: The bundle that detection runs on, in the state folder.
DETECTOR = "edge"
#: Benign flows from where the share of them that may raise alerts is more than none, and as many
#: flows of attacks until a temperature is fitted: benign ones alone would have it go to zero.
ENOUGH = round(1 / FALSE_ALARM_SHARE)
#: Rows of the newest batches that are looked at, a fifth of a second's work.
_MOST_ROWS = 2048
#: Halvings of the range of temperatures: its end is 1e-9 wide.
_HALVINGS = 32

_HERE, _START = "labelled flows of this site", "the run's start"

Floats = NDArray[np.float64]


def hand_over(
    start: Path, out: Path, model: GlobalModel, *, batches: Batches, run: str
) -> Manifest:
    """Write the bundle of a global model that is a head, all of it or nothing.

    Args:
        start: the bundle that the run began with; its graph is taken.
        out: where the detector reads; replaced at one stroke.
        model: ``score.weight`` and ``score.bias``.
        batches: the site's labelled flows; class numbers are places in the bundle's labels.
        run: the run's name, for the manifest's provenance.

    Raises:
        InputError: ``start`` is damaged, or ``out`` holds something that is no bundle.
        GradsenseError: the model is no head of that graph, or the disk is full.
    """
    manifest, _ = bundle.read(start)
    try:
        head = Head.of(model.tensors, len(manifest.labels))
    except ValueError as error:
        raise GradsenseError(f"model {model.version} is no head of this run: {error}") from error
    found = calibrated(open_bundle(start, threads=1, head=head), batches)
    provenance = _provenance(manifest, model, run, site=bool(found))
    return with_head(start, out, head, found | {"provenance": provenance})


def hand_over_weights(
    start: Path, out: Path, model: GlobalModel, *, batches: Batches, run: str
) -> Manifest:
    """Write the bundle of a global model whose weights were trained; needs torch.

    The novelty score of the start is about features that are no more, and is left out.

    Args:
        start: the model folder that the run began with.
        out, batches, run: as for ``hand_over``.
        model: every tensor that is trained.

    Raises: as ``hand_over``; ``GradsenseError`` also if the model cannot be exported.
    """
    from gradsense.detection.export import export  # noqa: PLC0415
    from gradsense.models import folder  # noqa: PLC0415
    from gradsense.models.card import Measured  # noqa: PLC0415

    card, classifier = folder.read_card(start), folder.load(start)
    try:
        classifier.load(model.tensors)
    except ValueError as error:
        raise GradsenseError(f"model {model.version} is not of this run: {error}") from error
    kept = Measured(calibration=card.calibration, reference=card.reference)
    with tempfile.TemporaryDirectory(prefix="gradsense-") as scratch:
        trained, draft = Path(scratch, "model"), Path(scratch, "edge")
        folder.save(classifier, trained, measured=kept)
        manifest = export(trained, draft).manifest
        found = calibrated(open_bundle(draft, threads=1), batches)
        provenance = _provenance(manifest, model, run, site=bool(found))
        files = {name: draft / name for name in (GRAPH_FILE, TOKENIZER_FILE)}
        update = found | {"provenance": provenance}
        return bundle.write(out, manifest.model_copy(update=update), files)


def first_detector(bundle_folder: Path, state: Path) -> Path | None:
    """The folder that detection begins with: the last model handed over, or the run's start.

    None for a run that starts from nothing: no model detects before its first aggregation.

    Raises:
        InputError: the run's start is damaged.
    """
    place, start = state / DETECTOR, bundle_folder / jobs.RUN / jobs.EDGE
    if (place / MANIFEST_FILE).is_file():
        with suppress(InputError):  # damaged by a loss of power: the agent will replace it
            bundle.read(place)
            return place
    manifest, _ = bundle.read(start)
    if not manifest.alarm.flows:
        return None
    with replacing(place) as fresh:
        shutil.copytree(start, fresh, dirs_exist_ok=True)
    return place


def handed_over(out: Path, model: GlobalModel, *, run: str) -> bool:
    """Whether the bundle at ``out`` is whole and this model's.

    An agent that is killed after it adopted a model finds so at its next start what is left to do.
    """
    try:
        manifest, _ = bundle.read(out)
    except InputError:
        return False
    found = manifest.provenance.get("fleet")
    wanted = {"run": run, "version": model.version, "model_sha256": model_hash(model.tensors)}
    return isinstance(found, dict) and wanted.items() <= found.items()


def calibrated(opened: Opened, batches: Batches) -> dict[str, Any]:
    """The manifest fields that labelled flows give: ``alarm, temperature, reference``.

    At most ``FALSE_ALARM_SHARE`` of the benign flows raise alerts, as in ``detection.calibrate``:
    by an order statistic of log-odds, never below even odds. Without ``ENOUGH`` flows of attacks
    the temperature stays. Novelty stays: how unlike training a flow is does not depend on the
    site.

    Args:
        opened: the bundle with the head in question.
        batches: the newest are looked at. With fewer than ``ENOUGH`` benign flows, no field.
    """
    labels, normal = opened.manifest.labels, opened.template.task.normal
    rows = _newest(batches)
    if rows is None or normal not in labels:
        return {}
    phrase_ids, truth, weights = rows
    benign = labels.index(normal)
    quiet = truth == benign
    if weights[quiet].sum() < ENOUGH:
        return {}
    logits = _logits(opened, phrase_ids)
    temperature = opened.manifest.temperature
    if weights[~quiet].sum() >= ENOUGH:
        temperature = fitted_temperature(logits, truth, weights)
    odds = log_odds(logits / temperature, benign)[quiet]
    alarm, _ = alarm_threshold(odds, weights[quiet], FALSE_ALARM_SHARE, _HERE)
    sure = softmax(logits, temperature).max(axis=1)
    found = reference(phrase_ids, opened.template, sure, weights)
    return {"alarm": alarm, "temperature": temperature, "reference": found}


def fitted_temperature(
    logits: Floats, truth: NDArray[np.int64], weights: NDArray[np.int64]
) -> float:
    """``learning.calibration.temperature_for`` with weights, and without scipy.

    With β = 1/T the NLL is convex, and its slope is the mean of E[z] - z_truth over the softmax
    of β z: it rises with β, and the NLL is least where it is zero.

    Args:
        logits: z, [n, k], n ≥ 1.
        truth, weights: class number and flows of each row, [n].
    """
    ahead = logits - logits[np.arange(len(logits)), truth][:, None]
    low, high = np.log(COLDEST), np.log(HOTTEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        slope = (softmax(ahead, float(np.exp(middle))) * ahead).sum(axis=1) @ weights
        # Where the NLL still falls with β, the temperature should be lower.
        low, high = (low, middle) if slope < 0 else (middle, high)
    return float(np.exp((low + high) / 2))


def _newest(batches: Batches) -> Rows | None:
    """Rows of the last batches, in no order that matters; None where there are none."""
    found, rows = list[Rows](), 0
    for number in reversed(range(len(batches))):
        batch = batches[number]
        if found and rows + len(batch[1]) > _MOST_ROWS:
            break
        found.append(batch)
        rows += len(batch[1])
    if not rows:
        return None
    ids, truth, weights = (np.concatenate(parts)[:_MOST_ROWS] for parts in zip(*found, strict=True))
    return ids, truth, weights


def _logits(opened: Opened, phrase_ids: NDArray[np.uint16]) -> Floats:
    """By the graph that will judge, each distinct prompt once, [n, classes]."""
    distinct, places = np.unique(phrase_ids, axis=0, return_inverse=True)
    parts = [logits for (logits,) in opened.blocks(["logits"], distinct)]
    return np.concatenate(parts).astype(np.float64)[places.reshape(-1)]


def _provenance(manifest: Manifest, model: GlobalModel, run: str, *, site: bool) -> dict[str, Any]:
    """Which model of the fleet it is. What was measured of the start stays named as the start's."""
    begun = manifest.provenance
    return {
        "gradsense": begun.get("gradsense"),
        "fleet": {
            "run": run,
            "version": model.version,
            "model_sha256": model_hash(model.tensors),
            "thresholds": _HERE if site else _START,
        },
        "start": begun,
    }
