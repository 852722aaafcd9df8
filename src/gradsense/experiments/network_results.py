"""What came out where networks were left out: counts by capture, and means with intervals.

Every figure follows from counts that add up over a group's captures, AUROC from the pairs of a
malicious and a benign flow that are ranked right. So captures can be drawn again without a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from gradsense.errors import InputError
from gradsense.experiments.results import write_text

Floats = NDArray[np.float64]

#: A share of fewer flows than this, of a group, is no share.
LEAST_FLOWS = 10
_REPLICATES, _INTERVAL = 1000, (2.5, 97.5)
FIGURES = ("auroc", "recall", "false_alarms", "recall_calibrated", "false_alarms_calibrated")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CaptureCounts(_Model):
    """Flows of a capture that was left out with its group.

    Attributes:
        malicious, benign: labelled flows.
        judged: benign flows of its second half, on which false alarms are counted.
        found, false: malicious flows and judged ones above the threshold as trained.
        found_calibrated, false_calibrated: above that of the group's own first half.
    """

    capture: str
    malicious: int
    benign: int
    judged: int
    found: int
    false: int
    found_calibrated: int
    false_calibrated: int


class GroupRow(_Model):
    """One method with one seed on one group that it was not trained on.

    Attributes:
        method: an algorithm, or the name of a reference.
        grades: of the captures' labels, each once, in alphabetical order.
        wins: [captures, captures] pairs of a malicious flow of the first and a benign one of the
            second of which the malicious one is the more suspicious; ties count half.
        threshold: from the validation flows of the training networks.
        calibrated: from the first half of the group's benign flows; None without any.
        texts_seen, compact_seen, hosts_seen: shares of the group's flows whose prompt, whose
            compact prompt and whose originating address occur in training flows.
        uplink_bytes: what the other groups' sites sent; None where flows were pooled.
        seconds: to fit and to judge, on this machine.
    """

    method: str
    kind: Literal["federated", "reference"]
    seed: int
    group: str
    grades: str
    captures: list[CaptureCounts]
    wins: list[list[float]]
    threshold: float
    calibrated: float | None
    texts_seen: float
    compact_seen: float
    hosts_seen: float
    uplink_bytes: int | None
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """A mean over so many groups, with its 95 % interval."""

    mean: float
    low: float
    high: float
    groups: int


@dataclass(frozen=True)
class Summary:
    """A method over groups: each of ``FIGURES``, and its difference to the first method's."""

    figures: dict[str, Estimate]
    ahead: dict[str, Estimate]


_ROWS = TypeAdapter(list[GroupRow])


def save_groups(rows: list[GroupRow], path: Path) -> None:
    """Write rows whole or not at all.

    Raises:
        InputError: ``path`` cannot be written.
    """
    write_text(path, _ROWS.dump_json(rows).decode() + "\n")


def load_groups_of(path: Path) -> list[GroupRow]:
    """Read rows.

    Raises:
        InputError: the file cannot be read, or is of another kind.
    """
    try:
        return _ROWS.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(
            "cannot be read as results of networks left out",
            hint="give a results.json as 'gradsense compare --split network' writes it",
            file=path,
        ) from error


def figures(row: GroupRow, weights: Floats) -> dict[str, Floats]:
    """The row's ``FIGURES``, [draws], with its captures counted so often; nan without flows.

    Args:
        row: of a group of k captures.
        weights: how often each capture counts, [draws, k].
    """

    def counted(name: str) -> Floats:
        return np.array([getattr(one, name) for one in row.captures], np.float64)

    def share(part: str, whole: str) -> Floats:
        total = counted(whole)
        if total.sum() < LEAST_FLOWS:
            return np.full(len(weights), np.nan)
        return _ratio(weights @ counted(part), weights @ total)

    malicious, benign = counted("malicious"), counted("benign")
    auroc = np.full(len(weights), np.nan)
    if min(malicious.sum(), benign.sum()) >= LEAST_FLOWS:
        won = np.einsum("di,ij,dj->d", weights, np.array(row.wins), weights)
        auroc = _ratio(won, (weights @ malicious) * (weights @ benign))
    found = {
        "auroc": auroc,
        "recall": share("found", "malicious"),
        "false_alarms": share("false", "judged"),
    }
    nothing = np.full(len(weights), np.nan)
    own = row.calibrated is not None
    return found | {
        "recall_calibrated": share("found_calibrated", "malicious") if own else nothing,
        "false_alarms_calibrated": share("false_calibrated", "judged") if own else nothing,
    }


def mean_figures(rows: Sequence[GroupRow]) -> dict[str, float]:
    """The mean over these rows, of one method and group, of each figure; nan without flows."""
    ones = [figures(row, np.ones((1, len(row.captures)))) for row in rows]
    return {name: float(np.mean([one[name][0] for one in ones])) for name in FIGURES}


def summaries(rows: Sequence[GroupRow], *, seed: int = 0) -> dict[str, Summary]:
    """Means over groups by method, with intervals by a bootstrap in two stages.

    Groups are drawn with replacement, then each one's captures (Davison and Hinkley 1997, §3.8): a
    capture is no independent witness beside others of its laboratory. A figure is first averaged
    over the seeds. All methods get the same draws, so that differences are paired.

    Args:
        rows: methods in the order of the table; the first is what others are compared with.
        seed: of the draws.
    """
    rng = np.random.default_rng([seed, 43])
    groups = sorted({row.group for row in rows})
    methods = list(dict.fromkeys(row.method for row in rows))
    values = {name: {m: np.zeros((len(groups), 0)) for m in methods} for name in FIGURES}
    for group in groups:
        here = [row for row in rows if row.group == group]
        count = len(here[0].captures)
        weights = np.vstack(
            [np.ones(count), rng.multinomial(count, np.full(count, 1 / count), _REPLICATES)]
        ).astype(np.float64)
        for method in methods:
            found = [figures(row, weights) for row in here if row.method == method]
            for name in FIGURES:
                line = np.mean([one[name] for one in found], axis=0)[None]
                before = values[name][method]
                values[name][method] = line if not before.size else np.vstack([before, line])
    drawn = rng.integers(len(groups), size=(_REPLICATES, len(groups)))
    return {
        method: Summary(
            {
                name: made
                for name in FIGURES
                if (made := _estimate(values[name][method], drawn)) is not None
            },
            {
                name: made
                for name in FIGURES
                if method != methods[0]
                and (made := _estimate(values[name][method] - values[name][methods[0]], drawn))
                is not None
            },
        )
        for method in methods
    }


def _ratio(part: Floats, whole: Floats) -> Floats:
    ratio: Floats = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
    return ratio


def _estimate(values: Floats, drawn: NDArray[np.int64]) -> Estimate | None:
    """Of values [groups, 1 + replicates], the first as it is, by groups drawn [replicates, n]."""
    known = np.isfinite(values[:, 0])
    if not known.any():
        return None
    means = []
    for place, chosen in enumerate(drawn, start=1):
        own = values[chosen, place]
        own = own[np.isfinite(own)]
        if own.size:
            means.append(own.mean())
    low, high = np.percentile(means, _INTERVAL)
    return Estimate(float(values[known, 0].mean()), float(low), float(high), int(known.sum()))
