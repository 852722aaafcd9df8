"""Codec ``fp16``."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from gradsense.federation.parts import part
from gradsense.federation.transforms.transform import (
    MAX_MESSAGE_BYTES,
    Codec,
    OverLimit,
    expand,
    squeeze,
)
from gradsense.learning.learner import Array, Tensors

HALF_MAX = float(np.finfo(np.float16).max)


@part
class Half(Codec):
    """float16: at most 2^-11 of each value lost, or 2^-25 near zero. Beyond ±65504 it clips."""

    name: ClassVar[str] = "fp16"

    def pack(self, tensors: Tensors) -> bytes:
        clipped = {n: np.clip(t, -HALF_MAX, HALF_MAX) for n, t in tensors.items()}
        return squeeze({n: t.astype(np.float16) for n, t in clipped.items()})

    def unpack(self, data: bytes, limit: int = MAX_MESSAGE_BYTES) -> dict[str, Array]:
        halves = expand(data, limit)
        asked = sum(4 * half.size for half in halves.values())
        if asked > limit:
            raise OverLimit(asked, limit)
        return {name: half.astype(np.float32) for name, half in halves.items()}

    def off(self, tensor: Array) -> float:
        return max(float(np.abs(tensor).max(initial=0.0)) * 2.0**-11, 2.0**-25)
