"""The interface of transforms, and what codecs share.

An update passes through a chain on its way out: first its algorithm's transforms, in order, then
one codec, which makes bytes of it. The client moves its reference point by what the coordinator
will decode, so what a clip or a lossy codec takes away stays in the client's unsent movement and
travels later (error feedback; Karimireddy et al. 2019, arXiv 1901.09847). An algorithm without
``keep_local`` overwrites that remainder with the next broadcast.

All codecs but ``none``, which stands here, are wrapped in zstd. Whoever unpacks says which tensors
there may be, of which shapes. From these follow the bytes that a codec can need, and the type and
shape of everything in them; both are checked before a value is touched.
"""

from __future__ import annotations

import json
import math
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import zstandard
from safetensors.numpy import save as save_tensors

from gradsense.errors import InputError, UnknownTensor, WrongDtype, WrongShape
from gradsense.federation.parts import part
from gradsense.federation.update import ShapeBounds
from gradsense.learning.learner import Array, Tensors

#: Unpacking uses at most this many times the bytes of its result as float32, counted at the largest
#: shapes allowed, and so many bytes beside, once and for each tensor.
DECODE_FACTOR, DECODE_SLACK = 6, 64 << 10
_ZSTD_LEVEL = 3
#: safetensors' names of the types that codecs use.
_TYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "U32": "<u4", "I8": "|i1", "U8": "|u1"}
#: One array's line in a safetensors header without its name and numbers; and a number's digits.
_ENTRY_BYTES, _DIGITS = 64, 20

Parts = dict[str, np.ndarray]
#: A part's name to its type, in numpy's words, and its shape.
Layout = dict[str, tuple[str, tuple[int, ...]]]


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
    """The chain's last link. Deterministic: the same tensors give the same bytes.

    A codec makes one array of each tensor, of the same shape, or it is a ``TensorCodec``. The
    arrays travel as safetensors.
    """

    name: ClassVar[str]
    compressed: ClassVar[bool] = True  # by the codec itself, in one zstd frame

    @abstractmethod
    def parts(self, tensor: Array) -> Parts:
        """The arrays that travel instead of a tensor, by names of the codec's own."""

    @abstractmethod
    def layout(self, shape: tuple[int, ...]) -> Layout:
        """What ``parts`` gives for a tensor of this shape; a larger one never needs less."""

    @abstractmethod
    def values(self, parts: Parts, size: int) -> np.ndarray:
        """The tensor's values, flat; what is behind ``size`` of them is cut off.

        Args:
            parts: as ``layout`` has them, and views of the message, so nothing of them may be
                returned; their values may be any.

        Raises:
            InputError: no tensor gives these values.
        """

    @abstractmethod
    def off(self, tensor: Array) -> float:
        """So far at most is any value of this unpacked tensor from the packed one's."""

    def pack(self, tensors: Tensors) -> bytes:
        """The tensors as bytes."""
        found: Parts = {}
        for name, tensor in tensors.items():
            own = self._stored(tensor)
            found |= {
                self._key(kind, name): np.asarray(one, order="C") for kind, one in own.items()
            }
        raw = save_tensors(found)
        return compress(raw) if self.compressed else raw

    def unpack(self, data: bytes, bounds: ShapeBounds) -> dict[str, Array]:
        """The tensors again, float32, up to the codec's error bound.

        Memory is bounded by ``decode_budget``. NaN and infinity are passed on.

        Args:
            bounds: the tensors that there may be; any of them may be missing.

        Raises:
            OverLimit: more bytes than these tensors can need.
            UnknownTensor, WrongShape, WrongDtype: other tensors than these, or of other types.
            InputError: the bytes are not this codec's.
        """
        most = self.most_bytes(bounds)
        if not self.compressed and len(data) > most:
            raise OverLimit(len(data), most)
        raw = decompress(data, most) if self.compressed else data
        entries = _entries(raw, self._most_header(bounds))
        found: dict[str, tuple[tuple[int, ...], Parts]] = {}
        for name, bound in bounds.items():
            own = {
                kind: entries.pop(key)
                for kind in self._storage(bound.shape)
                if (key := self._key(kind, name)) in entries
            }
            if own:
                found[name] = self._checked(name, own, raw, bounds)
        if entries:
            raise UnknownTensor(f"'{next(iter(entries))[:80]}' is none of the tensors expected")
        tensors = {}
        with np.errstate(all="ignore"):
            for name, (shape, parts) in found.items():
                size = math.prod(shape)
                flat = self.values(parts, size)[:size]
                tensors[name] = flat.astype(np.float32, copy=False).reshape(shape)
        return tensors

    def most_bytes(self, bounds: ShapeBounds) -> int:
        """The bytes of safetensors that these tensors can need, before any compression."""
        layouts = [self._storage(bound.shape) for bound in bounds.values()]
        sizes = [_bytes_of(entry) for layout in layouts for entry in layout.values()]
        return 8 + self._most_header(bounds) + sum(sizes)

    def _most_header(self, bounds: ShapeBounds) -> int:
        found = 2 + 8  # the braces, and what rounds it up to a multiple of 8
        for name, bound in bounds.items():
            for kind, (_, shape) in self._storage(bound.shape).items():
                key = json.dumps(self._key(kind, name))
                found += len(key) + _ENTRY_BYTES + _DIGITS * (len(shape) + 2)
        return found

    def _checked(
        self, name: str, own: dict[str, _Entry], raw: bytes, bounds: ShapeBounds
    ) -> tuple[tuple[int, ...], Parts]:
        """A tensor's shape, and its parts without any that only say so."""
        shape = self._shape(name, own, raw, len(bounds[name].shape))
        bounds[name].check(name, shape)
        layout = self._storage(shape)
        for kind, (dtype, extents) in layout.items():
            if kind not in own:
                raise refuse(f"'{name}' lacks its part '{kind}'")
            if own[kind].dtype != dtype:
                raise WrongDtype(f"'{name}' travels in another type than codec '{self.name}' has")
            if own[kind].shape != extents:
                raise refuse(f"part '{kind}' of '{name}' is {own[kind].shape}, not {extents}")
        return shape, {kind: own[kind].array(raw) for kind in self.layout(shape)}

    # What a ``TensorCodec`` does otherwise.

    def _key(self, kind: str, name: str) -> str:
        return name

    def _stored(self, tensor: Array) -> Parts:
        return self.parts(tensor)

    def _storage(self, shape: tuple[int, ...]) -> Layout:
        return self.layout(shape)

    def _shape(
        self, name: str, own: dict[str, _Entry], raw: bytes, dimensions: int
    ) -> tuple[int, ...]:
        (entry,) = own.values()
        return entry.shape


def decode_budget(bounds: ShapeBounds) -> int:
    """The bytes that ``Codec.unpack`` may use at once, its result included."""
    floats = sum(4 * math.prod(bound.shape) for bound in bounds.values())
    return DECODE_FACTOR * floats + DECODE_SLACK * (1 + len(bounds))


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


@dataclass(frozen=True)
class _Entry:
    """An array's line in a safetensors header; ``begin`` counts from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int

    def array(self, raw: bytes) -> np.ndarray:
        """The array, where it lies."""
        count = math.prod(self.shape)
        return np.frombuffer(raw, self.dtype, count, self.begin if count else 0).reshape(self.shape)


def _bytes_of(entry: tuple[str, tuple[int, ...]]) -> int:
    return np.dtype(entry[0]).itemsize * math.prod(entry[1])


def _entries(raw: bytes, most_header: int) -> dict[str, _Entry]:
    """What a safetensors file says that it holds; every byte behind the header is of one array.

    Raises:
        WrongDtype: a type that no codec has.
        InputError: it is none, or its header is longer than that.
    """
    try:
        (length,) = struct.unpack_from("<Q", raw)
        if length > min(most_header, len(raw) - 8):
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(raw[8 : 8 + length], object_pairs_hook=_no_name_twice)
        places, entries = [], {}
        for name, fields in header.items():
            begin, end = fields["data_offsets"]
            shape = tuple(fields["shape"])
            if any(type(one) is not int or one < 0 for one in (*shape, begin, end)):
                raise ValueError(f"'{name[:80]}' has no shape or place")
            if (dtype := _TYPES.get(fields["dtype"])) is None:
                raise WrongDtype(f"'{name[:80]}' is of a type that no codec has")
            if end - begin != _bytes_of((dtype, shape)):
                raise ValueError(f"'{name[:80]}' has {end - begin} bytes for {shape}")
            places.append((begin, end))
            entries[name] = _Entry(dtype, shape, 8 + length + begin)
    except (struct.error, ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise refuse(f"no safetensors: {error}") from None
    at = 8 + length
    for begin, end in sorted(places):
        if 8 + length + begin != at:
            raise refuse("its arrays overlap, or leave gaps")
        at = 8 + length + end
    if at != len(raw):
        raise refuse(f"{len(raw)} bytes, where the header says {at}")
    return entries


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def compress(raw: bytes) -> bytes:
    """One zstd frame (RFC 8878) that declares its content's size."""
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(raw)


def compressed_most(size: int) -> int:
    """The bytes that ``compress`` can give for so many (``ZSTD_COMPRESSBOUND`` in zstd.h)."""
    return size + (size >> 8) + max(0, (128 << 10) - size >> 11)


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
    compressed: ClassVar[bool] = False

    def parts(self, tensor: Array) -> Parts:
        return {"": tensor}

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return {"": ("<f4", shape)}

    def values(self, parts: Parts, size: int) -> np.ndarray:
        return parts[""].ravel().copy()

    def off(self, tensor: Array) -> float:
        return 0.0


@part
class TensorCodec(Codec):
    """A codec that makes some arrays of each tensor, whose shape travels with them."""

    def _key(self, kind: str, name: str) -> str:
        return f"{kind}:{name}"

    def _stored(self, tensor: Array) -> Parts:
        return self.parts(tensor) | {"shape": np.array(tensor.shape, dtype=np.int64)}

    def _storage(self, shape: tuple[int, ...]) -> Layout:
        return self.layout(shape) | {"shape": ("<i8", (len(shape),))}

    def _shape(
        self, name: str, own: dict[str, _Entry], raw: bytes, dimensions: int
    ) -> tuple[int, ...]:
        entry = own.get("shape")
        if entry is None or entry.dtype != "<i8" or entry.shape != (dimensions,):
            raise WrongShape(f"'{name}' does not say that it has {dimensions} dimensions")
        return tuple(int(extent) for extent in entry.array(raw))
