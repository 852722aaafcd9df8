"""Codec ``uniform``."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from gradsense.federation.parts import Positive, part
from gradsense.federation.transforms.transform import Layout, Parts, TensorCodec
from gradsense.learning.learner import Array

_TOP = 32_000  # folded, it fits two bytes


@part
class Uniform(TensorCodec):
    """Whole numbers of one step for the whole tensor, as few bits each as their spread needs.

    For a factor of statistics, whose rows run from large to small: every direction is off by the
    same absolute amount, so the small ones, which are many, take few bits. That is how a given
    total error costs least (reverse water-filling: Cover and Thomas 2006, §10.3.3). zstd's entropy
    coder turns small spread into few bits.

    A value is off by at most half a step.

    Attributes:
        fineness: the step as a share of the faintest row's root mean square. It is never below
            2^-15 of the tensor's largest magnitude.
    """

    name: ClassVar[str] = "uniform"
    fineness: Positive = 0.3

    def step(self, tensor: Array) -> float:
        """The step of this tensor; 0 where it holds only zeros."""
        if not tensor.size:
            return 0.0
        rows = tensor.reshape(len(tensor), -1) if tensor.ndim > 1 else tensor.reshape(1, -1)
        loudness = np.sqrt(np.mean(np.square(rows, dtype=np.float64), axis=1))
        nonzero = loudness[loudness > 0]
        if not nonzero.size:
            return 0.0
        least = float(np.abs(tensor).max()) / _TOP
        return float(np.float32(max(self.fineness * float(nonzero.min()), least)))

    def parts(self, tensor: Array) -> Parts:
        step = self.step(tensor)
        scaled = tensor.ravel().astype(np.float64) / step if step else np.zeros(tensor.size)
        whole = np.clip(np.rint(scaled), -_TOP, _TOP).astype(np.int32)
        # 0, -1, 1, -2, 2, ... as 0, 1, 2, 3, 4: then the high bytes are nearly all zero.
        folded = ((whole << 1) ^ (whole >> 31)).astype(np.uint16)
        low, high = (folded & 255).astype(np.uint8), (folded >> 8).astype(np.uint8)
        return {"low": low, "high": high, "step": np.array([step], dtype=np.float32)}

    def layout(self, shape: tuple[int, ...]) -> Layout:
        size = math.prod(shape)
        return {"low": ("|u1", (size,)), "high": ("|u1", (size,)), "step": ("<f4", (1,))}

    def values(self, parts: Parts, size: int) -> np.ndarray:
        folded = parts["low"] | parts["high"].astype(np.int32) << 8
        whole = (folded >> 1) ^ -(folded & 1)
        # A product of 16 and 24 bits is rounded once, in float32 as in float64.
        found: np.ndarray = whole.astype(np.float32) * parts["step"][0]
        return found

    def off(self, tensor: Array) -> float:
        # Rounding may have made the faintest row fainter than the one that chose the step.
        fainter = 1 - min(self.fineness, 1.9) / 2
        return self.step(tensor) / 2 / fainter * (1 + 1e-4)
