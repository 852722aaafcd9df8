"""Codec ``topk``."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from gradsense.federation.parts import Share, part
from gradsense.federation.transforms.half import HALF_MAX
from gradsense.federation.transforms.transform import (
    MAX_MESSAGE_BYTES,
    Codec,
    rebuild,
    shape_entry,
    shape_of,
    squeeze,
)
from gradsense.learning.learner import Array, Tensors


@part
class TopK(Codec):
    """Only the largest values of each tensor, as float16; the others arrive as zero.

    A value is off by at most the smallest magnitude that was kept, or by float16's rounding.

    Attributes:
        kept: share of the values that travel, at least one a tensor.
    """

    name: ClassVar[str] = "topk"
    kept: Share = 0.05

    def pack(self, tensors: Tensors) -> bytes:
        parts: dict[str, np.ndarray] = {}
        for name, tensor in tensors.items():
            flat = tensor.ravel()
            count = min(flat.size, max(1, math.ceil(self.kept * flat.size)))
            # A stable order decides ties, so that the same tensor gives the same bytes.
            places = np.sort(np.argsort(-np.abs(flat), kind="stable")[:count])
            values = np.clip(flat[places], -HALF_MAX, HALF_MAX).astype(np.float16)
            # Gaps between places are small numbers, which zstd likes.
            gaps = np.diff(places, prepend=0).astype(np.uint32)
            parts |= {f"gaps:{name}": gaps, f"values:{name}": values}
            parts |= shape_entry(name, tensor)
        return squeeze(parts)

    def unpack(self, data: bytes, limit: int = MAX_MESSAGE_BYTES) -> dict[str, Array]:
        return rebuild(data, limit, self._values)

    def _values(self, parts: dict[str, np.ndarray], name: str) -> np.ndarray:
        flat = np.zeros(math.prod(shape_of(parts, name)), dtype=np.float32)
        places = np.cumsum(parts[f"gaps:{name}"].astype(np.int64))
        flat[places] = parts[f"values:{name}"].astype(np.float32)
        return flat
