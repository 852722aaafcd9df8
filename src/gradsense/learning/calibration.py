"""Probabilities that mean what they say, and thresholds on them.

A temperature T divides the logits before softmax. It changes no verdict, only how sure the model
sounds, and is the one number that makes the negative log-likelihood of held-out flows least (Guo,
Pleiss, Sun and Weinberger 2017, arXiv 1706.04599). Thresholds come after it: suspicion does not
keep its order over flows when the temperature changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradsense.learning.alarms import threshold_for
from gradsense.models.card import AlarmThreshold, Calibration, Reference
from gradsense.prompts.templates import Template

Floats = NDArray[np.floating[Any]]

#: Where the temperature is looked for. Flows that are all separated would have it go to 0.
COLDEST, HOTTEST = 0.05, 20.0
#: Share of calibration flows of known classes that may count as novel.
NOVEL_SHARE = 0.005


def softmax(logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities [n, k] of ``logits`` [n, k] over the temperature, in float64."""
    scaled = logits.astype(np.float64) / temperature
    odds = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = odds / odds.sum(axis=1, keepdims=True)
    return probabilities


def temperature_for(logits: Floats, truth: NDArray[np.int64]) -> float:
    """The T between ``COLDEST`` and ``HOTTEST`` that makes the NLL least (Guo et al. 2017, §4.2).

    The NLL is convex in 1/T, so there is one least value and a bounded search finds it.

    Args:
        logits: [n, k], n ≥ 1.
        truth: class numbers, [n].
    """
    from scipy.optimize import minimize_scalar  # noqa: PLC0415  (a gateway has none, nor needs it)

    scores = logits.astype(np.float64)
    # Against the true class's logit, so that only one logarithm is left.
    ahead = scores - scores[np.arange(len(scores)), truth][:, None]

    def nll(log_temperature: float) -> float:
        scaled = ahead / np.exp(log_temperature)
        top = scaled.max(axis=1)
        return float((top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))).mean())

    bounds = (np.log(COLDEST), np.log(HOTTEST))
    found = minimize_scalar(nll, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def expected_calibration_error(
    probabilities: Floats, truth: NDArray[np.int64], bins: int = 15
) -> float:
    """Mean |accuracy − confidence| over bins of equal width, weighted by flows (eq 3 there).

    Args:
        probabilities: [n, k], n ≥ 1.
        truth: class numbers, [n].
        bins: a confidence on a border is in the bin below it.
    """
    sure = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == truth
    places = np.clip(np.ceil(sure * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(places, weights=right - sure, minlength=bins)
    return float(np.abs(gaps).sum() / len(truth))


def suspicion(probabilities: Floats, benign: int) -> Floats:
    """1 − p(benign), [n]; as a sum, because near 1 the difference would lose its digits."""
    others: Floats = np.delete(probabilities, benign, axis=1).sum(axis=1)
    return others


def calibrate(
    logits: Floats, truth: NDArray[np.int64], labels: Sequence[str], normal: str
) -> Calibration:
    """Temperature, alarm threshold and calibration errors from flows of known class.

    Args:
        logits: [n, k], n ≥ 1.
        truth: class numbers, [n].
        labels: the k class names.
        normal: the class that raises no alert; without it there is no alarm threshold.
    """
    temperature = temperature_for(logits, truth)
    after = softmax(logits, temperature)
    alarm = None
    if normal in labels:
        benign = labels.index(normal)
        quiet = suspicion(after[truth == benign], benign)
        alarm = _passed(quiet, threshold_for(quiet))
    return Calibration(
        temperature=temperature,
        alarm=alarm,
        ece_before=expected_calibration_error(softmax(logits), truth),
        ece_after=expected_calibration_error(after, truth),
        flows=len(truth),
    )


def novelty_threshold(scores: Floats) -> AlarmThreshold:
    """The lowest of these ``scores`` [n ≥ 1] that at most ``NOVEL_SHARE`` of them exceed."""
    allowed = int(NOVEL_SHARE * len(scores))
    return _passed(scores, float(np.sort(scores)[::-1][allowed]))


def reference(
    indices: NDArray[np.uint16],
    template: Template,
    confidence: Floats,
    weights: NDArray[np.int64] | None = None,
) -> Reference:
    """What these flows look like, as the base of drift.

    Args:
        indices: the phrases that they pick, [n, fields], from ``Template.indices``.
        confidence: the verdicts' probabilities, [n].
        weights: how many flows each row stands for, [n]; one each by default.
    """
    flows = len(indices) if weights is None else int(weights.sum())
    shares = {
        field.name: tuple((np.bincount(column, weights, len(field.phrases)) / flows).tolist())
        for field, column in zip(template.fields, indices.T, strict=True)
    }
    histogram = np.histogram(confidence, 10, (0.0, 1.0), weights=weights)[0] / flows
    return Reference(flows=flows, fields=shares, confidence=tuple(histogram.tolist()))


def _passed(scores: Floats, threshold: float) -> AlarmThreshold:
    above = float((scores > threshold).mean()) if len(scores) else 0.0
    return AlarmThreshold(threshold=threshold, share=above, flows=len(scores))
