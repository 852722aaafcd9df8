"""Transform ``noise``: Gaussian noise on every value."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from gradsense.federation.parts import part
from gradsense.federation.transforms.transform import Transform
from gradsense.learning.learner import Tensors


@part
class Noise(Transform):
    """Adds N(0, deviation²) to every value; behind ``clip`` it is the Gaussian mechanism.

    It keeps no account of what was spent, so by itself it promises no differential privacy.

    Attributes:
        deviation: of the noise, in the tensors' own unit.
    """

    name: ClassVar[str] = "noise"
    deviation: Annotated[float, Field(ge=0, le=1e6)] = 0.01

    def apply(self, tensors: Tensors, rng: np.random.Generator) -> Tensors:
        return {
            name: value + rng.normal(0.0, self.deviation, value.shape).astype(np.float32)
            for name, value in tensors.items()
        }
