"""The interface of transforms, and what codecs share.

An update passes through a chain on its way out: first its algorithm's transforms, in order, then
one codec, which makes bytes of it. The client moves its reference point by what the coordinator
will decode, so what a clip or a lossy codec takes away stays in the client's unsent movement and
travels later (error feedback; Karimireddy et al. 2019, arXiv 1901.09847). An algorithm without
``keep_local`` overwrites that remainder with the next broadcast.

All codecs but ``none`` are wrapped in zstd. Whoever unpacks gives a limit, which is checked before
anything is allocated.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import zstandard
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from gradsense.errors import InputError
from gradsense.federation.parts import part
from gradsense.learning.learner import Array, Tensors

#: No message may be larger, packed or unpacked: 2 GiB holds the adapters of any model that a
#: gateway can train.
MAX_MESSAGE_BYTES = 2 << 30
_ZSTD_LEVEL = 3


@part
class Transform(ABC):
    """Named tensors in, named tensors out; the arguments are never changed in place."""

    name: ClassVar[str]

    @abstractmethod
    def apply(self, tensors: Tensors, rng: np.random.Generator) -> Tensors:
        """The tensors that travel instead of these.

        Args:
            rng: seeded by the client and the update's number, so that a resumed run repeats it.
        """


@part
class Codec(ABC):
    """The chain's last link. Deterministic: the same tensors give the same bytes."""

    name: ClassVar[str]

    @abstractmethod
    def pack(self, tensors: Tensors) -> bytes:
        """The tensors as bytes."""

    @abstractmethod
    def unpack(self, data: bytes, limit: int = MAX_MESSAGE_BYTES) -> dict[str, Array]:
        """The tensors again, float32, up to the codec's error bound.

        Args:
            limit: bytes that ``data`` may unpack to, and that the tensors may take.

        Raises:
            OverLimit: it is more.
            InputError: the bytes are not this codec's.
        """


# What codecs share --------------------------------------------------------------------------


class OverLimit(InputError):
    """The bytes would unpack to more than the limit."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the tensors would take {size} bytes; the limit is {limit}",
            hint="have the client send fewer or smaller tensors",
        )


def refuse(reason: object) -> InputError:
    """The error of bytes that are not this codec's."""
    return InputError(
        f"the tensors cannot be read: {reason}", hint="have the client send its update again"
    )


def load(data: bytes) -> dict[str, np.ndarray]:
    """The arrays in safetensors bytes."""
    try:
        return load_tensors(data)
    except (SafetensorError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise refuse(error) from None


def squeeze(parts: dict[str, np.ndarray]) -> bytes:
    """Named arrays as safetensors in one zstd frame."""
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(save_tensors(parts))


def expand(data: bytes, limit: int) -> dict[str, np.ndarray]:
    """The arrays that ``squeeze`` was given."""
    try:
        size = zstandard.frame_content_size(data)
        if size < 0:
            raise refuse("it does not declare the size that it would unpack to")
        if size > limit:
            raise OverLimit(size, limit)
        raw = zstandard.ZstdDecompressor().decompress(
            data, max_output_size=limit, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise refuse(error) from None
    return load(raw)


def _names(parts: dict[str, np.ndarray], prefix: str) -> list[str]:
    return [key.removeprefix(prefix) for key in parts if key.startswith(prefix)]


def shape_of(parts: dict[str, np.ndarray], name: str) -> tuple[int, ...]:
    """The tensor's shape."""
    shape = tuple(int(extent) for extent in parts[f"shape:{name}"].ravel())
    if min(shape, default=1) < 0:
        raise refuse(f"'{name}' has shape {shape}")
    return shape


def rebuild(
    data: bytes, limit: int, read: Callable[[dict[str, np.ndarray], str], np.ndarray]
) -> dict[str, Array]:
    """Every tensor whose shape is listed, from the flat values that ``read`` finds for it."""
    parts = expand(data, limit)
    try:
        shapes = {name: shape_of(parts, name) for name in _names(parts, "shape:")}
        asked = sum(4 * math.prod(shape) for shape in shapes.values())
        if asked > limit:
            raise OverLimit(asked, limit)
        tensors = {}
        for name, shape in shapes.items():
            flat = read(parts, name)[: math.prod(shape)]
            tensors[name] = flat.reshape(shape).astype(np.float32)
        return tensors
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise refuse(error) from None


def shape_entry(name: str, tensor: Array) -> dict[str, np.ndarray]:
    """A part that says the tensor's shape."""
    return {f"shape:{name}": np.array(tensor.shape, dtype=np.int64)}
