"""What a classifier answers to flows, once for each distinct prompt, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gradsense.learning.calibration import calibrate, novelty_threshold, reference, softmax
from gradsense.models.card import Measured
from gradsense.models.classifier import TextClassifier
from gradsense.models.heads.influence import SketchedInfluence

_BATCH = 512


@dataclass(frozen=True)
class Answers:
    """``logits`` float32 [n, classes], ``novelty`` float32 [n] or None without a score."""

    logits: NDArray[np.float32]
    novelty: NDArray[np.float32] | None


@torch.inference_mode()
def answers(
    classifier: TextClassifier, texts: Sequence[str], score: SketchedInfluence | None = None
) -> Answers:
    """The classifier's answers to ``texts``, with the novelty ``score`` where there is one."""
    distinct = list(dict.fromkeys(texts))
    places = {text: place for place, text in enumerate(distinct)}
    index = np.fromiter((places[text] for text in texts), dtype=np.int64, count=len(texts))
    encoded = classifier.encode(distinct)
    classifier.model.eval()
    logits, novelty = [], []
    for rows in torch.split(torch.arange(len(distinct)), _BATCH):
        logits.append(classifier.forward(encoded, rows).float().cpu())
        if score is not None:
            novelty.append(score(classifier.features(encoded, rows).cpu(), logits[-1]))
    return Answers(
        torch.cat(logits).numpy()[index],
        torch.cat(novelty).numpy()[index] if novelty else None,
    )


def measure(
    answered: Answers,
    phrase_ids: NDArray[np.uint16],
    truth: NDArray[np.int64],
    classifier: TextClassifier,
) -> Measured:
    """Calibration, thresholds and the reference of drift, from flows of known class.

    Args:
        answered: the answers to n ≥ 1 flows, by the classifier or by a graph made of it.
        phrase_ids: the phrases of these flows, [n, fields], from ``Template.indices``.
        truth: their class numbers, [n].
        classifier: whose labels and template they are.
    """
    calibration = calibrate(
        answered.logits, truth, classifier.labels, classifier.template.task.normal
    )
    confidence = softmax(answered.logits, calibration.temperature).max(axis=1)
    return Measured(
        calibration=calibration,
        novelty=None if answered.novelty is None else novelty_threshold(answered.novelty),
        reference=reference(phrase_ids, classifier.template, confidence),
    )
