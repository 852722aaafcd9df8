"""Codecs: how the tensors of an update become bytes, exactly or smaller.

Every codec is deterministic. The client moves its reference point by what the coordinator will
decode, so what a lossy codec rounds away stays in the client's unsent movement and travels later
(error feedback; Karimireddy et al. 2019, arXiv 1901.09847). A strategy without ``keep_local``
overwrites that remainder with the next broadcast.

All but ``none`` are wrapped in zstd. Sizes are bounded before anything is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import zstandard
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from gradsense.errors import InputError
from gradsense.learning.learner import Array, Tensors

#: No message may be larger, packed or unpacked: 2 GiB holds the adapters of any model that a
#: gateway can train.
MAX_MESSAGE_BYTES = 2 << 30
_ZSTD_LEVEL = 3
_UNIFORM_TOP = 32_000  # folded, it fits two bytes
_HALF_MAX = float(np.finfo(np.float16).max)


class Codec(Protocol):
    """The interface of every codec."""

    @property
    def name(self) -> str:
        """What the message header and the command line call it."""
        ...

    def pack(self, tensors: Tensors) -> bytes:
        """The tensors as bytes; the same tensors give the same bytes."""
        ...

    def unpack(self, data: bytes) -> dict[str, Array]:
        """The tensors again, up to the codec's error bound.

        Raises:
            InputError: the bytes are not this codec's.
        """
        ...


def _refuse(reason: object) -> InputError:
    return InputError(
        f"the tensors cannot be read: {reason}", hint="have the client send its update again"
    )


def _load(data: bytes) -> dict[str, np.ndarray]:
    try:
        return load_tensors(data)
    except (SafetensorError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _refuse(error) from None


def _squeeze(parts: dict[str, np.ndarray]) -> bytes:
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(save_tensors(parts))


def _expand(data: bytes) -> dict[str, np.ndarray]:
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= MAX_MESSAGE_BYTES:
            raise _refuse(f"it would unpack to {size} bytes")
        raw = zstandard.ZstdDecompressor().decompress(data, max_output_size=MAX_MESSAGE_BYTES)
    except zstandard.ZstdError as error:
        raise _refuse(error) from None
    return _load(raw)


def _names(parts: dict[str, np.ndarray], prefix: str) -> list[str]:
    return [key.removeprefix(prefix) for key in parts if key.startswith(prefix)]


def _shape(parts: dict[str, np.ndarray], name: str) -> tuple[int, ...]:
    """The tensor's shape, which must not ask for more memory than a message may hold."""
    shape = tuple(int(extent) for extent in parts[f"shape:{name}"].ravel())
    if min(shape, default=1) < 0 or 4 * math.prod(shape) > MAX_MESSAGE_BYTES:
        raise _refuse(f"'{name}' has shape {shape}")
    return shape


def _rebuild(
    data: bytes, read: Callable[[dict[str, np.ndarray], str], np.ndarray]
) -> dict[str, Array]:
    """Every tensor whose shape is listed, from the flat values that ``read`` finds for it."""
    parts = _expand(data)
    try:
        tensors = {}
        for name in _names(parts, "shape:"):
            shape = _shape(parts, name)
            flat = read(parts, name)[: math.prod(shape)]
            tensors[name] = flat.reshape(shape).astype(np.float32)
        return tensors
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise _refuse(error) from None


def _shape_entry(name: str, tensor: Array) -> dict[str, np.ndarray]:
    return {f"shape:{name}": np.array(tensor.shape, dtype=np.int64)}


@dataclass(frozen=True)
class Plain:
    """float32 as it is: exact."""

    name: str = "none"

    def pack(self, tensors: Tensors) -> bytes:
        return save_tensors({name: np.ascontiguousarray(value) for name, value in tensors.items()})

    def unpack(self, data: bytes) -> dict[str, Array]:
        return _load(data)


@dataclass(frozen=True)
class Half:
    """float16: at most 2^-11 of each value lost, or 2^-25 near zero. Beyond ±65504 it clips."""

    name: str = "fp16"

    def pack(self, tensors: Tensors) -> bytes:
        clipped = {n: np.clip(t, -_HALF_MAX, _HALF_MAX) for n, t in tensors.items()}
        return _squeeze({n: t.astype(np.float16) for n, t in clipped.items()})

    def unpack(self, data: bytes) -> dict[str, Array]:
        return {name: part.astype(np.float32) for name, part in _expand(data).items()}


@dataclass(frozen=True)
class Quantized:
    """Whole numbers of ``bits`` bits with one scale a group of values.

    A value is off by at most half a step; the step is the group's largest magnitude divided by
    2^(bits-1) - 1. Groups keep one large value from coarsening a whole layer.

    Attributes:
        bits: 8, or 4 with two values a byte.
        group: values that share a scale.
    """

    name: str
    bits: int
    group: int = 64

    @property
    def _top(self) -> int:
        return int(2 ** (self.bits - 1) - 1)

    def pack(self, tensors: Tensors) -> bytes:
        parts: dict[str, np.ndarray] = {}
        for name, tensor in tensors.items():
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
            parts |= {f"whole:{name}": whole, f"scale:{name}": scales.ravel()}
            parts |= _shape_entry(name, tensor)
        return _squeeze(parts)

    def unpack(self, data: bytes) -> dict[str, Array]:
        return _rebuild(data, self._values)

    def _values(self, parts: dict[str, np.ndarray], name: str) -> np.ndarray:
        whole, scales = parts[f"whole:{name}"], parts[f"scale:{name}"]
        if self.bits == 4:
            pairs = np.stack((whole & 15, whole >> 4), axis=1).astype(np.int8).ravel()
            whole = np.where(pairs > self._top, pairs - 16, pairs)
        return (whole.reshape(-1, self.group) * scales.astype(np.float32)[:, None]).ravel()


@dataclass(frozen=True)
class Uniform:
    """Whole numbers of one step for the whole tensor, as few bits each as their spread needs.

    For a factor of moments, whose rows run from loud to faint: every direction is off by the same
    absolute amount, so the faint ones, which are many, take few bits. That is how a given total
    error costs least (reverse water-filling: Cover and Thomas 2006, §10.3.3). zstd's entropy
    coder turns small spread into few bits.

    A value is off by at most half a step.

    Attributes:
        fineness: the step as a share of the faintest row's root mean square. It is never below
            2^-15 of the tensor's largest magnitude.
    """

    name: str = "uniform"
    fineness: float = 0.3

    def step(self, tensor: Array) -> float:
        """The step of this tensor; 0 where it holds only zeros."""
        rows = tensor.reshape(len(tensor), -1) if tensor.ndim > 1 else tensor.reshape(1, -1)
        loudness = np.sqrt(np.mean(np.square(rows, dtype=np.float64), axis=1))
        heard = loudness[loudness > 0]
        if not heard.size:
            return 0.0
        least = float(np.abs(tensor).max()) / _UNIFORM_TOP
        return float(np.float32(max(self.fineness * float(heard.min()), least)))

    def pack(self, tensors: Tensors) -> bytes:
        parts: dict[str, np.ndarray] = {}
        for name, tensor in tensors.items():
            step = self.step(tensor)
            scaled = tensor.ravel().astype(np.float64) / step if step else np.zeros(tensor.size)
            whole = np.clip(np.rint(scaled), -_UNIFORM_TOP, _UNIFORM_TOP).astype(np.int32)
            # 0, -1, 1, -2, 2, ... as 0, 1, 2, 3, 4: then the high bytes are nearly all zero.
            folded = ((whole << 1) ^ (whole >> 31)).astype(np.uint16)
            parts |= {
                f"low:{name}": (folded & 255).astype(np.uint8),
                f"high:{name}": (folded >> 8).astype(np.uint8),
                f"step:{name}": np.array([step], dtype=np.float32),
            }
            parts |= _shape_entry(name, tensor)
        return _squeeze(parts)

    def unpack(self, data: bytes) -> dict[str, Array]:
        return _rebuild(data, self._values)

    def _values(self, parts: dict[str, np.ndarray], name: str) -> np.ndarray:
        folded = parts[f"low:{name}"].astype(np.int32) | parts[f"high:{name}"].astype(np.int32) << 8
        whole = (folded >> 1) ^ -(folded & 1)
        return whole * np.float32(parts[f"step:{name}"][0])


@dataclass(frozen=True)
class TopK:
    """Only the largest values of each tensor, as float16; the others arrive as zero.

    A value is off by at most the smallest magnitude that was kept, or by float16's rounding.

    Attributes:
        share: of the values that travel, at least one a tensor.
    """

    name: str = "topk"
    share: float = 0.05

    def pack(self, tensors: Tensors) -> bytes:
        parts: dict[str, np.ndarray] = {}
        for name, tensor in tensors.items():
            flat = tensor.ravel()
            kept = min(flat.size, max(1, math.ceil(self.share * flat.size)))
            # A stable order decides ties, so that the same tensor gives the same bytes.
            places = np.sort(np.argsort(-np.abs(flat), kind="stable")[:kept])
            values = np.clip(flat[places], -_HALF_MAX, _HALF_MAX).astype(np.float16)
            # Gaps between places are small numbers, which zstd likes.
            gaps = np.diff(places, prepend=0).astype(np.uint32)
            parts |= {f"gaps:{name}": gaps, f"values:{name}": values}
            parts |= _shape_entry(name, tensor)
        return _squeeze(parts)

    def unpack(self, data: bytes) -> dict[str, Array]:
        return _rebuild(data, self._values)

    def _values(self, parts: dict[str, np.ndarray], name: str) -> np.ndarray:
        flat = np.zeros(math.prod(_shape(parts, name)), dtype=np.float32)
        places = np.cumsum(parts[f"gaps:{name}"].astype(np.int64))
        flat[places] = parts[f"values:{name}"].astype(np.float32)
        return flat


#: Every codec by name.
CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (Plain(), Half(), Quantized("int8", 8), Quantized("int4", 4), Uniform(), TopK())
}
