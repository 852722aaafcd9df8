"""Codec ``none``: float32 as it is."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from safetensors.numpy import save

from gradsense.federation.parts import part
from gradsense.federation.transforms.transform import MAX_MESSAGE_BYTES, Codec, OverLimit, load
from gradsense.learning.learner import Array, Tensors


@part
class Plain(Codec):
    """float32 as it is: exact."""

    name: ClassVar[str] = "none"

    def pack(self, tensors: Tensors) -> bytes:
        return save({name: np.ascontiguousarray(value) for name, value in tensors.items()})

    def unpack(self, data: bytes, limit: int = MAX_MESSAGE_BYTES) -> dict[str, Array]:
        if len(data) > limit:
            raise OverLimit(len(data), limit)
        return load(data)
