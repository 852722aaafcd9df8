"""Codec ``topk``."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from gradsense.federation.parts import part
from gradsense.federation.transforms.half import HALF_MAX
from gradsense.federation.transforms.transform import Layout, Parts, TensorCodec, refuse
from gradsense.learning.learner import Array


@part
class TopK(TensorCodec):
    """Only the largest values of each tensor, as float16; the others arrive as zero.

    A value is off by at most the smallest magnitude that was kept, or by float16's rounding.

    Attributes:
        kept: share of the values that travel, at least one a tensor.
    """

    name: ClassVar[str] = "topk"
    kept: Annotated[float, Field(gt=0, le=1)] = 0.05

    def _count(self, size: int) -> int:
        return min(size, max(1, math.ceil(self.kept * size)))

    def parts(self, tensor: Array) -> Parts:
        flat = tensor.ravel()
        count = self._count(flat.size)
        # A stable order decides ties, so that the same tensor gives the same bytes.
        places = np.sort(np.argsort(-np.abs(flat), kind="stable")[:count])
        values = np.clip(flat[places], -HALF_MAX, HALF_MAX).astype(np.float16)
        # Gaps between places are small numbers, which zstd likes.
        return {"gaps": np.diff(places, prepend=0).astype(np.uint32), "values": values}

    def layout(self, shape: tuple[int, ...]) -> Layout:
        count = self._count(math.prod(shape))
        return {"gaps": ("<u4", (count,)), "values": ("<f2", (count,))}

    def values(self, parts: Parts, size: int) -> np.ndarray:
        flat, gaps = np.zeros(size, dtype=np.float32), parts["gaps"]
        if gaps.size:
            places = gaps.astype(np.int64)
            np.cumsum(places, out=places)
            if places[-1] >= size or not gaps[1:].all():
                raise refuse("its places do not increase within the tensor")
            flat[places] = parts["values"]
        return flat

    def off(self, tensor: Array) -> float:
        sizes = np.abs(tensor)
        rounded = float(sizes.max(initial=0.0)) * 2.0**-11 + 2.0**-25
        return rounded + (float(sizes[sizes > 0].min()) if sizes.any() else 0.0)
