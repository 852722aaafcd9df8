"""The learner for algorithms that train weights: the one place where a device needs torch."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradsense.agent.reader import Batches
from gradsense.fleet.jobs import Job
from gradsense.learning.trainer import Examples, LocalLearner, Trainer
from gradsense.models import folder
from gradsense.models.classifier import TextClassifier

#: One in this many distinct prompts is held out for validation (eq 7).
_VALIDATION = 10


class WeightLearners:
    """Makes a ``LocalLearner`` of the flows that a site has by now.

    Args:
        job: learning rate, batch size, seed.
        model: the model folder that the run began with.
        between: called between steps; may raise to interrupt.
    """

    def __init__(self, job: Job, model: Path, between: Callable[[], None]) -> None:
        torch.set_num_threads(1)
        self.classifier: TextClassifier = folder.load(model)
        self._trainer = Trainer(
            self.classifier,
            optimizer=job.optimizer,
            lr=job.lr,
            batch_size=job.batch_size,
            seed=job.seed,
            between=between,
        )

    def of(self, batches: Batches, device: str) -> LocalLearner:
        """A learner of all batches, of no flow while there are none.

        Which prompts are kept for validation depends on the prompt alone, so it stays the same as
        the site's flows grow. The order of batches is the device's own, by its name.
        """
        stream = zlib.crc32(device.encode())
        rows = [batches[number] for number in range(len(batches))]
        if not rows:
            none = torch.zeros(0, dtype=torch.int64)
            nothing = Examples(self.classifier.encode([]), none, none)
            return LocalLearner(self._trainer, nothing, nothing, stream)
        phrase_ids, labels, weights = (np.concatenate(parts) for parts in zip(*rows, strict=True))
        held = np.array([zlib.crc32(row.tobytes()) % _VALIDATION == 0 for row in phrase_ids])
        if held.all():
            held[:] = False
        train = self._examples(phrase_ids[~held], labels[~held], weights[~held])
        validation = train
        if held.any():
            validation = self._examples(phrase_ids[held], labels[held], weights[held])
        return LocalLearner(self._trainer, train, validation, stream)

    def _examples(self, phrase_ids: Any, labels: Any, weights: Any) -> Examples:
        distinct, index = np.unique(phrase_ids, axis=0, return_inverse=True)
        flows = np.repeat(np.arange(len(phrase_ids)), weights)
        return Examples(
            self.classifier.encode(self.classifier.template.texts(distinct)),
            torch.from_numpy(index.reshape(-1)[flows].astype(np.int64)),
            torch.from_numpy(labels[flows].astype(np.int64)),
        )
