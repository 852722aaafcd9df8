"""The interface of transforms, and what codecs share.

An update passes through a chain on its way out: first its algorithm's transforms, in order, then
one codec, which makes bytes of it. The client moves its reference point by what the coordinator
will decode, so what a clip or a lossy codec takes away stays in the client's unsent movement and
travels later (error feedback; Karimireddy et al. 2019, arXiv 1901.09847). An algorithm without
``keep_local`` overwrites that remainder with the next broadcast.

All codecs but ``none``, which stands here, are wrapped in zstd. Whoever unpacks gives a limit,
which is checked before anything is allocated.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
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

Parts = dict[str, np.ndarray]


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

    @abstractmethod
    def off(self, tensor: Array) -> float:
        """So far at most is any value of this unpacked tensor from the packed one's."""


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


def _load(data: bytes) -> Parts:
    """The arrays in safetensors bytes."""
    try:
        return load_tensors(data)
    except (SafetensorError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise refuse(error) from None


def squeeze(parts: Parts) -> bytes:
    """Named arrays as safetensors in one zstd frame."""
    return compress(save_tensors(parts))


def expand(data: bytes, limit: int) -> Parts:
    """The arrays that ``squeeze`` was given."""
    return _load(decompress(data, limit))


def compress(raw: bytes) -> bytes:
    """One zstd frame (RFC 8878) that declares its content's size."""
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(raw)


def decompress(frame: bytes, limit: int) -> bytes:
    """The content of one zstd frame, with no more than ``limit`` bytes ever allocated for it.

    Raises:
        OverLimit: it declares more than the limit.
        InputError: no frame, no declared size, another size than declared, or bytes after it.
    """
    try:
        size = zstandard.frame_content_size(frame)
        if size <= 0:
            raise refuse("it does not declare the size that it would unpack to")
        if size > limit:
            raise OverLimit(size, limit)
        # The output is allocated at the declared size; a frame that holds more is an error.
        return zstandard.ZstdDecompressor().decompress(
            frame, max_output_size=limit, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise refuse(f"no zstd frame: {error}") from None


@part
class Plain(Codec):
    """float32 as it is: exact."""

    name: ClassVar[str] = "none"

    def pack(self, tensors: Tensors) -> bytes:
        return save_tensors({name: np.ascontiguousarray(t) for name, t in tensors.items()})

    def unpack(self, data: bytes, limit: int = MAX_MESSAGE_BYTES) -> dict[str, Array]:
        if len(data) > limit:
            raise OverLimit(len(data), limit)
        return _load(data)

    def off(self, tensor: Array) -> float:
        return 0.0


@part
class TensorCodec(Codec):
    """A codec that makes some arrays of each tensor, whose shape travels with them."""

    @abstractmethod
    def parts(self, tensor: Array) -> Parts:
        """The arrays that travel instead of a tensor, by names of the codec's own."""

    @abstractmethod
    def values(self, parts: Parts, size: int) -> np.ndarray:
        """The tensor's values, flat, from ``parts``; what is behind ``size`` of them is cut off."""

    def pack(self, tensors: Tensors) -> bytes:
        found: Parts = {}
        for name, tensor in tensors.items():
            own = self.parts(tensor) | {"shape": np.array(tensor.shape, dtype=np.int64)}
            found |= {f"{kind}:{name}": array for kind, array in own.items()}
        return squeeze(found)

    def unpack(self, data: bytes, limit: int = MAX_MESSAGE_BYTES) -> dict[str, Array]:
        own: dict[str, Parts] = {}
        for key, array in expand(data, limit).items():
            kind, _, name = key.partition(":")
            own.setdefault(name, {})[kind] = array
        try:
            shapes = {name: _shape(name, parts["shape"]) for name, parts in own.items()}
            asked = sum(4 * math.prod(shape) for shape in shapes.values())
            if asked > limit:
                raise OverLimit(asked, limit)
            tensors = {}
            for name, shape in shapes.items():
                size = math.prod(shape)
                flat = self.values(own[name], size)[:size]
                tensors[name] = flat.reshape(shape).astype(np.float32)
            return tensors
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise refuse(error) from None


def _shape(name: str, extents: np.ndarray) -> tuple[int, ...]:
    shape = tuple(int(extent) for extent in extents.ravel())
    if min(shape, default=1) < 0:
        raise refuse(f"'{name}' has shape {shape}")
    return shape
