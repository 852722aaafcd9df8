"""How good a set of verdicts is: the paper's four metrics and those that rare classes need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from gradsense.tasks.task import get_task


@dataclass(frozen=True)
class ClassScore:
    """One class against the rest; ``support`` is its number of flows in the truth."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Scores:
    """Scores of n verdicts. All rates are 0..1.

    ``precision``, ``recall`` and ``f1_weighted`` are averages over classes weighted by support,
    as in the paper. ``f1_macro`` is the plain mean over the classes that occur in the truth: a
    class that a site has never seen can neither lift nor sink its score. A ratio with an empty
    denominator counts as 0. ``false_alarm_rate`` is the share of benign flows flagged as any
    attack, ``detection_rate`` the share of attack flows flagged as any attack, each None where
    the truth holds no such flow. ``confusion[i][j]`` counts flows of class i called class j.
    """

    accuracy: float
    precision: float
    recall: float
    f1_weighted: float
    f1_macro: float
    false_alarm_rate: float | None
    detection_rate: float | None
    classes: tuple[str, ...]
    per_class: dict[str, ClassScore]
    confusion: tuple[tuple[int, ...], ...]


def score(
    truth: npt.NDArray[np.integer[Any]],
    predicted: npt.NDArray[np.integer[Any]],
    classes: Sequence[str],
    *,
    counts: npt.NDArray[np.integer[Any]] | None = None,
    normal: str = get_task().normal,
) -> Scores:
    """Compare verdicts with the truth.

    Args:
        truth, predicted: class numbers [n], places in ``classes``.
        classes: class names.
        counts: how many flows each row stands for [n], at least one; 1 where not given.
        normal: the name of the class that is no attack.

    Raises:
        ValueError: no rows, two lengths, or a class number outside ``classes``.
    """
    if truth.shape != predicted.shape or truth.ndim != 1 or truth.size == 0:
        raise ValueError(f"cannot compare truth {truth.shape} with verdicts {predicted.shape}")
    numbers = np.arange(len(classes))
    if not (np.isin(truth, numbers).all() and np.isin(predicted, numbers).all()):
        raise ValueError(f"a class number is outside 0..{len(classes) - 1}")
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, predicted, labels=numbers, average=None, zero_division=0, sample_weight=counts
    )
    confusion = confusion_matrix(truth, predicted, labels=numbers, sample_weight=counts)
    is_benign = np.array([name == normal for name in classes])
    return Scores(
        accuracy=float(np.average(truth == predicted, weights=counts)),
        precision=float(np.average(precision, weights=support)),
        recall=float(np.average(recall, weights=support)),
        f1_weighted=float(np.average(f1, weights=support)),
        f1_macro=float(np.mean(f1[support > 0])),
        false_alarm_rate=_share_flagged(confusion, is_benign, is_benign),
        detection_rate=_share_flagged(confusion, ~is_benign, is_benign),
        classes=tuple(classes),
        per_class={
            name: ClassScore(float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]))
            for i, name in enumerate(classes)
        },
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion),
    )


def _share_flagged(
    confusion: npt.NDArray[np.int64], rows: npt.NDArray[np.bool_], benign: npt.NDArray[np.bool_]
) -> float | None:
    """Share of the flows of these true classes that were called anything but benign."""
    total = int(confusion[rows].sum())
    return float(confusion[rows][:, ~benign].sum() / total) if total else None
