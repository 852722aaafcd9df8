"""A head with weights for a bundle of the context template."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gradsense.detection import bundle
from gradsense.learning.learner import Tensors


def some_head(bundle_path: Path, *, scale: float = 0.02) -> Tensors:
    classes = len(bundle.read(bundle_path)[0].labels)
    rng = np.random.default_rng(5)
    return {
        "score.weight": (scale * rng.normal(size=(classes, 1520))).astype(np.float32),
        "score.bias": (scale * rng.normal(size=classes)).astype(np.float32),
    }
