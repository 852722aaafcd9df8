"""Codec ``fp16``."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from gradsense.federation.parts import part
from gradsense.federation.transforms.transform import Codec, Layout, Parts
from gradsense.learning.learner import Array

HALF_MAX = float(np.finfo(np.float16).max)


@part
class Half(Codec):
    """float16: at most 2^-11 of each value lost, or 2^-25 near zero. Beyond ±65504 it clips."""

    name: ClassVar[str] = "fp16"

    def parts(self, tensor: Array) -> Parts:
        return {"": np.clip(tensor, -HALF_MAX, HALF_MAX).astype(np.float16)}

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return {"": ("<f2", shape)}

    def values(self, parts: Parts, size: int) -> np.ndarray:
        return parts[""].ravel().astype(np.float32)

    def off(self, tensor: Array) -> float:
        return max(float(np.abs(tensor).max(initial=0.0)) * 2.0**-11, 2.0**-25)
