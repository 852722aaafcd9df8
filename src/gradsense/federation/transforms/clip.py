"""Transform ``clip``: no update is longer than a given norm."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from gradsense.federation.parts import part
from gradsense.federation.transforms.transform import Transform
from gradsense.learning.learner import Tensors, norm_of


@part
class Clip(Transform):
    """Scales an update down to an L2 norm over all of its tensors (DP-FedAvg: McMahan et al. 2018).

    Attributes:
        norm: the largest that may travel.
    """

    name: ClassVar[str] = "clip"
    norm: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0

    def apply(self, tensors: Tensors, rng: np.random.Generator) -> Tensors:
        long = norm_of(tensors)
        if long <= self.norm:
            return tensors
        factor = np.float32(self.norm / long)
        return {name: value * factor for name, value in tensors.items()}
