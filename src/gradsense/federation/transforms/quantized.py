"""Codecs ``int8`` and ``int4``."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from gradsense.federation.parts import part
from gradsense.federation.transforms.transform import Layout, Parts, TensorCodec
from gradsense.learning.learner import Array

#: What float32 itself may add to a step.
_FLOAT32 = 1e-5


@part
class Quantized(TensorCodec):
    """Whole numbers of 8 bits with one scale a group of values.

    A value is off by at most half a step; the step is the group's largest magnitude divided by
    2^(bits-1) - 1. Groups keep one large value from coarsening a whole layer.
    """

    bits: ClassVar[int] = 8
    name: ClassVar[str] = "int8"
    group: ClassVar[int] = 64  # values that share a scale; both ends must agree on it

    @property
    def _top(self) -> int:
        return int(2 ** (self.bits - 1) - 1)

    def parts(self, tensor: Array) -> Parts:
        flat = tensor.ravel()
        padded = np.zeros(-(-flat.size // self.group) * self.group, dtype=np.float32)
        padded[: flat.size] = flat
        groups = padded.reshape(-1, self.group)
        scales = np.abs(groups).max(axis=1, keepdims=True) / np.float32(self._top)
        steps = np.divide(groups, scales, out=np.zeros_like(groups), where=scales > 0)
        # Scales near the smallest float lose bits themselves; never leave the range.
        whole = np.clip(np.rint(steps), -self._top, self._top).astype(np.int8).ravel()
        if self.bits == 4:
            low, high = whole[::2] & 15, whole[1::2] & 15
            whole = (low | (high << 4)).astype(np.uint8)
        return {"whole": whole, "scale": scales.ravel()}

    def layout(self, shape: tuple[int, ...]) -> Layout:
        groups = -(-math.prod(shape) // self.group)
        whole = (
            ("|u1", (groups * self.group // 2,))
            if self.bits == 4
            else ("|i1", (groups * self.group,))
        )
        return {"whole": whole, "scale": ("<f4", (groups,))}

    def values(self, parts: Parts, size: int) -> np.ndarray:
        whole, scales = parts["whole"], parts["scale"]
        if self.bits == 4:
            pairs = np.stack((whole & 15, whole >> 4), axis=1).astype(np.int8).ravel()
            whole = np.where(pairs > self._top, pairs - 16, pairs)
        return (whole.reshape(-1, self.group) * scales.astype(np.float32)[:, None]).ravel()

    def off(self, tensor: Array) -> float:
        return float(np.abs(tensor).max(initial=0.0)) / (2 * self._top) * (1 + _FLOAT32)


@part
class Quantized4(Quantized):
    """The same with 4 bits, two values a byte."""

    bits: ClassVar[int] = 4
    name: ClassVar[str] = "int4"
