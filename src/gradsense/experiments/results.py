"""``results.json``: one row for each algorithm and seed, and how it is read and written.

The fields are a superset of the contract in DESIGN.md. ``None`` means "not meaningful for this
row": a random forest has no uplink, local-only training has no central model.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from gradsense.data.datasets.leakage import Leakage
from gradsense.errors import InputError
from gradsense.storage import files


def _finite_or_none(value: object) -> object:
    # JSON has no NaN. A diverged loss is a result, so it becomes null instead of an error.
    return None if isinstance(value, float) and not math.isfinite(value) else value


Loss = Annotated[float | None, BeforeValidator(_finite_or_none)]


class _Model(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, from_attributes=True
    )


class ScoreSummary(_Model):
    """Quality on a set of flows, each value 0..1. Without a suffix: support-weighted averages."""

    accuracy: float
    precision: float
    recall: float
    f1_weighted: float
    f1_macro: float


class ClassScores(_Model):
    """One class as the central model sees it; ``support`` is the number of test flows."""

    precision: float
    recall: float
    f1: float
    support: int


class SiteScores(_Model):
    """The central model on the test flows of one site."""

    accuracy: float
    f1_macro: float
    flows: int


class Alarms(_Model):
    """Flows whose suspicion, 1 - p(benign), is above a threshold chosen on validation flows.

    ``false_alarms`` is the share of benign test flows among them, ``detected`` that of all attack
    flows; ``recall`` has it by class.
    """

    threshold: float
    false_alarms: float | None
    detected: float | None
    recall: dict[str, float]


class Point(_Model):
    """The central model after one aggregation. ``loss`` is null where it was not finite.

    ``epochs`` are local epochs worked by then: passes over all training flows of the fleet.
    """

    aggregation: int
    virtual_s: float
    uplink_bytes: int
    accuracy: float
    f1_macro: float
    loss: Loss
    epochs: float | None = None


class UploadMark(_Model):
    """One upload as it reached the coordinator."""

    virtual_s: float
    client: str
    reason: str
    bytes: int
    aggregation: int


class Row(_Model):
    """One run of one algorithm, or one reference, with one seed.

    Attributes:
        kind: 'federated', or 'reference' for rows that only set the scale.
        leakage: what of the test flows training has seen.
        central: the last global model on the whole test set.
        clients: the clients' local models after their last local work, each on the whole test
            set, averaged over clients.
        clients_own: each client's model on its own site's test flows, averaged over the clients
            that have test flows.
        alarms: the central model as an alarm; None where a row gives no probabilities.
        central_latency_s: mean virtual seconds from one global model to the next.
        client_latency_s: mean virtual seconds from the start of one piece of local work to the
            start of the next, waiting included.
        requests_per_min, client_requests_per_min: 60 / latency, as the paper's Table III has it.
        inference_ms: milliseconds of one inference, by which the paper defines its latency: the
            mean over the fleet's device profiles, one flow at a time.
        validation: the last global model on the validation flows, for choosing settings.
        epochs_allowed, epochs: local epochs that each client might spend, and those worked, as
            passes over all training flows of the fleet.
        samples_trained: local compute really spent, in training samples.
        virtual_s, wall_s: simulated seconds, and seconds on this machine.
        refused: updates turned away, by reason.
        triggers: uploads by the reason that set them off.
        dropped_out: how many times a client dropped out.
        confusion: rows are the true classes, columns the predicted ones, both as in ``classes``.
    """

    algorithm: str
    kind: Literal["federated", "reference"]
    seed: int
    rounds: int
    synthetic: bool
    leakage: Leakage | None = None
    central: ScoreSummary | None = None
    clients: ScoreSummary | None = None
    clients_own: ScoreSummary | None = None
    alarms: Alarms | None = None
    central_latency_s: float | None = None
    client_latency_s: float | None = None
    requests_per_min: float | None = None
    client_requests_per_min: float | None = None
    inference_ms: float | None = None
    validation: ScoreSummary | None = None
    epochs_allowed: float | None = None
    epochs: float | None = None
    energy_j: float | None = None
    uplink_bytes: int | None = None
    downlink_bytes: int | None = None
    uploads: int | None = None
    aggregations: int | None = None
    samples_trained: int | None = None
    virtual_s: float | None = None
    wall_s: float | None = None
    refused: dict[str, int] = {}
    triggers: dict[str, int] = {}
    dropped_out: int = 0
    curve: list[Point] = []
    uploads_log: list[UploadMark] = []
    per_class: dict[str, ClassScores] = {}
    per_site: dict[str, SiteScores] = {}
    confusion: list[list[int]] = []
    classes: list[str] = []


_ROWS = TypeAdapter(list[Row])


def load(path: Path) -> list[Row]:
    """Read ``results.json``.

    Raises:
        InputError: the file cannot be read, is not JSON, or a row breaks the schema; the text
            names the first field at fault.
    """
    try:
        return _ROWS.validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", hint="give a results.json", file=path
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(
            first["msg"],
            hint="give a results.json as 'gradsense compare' writes it",
            file=path,
            field=".".join(str(part) for part in first["loc"]) or None,
        ) from error


def save(rows: list[Row], path: Path) -> None:
    """Write ``results.json`` whole or not at all.

    Raises:
        InputError: ``path`` cannot be written.
    """
    write_text(path, _ROWS.dump_json(rows, indent=1).decode() + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` beside ``path``, then rename: readers see the old file or the new one.

    Raises:
        InputError: ``path`` cannot be written.
    """
    try:
        files.write(path, text.encode(), mode=0o644)
    except OSError as error:
        raise InputError(
            f"cannot be written ({error.strerror})",
            hint="choose a path in a folder that exists and can be written to",
            file=path,
        ) from error
