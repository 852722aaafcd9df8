"""Codecs: error bounds, and nothing but errors in words from foreign bytes."""

from __future__ import annotations

import contextlib
import gc
import json
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.numpy import load, save

from gradsense.errors import InputError, UnknownTensor, UpdateRefused, WrongShape
from gradsense.federation.transforms import codecs
from gradsense.federation.transforms.quantized import Quantized
from gradsense.federation.transforms.topk import TopK
from gradsense.federation.transforms.transform import compress, decode_budget
from gradsense.federation.transforms.uniform import Uniform
from gradsense.federation.update import ShapeBound, ShapeBounds, exactly

TWENTY = {"w": ShapeBound((20,))}
FLOATS = st.floats(-1e4, 1e4, width=32)
ARRAYS = arrays(np.float32, array_shapes(max_dims=2, max_side=40), elements=FLOATS)


def there_and_back(name: str, value: np.ndarray) -> np.ndarray:
    codec = codecs()[name]
    got = codec.unpack(codec.pack({"w": value}), exactly({"w": value}))["w"]
    assert (got.shape, got.dtype) == (value.shape, np.float32)
    return got


@settings(max_examples=80, deadline=None)
@given(ARRAYS)
def test_none_is_exact(value: np.ndarray) -> None:
    assert there_and_back("none", value).tobytes() == value.tobytes()


@settings(max_examples=80, deadline=None)
@given(ARRAYS)
def test_half_loses_one_part_in_2048(value: np.ndarray) -> None:
    error = np.abs(there_and_back("fp16", value) - value)
    assert (error <= np.maximum(np.abs(value) * 2.0**-11, 2.0**-25)).all()


@settings(max_examples=80, deadline=None)
@given(ARRAYS, st.sampled_from(["int8", "int4"]))
def test_quantized_is_off_by_half_a_step_of_its_group(value: np.ndarray, name: str) -> None:
    codec = codecs()[name]
    assert isinstance(codec, Quantized)
    flat, error = value.ravel(), np.abs(there_and_back(name, value) - value).ravel()
    for start in range(0, flat.size, codec.group):
        part = slice(start, start + codec.group)
        step = np.abs(flat[part]).max() / (2 ** (codec.bits - 1) - 1)
        assert (error[part] <= step / 2 * (1 + 1e-5) + 1e-37).all()


@settings(max_examples=80, deadline=None)
@given(ARRAYS)
def test_uniform_is_off_by_half_its_one_step(value: np.ndarray) -> None:
    codec = codecs()["uniform"]
    assert isinstance(codec, Uniform)
    error = np.abs(there_and_back("uniform", value) - value)
    assert (error <= codec.step(value) / 2 * (1 + 1e-4) + 1e-37).all()


def test_uniform_step_by_hand() -> None:
    # Root mean squares 5 and 1; the silent row does not count.
    value = np.array([[3, 4, 0, 0, 7, 8, 6, -1], [1, -1, 1, 1, 1, -1, 1, 1], [0] * 8], np.float32)
    assert Uniform(fineness=0.5).step(value) == pytest.approx(0.5)
    assert Uniform().step(np.zeros((2, 2), np.float32)) == 0
    # Faint beside loud: the step stays above what two bytes can count.
    assert Uniform().step(np.array([[32_000.0], [1e-6]], np.float32)) == pytest.approx(1.0)


def test_uniform_packs_a_factor_smaller_than_int8() -> None:
    rng = np.random.default_rng(0)
    loudness = 200 / np.arange(1, 101)[:, None]
    factor = {"w": (loudness * rng.normal(size=(100, 300))).astype(np.float32)}
    assert len(codecs()["uniform"].pack(factor)) < 0.85 * len(codecs()["int8"].pack(factor))


@settings(max_examples=80, deadline=None)
@given(ARRAYS)
def test_topk_keeps_the_largest(value: np.ndarray) -> None:
    codec = codecs()["topk"]
    assert isinstance(codec, TopK)
    got, flat = there_and_back("topk", value).ravel(), value.ravel()
    kept = max(1, int(np.ceil(codec.kept * flat.size)))
    least = np.sort(np.abs(flat))[-kept]
    error = np.abs(got - flat)
    assert (error <= np.maximum(least, np.maximum(np.abs(flat) * 2.0**-11, 2.0**-25))).all()
    assert np.count_nonzero(got) <= kept


def test_by_hand() -> None:
    value = np.array([7.0, -3.4, 0.6, 0.0], dtype=np.float32)
    assert there_and_back("int4", value).tolist() == [7.0, -3.0, 1.0, 0.0]  # a step is 7 / 7
    ten = np.arange(1, 41, dtype=np.float32)
    assert np.flatnonzero(there_and_back("topk", ten)).tolist() == [38, 39]  # 5 % of 40


@pytest.mark.parametrize("name", codecs())
def test_zeros_stay_zeros(name: str) -> None:
    assert not there_and_back(name, np.zeros((3, 5), np.float32)).any()


def test_smaller_codecs_are_smaller() -> None:
    value = {"w": np.random.default_rng(0).normal(size=(200, 300)).astype(np.float32)}
    sizes = {name: len(codec.pack(value)) for name, codec in codecs().items()}
    whole = sizes["none"]
    assert sizes["fp16"] < 0.52 * whole
    assert sizes["int8"] < 0.29 * whole
    assert sizes["int4"] < 0.16 * whole
    assert sizes["topk"] < 0.06 * whole


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(codecs())), st.binary(max_size=100), st.booleans())
def test_noise_is_refused_in_words(name: str, noise: bytes, framed: bool) -> None:
    data = zstandard.ZstdCompressor().compress(noise) if framed else noise
    with pytest.raises(InputError, match="have the client send"):
        codecs()[name].unpack(data, TWENTY)


# Hostile bytes ----------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(codecs())), st.data())
def test_damage_never_crashes(name: str, data: st.DataObject) -> None:
    raw = bytearray(opened(name, {"w": np.arange(20, dtype=np.float32)}))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(InputError, UpdateRefused):  # anything else would fail the test
        codecs()[name].unpack(framed(name, bytes(raw)), TWENTY)


def opened(name: str, tensors: dict[str, np.ndarray]) -> bytes:
    """What a codec makes of tensors, as safetensors."""
    packed = codecs()[name].pack(tensors)
    return zstandard.ZstdDecompressor().decompress(packed) if codecs()[name].compressed else packed


def framed(name: str, raw: bytes) -> bytes:
    return compress(raw) if codecs()[name].compressed else raw


def safetensors(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def peak_of(
    name: str, packed: bytes, bounds: ShapeBounds
) -> tuple[int, dict[str, np.ndarray] | None]:
    """The most that unpacking takes, in bytes, and what it gives; None: it was refused."""
    gc.collect()
    tracemalloc.start()
    try:
        got = codecs()[name].unpack(packed, bounds)
    except (InputError, UpdateRefused):
        got = None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak, got


@pytest.mark.parametrize("name", codecs())
@pytest.mark.parametrize("size", [1, 63, 1 << 12, 1 << 20])
def test_an_honest_update_is_unpacked_within_the_budget(name: str, size: int) -> None:
    rng = np.random.default_rng(0)
    value = {f"layer.{i}": rng.standard_normal((size, 1)).astype(np.float32) for i in range(3)}
    bounds = exactly(value)
    packed = codecs()[name].pack(value)
    peak, got = peak_of(name, packed, bounds)
    assert got is not None
    assert peak <= decode_budget(bounds)


def test_topk_of_everything_is_within_the_budget_too() -> None:
    codec = TopK(kept=1.0)
    value = {"w": np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)}
    packed = codec.pack(value)
    tracemalloc.start()
    codec.unpack(packed, exactly(value))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= decode_budget(exactly(value))


def test_a_few_bytes_of_topk_that_asked_for_gigabytes() -> None:
    """One value at the end of a tensor as large as the limit was: 281 bytes, once 4.28 GiB."""
    parts = {
        "shape:w": np.array([1 << 26], np.int64),
        "gaps:w": np.array([(1 << 26) - 1], np.uint32),
        "values:w": np.ones(1, np.float16),
    }
    packed = compress(save(parts))
    assert len(packed) < 300
    bounds = {"w": ShapeBound((1 << 10,))}
    peak, got = peak_of("topk", packed, bounds)
    assert got is None
    assert peak <= decode_budget(bounds)


#: What an attacker may put in the place of a field: other types, and numbers of any size.
NUMBERS = st.sampled_from([-1, 0, 1, 2, 7, 19, 20, 21, 64, 1 << 20, 1 << 31, 1 << 40, 1 << 63])
JUNK = st.one_of(
    NUMBERS,
    st.booleans(),
    st.none(),
    st.floats(),
    st.text(max_size=5),
    st.lists(NUMBERS, max_size=3),
    st.sampled_from(["F32", "F16", "I64", "U32", "I8", "U8", "F64", "BF16", "BOOL"]),
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(codecs())), st.data())
def test_any_edit_of_a_header_is_refused_or_harmless(name: str, data: st.DataObject) -> None:
    """Other types, shapes, places and names, parts missing, moved or doubled; within the budget."""
    draw = data.draw
    tensors = {"w": np.arange(20, dtype=np.float32), "v": np.ones((2, 3), np.float32)}
    bounds = {"w": ShapeBound((20,)), "v": ShapeBound((4, 3), fewer_rows=True)}
    raw = opened(name, tensors)
    (length,) = struct.unpack_from("<Q", raw)
    header, body = json.loads(raw[8 : 8 + length]), bytearray(raw[8 + length :])
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(sorted(header)))
        edit = draw(st.sampled_from(["field", "drop", "rename", "swap", "copy", "body", "whole"]))
        if edit == "drop" and len(header) > 1:
            del header[key]
        elif edit == "rename":
            header[draw(st.text(max_size=8) | st.just("shape:x"))] = header.pop(key)
        elif edit == "swap":
            other = draw(st.sampled_from(sorted(header)))
            header[key], header[other] = header[other], header[key]
        elif edit == "copy":
            header[key] = header[draw(st.sampled_from(sorted(header)))]
        elif edit == "body":
            body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
        elif edit == "whole":
            header[key] = draw(JUNK)
        elif isinstance(header[key], dict) and header[key]:
            field = draw(st.sampled_from(sorted(header[key])))
            header[key] = header[key] | {field: draw(JUNK)}
    text = json.dumps(header).encode()
    packed = framed(name, struct.pack("<Q", len(text)) + text + bytes(body))
    peak, got = peak_of(name, packed, bounds)
    assert peak <= decode_budget(bounds)
    for key, value in (got or {}).items():
        bounds[key].check(key, value.shape)
        assert value.dtype == np.float32


@pytest.mark.parametrize("name", codecs())
def test_headers_made_to_be_expensive(name: str) -> None:
    bounds = exactly({f"layer.{i}.weight": np.zeros((64, 64), np.float32) for i in range(20)})
    most = codecs()[name].most_bytes(bounds)
    for text in (
        b"[" * 4000,
        b"[" + b"{}," * 1300 + b"{}]",
        b'{"w":' + b"[" * 1000 + b"]" * 1000 + b"}",
        b'{"w":{"dtype":"F32","shape":[' + b"9" * 4000 + b'],"data_offsets":[0,4]}}',
        b'{"w":{"dtype":"F32","shape":[' + b"0," * 1900 + b'0],"data_offsets":[0,0]}}',
        b'{"w":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"w":{}}',
        b'{"w":1}' + b" " * most,
        b"\xff" * 100,
        b"{}",
        b"{" + b",".join(b'"%d":0' % number for number in range(most // 8)) + b"}",
    ):
        for body in (b"", bytes(most)):
            peak, got = peak_of(name, framed(name, safetensors(text, body)), bounds)
            assert not got
            assert peak <= decode_budget(bounds)


@pytest.mark.parametrize("name", codecs())
def test_bombs_are_refused_unopened(name: str) -> None:
    bomb = bytes(8 << 20)
    streamed = zstandard.ZstdCompressor(write_content_size=False).compress(bomb)
    liar = bytearray(compress(bomb))
    liar[5:9] = (64).to_bytes(4, "little")  # RFC 8878 3.1.1.1: the declared content size
    for packed in (compress(bomb), streamed, bytes(liar), bomb):
        peak, got = peak_of(name, packed, TWENTY)
        assert got is None
        assert peak <= decode_budget(TWENTY)


@pytest.mark.parametrize("name", codecs())
def test_other_tensors_than_the_bounds_have_are_refused_by_name(name: str) -> None:
    codec, two = codecs()[name], {"w": np.ones((2, 4), np.float32)}
    packed = codec.pack(two)
    with pytest.raises(UnknownTensor):
        codec.unpack(packed, {"v": ShapeBound((2, 4))})
    for bound in (
        ShapeBound((3, 4)),
        ShapeBound((2, 5)),
        ShapeBound((8,)),
        ShapeBound((1, 4), fewer_rows=True),
        ShapeBound((3, 5), fewer_rows=True),
        ShapeBound((2, 4, 1), fewer_rows=True),
    ):
        with pytest.raises((WrongShape, InputError)):
            codec.unpack(packed, {"w": bound})
    fewer = codec.unpack(packed, {"w": ShapeBound((3, 4), fewer_rows=True), "v": ShapeBound((9,))})
    assert fewer["w"].shape == (2, 4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "part"), [("int8", "scale"), ("int4", "scale"), ("uniform", "step")]
)
@pytest.mark.parametrize("wild", [np.nan, np.inf, -np.inf])
def test_a_wild_scale_is_passed_on_for_the_coordinator_to_refuse(
    name: str, part: str, wild: float
) -> None:
    raw = load(opened(name, {"w": np.arange(20, dtype=np.float32)}))
    raw[f"{part}:w"][:] = wild
    got = codecs()[name].unpack(framed(name, save(raw)), TWENTY)["w"]
    assert not np.isfinite(got[1:]).any()


@pytest.mark.parametrize("name", codecs())
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1), (2, 0), (0,)])
def test_tensors_of_few_values_or_none(name: str, shape: tuple[int, ...]) -> None:
    value = np.ones(shape, np.float32)
    np.testing.assert_allclose(there_and_back(name, value), value, atol=0.15)


@pytest.mark.parametrize(
    "gaps", [[3, 0], [19, 1], [1 << 31, 1 << 31], [20, 1], [(1 << 32) - 1, 1]], ids=str
)
def test_topk_takes_only_places_that_increase_within_the_tensor(gaps: list[int]) -> None:
    codec = TopK(kept=0.1)
    parts = {
        "shape:w": np.array([20], np.int64),
        "gaps:w": np.array(gaps, np.uint32),
        "values:w": np.ones(2, np.float16),
    }
    with pytest.raises(InputError, match="do not increase"):
        codec.unpack(compress(save(parts)), TWENTY)
    parts["gaps:w"] = np.array([0, 19], np.uint32)
    assert np.flatnonzero(codec.unpack(compress(save(parts)), TWENTY)["w"]).tolist() == [0, 19]


@settings(max_examples=200, deadline=None)
@given(ARRAYS, st.sampled_from(sorted(codecs())))
def test_what_arrives_shows_how_far_off_it_is(value: np.ndarray, name: str) -> None:
    got = there_and_back(name, value)
    assert np.abs(got - value).max() <= codecs()[name].off(got) + 1e-37
