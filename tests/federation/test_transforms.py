"""Codecs: error bounds, and nothing but errors in words from foreign bytes."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.numpy import save

from gradsense.errors import InputError
from gradsense.federation.transforms import codecs
from gradsense.federation.transforms.quantized import Quantized
from gradsense.federation.transforms.topk import TopK
from gradsense.federation.transforms.uniform import Uniform

FLOATS = st.floats(-1e4, 1e4, width=32)
ARRAYS = arrays(np.float32, array_shapes(max_dims=2, max_side=40), elements=FLOATS)


def there_and_back(name: str, value: np.ndarray) -> np.ndarray:
    codec = codecs()[name]
    got = codec.unpack(codec.pack({"w": value}))["w"]
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
        codecs()[name].unpack(data)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(codecs())), st.data())
def test_damage_never_crashes(name: str, data: st.DataObject) -> None:
    good = codecs()[name].pack({"w": np.arange(20, dtype=np.float32)})
    raw = bytearray(good if name == "none" else zstandard.ZstdDecompressor().decompress(good))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    packed = bytes(raw) if name == "none" else zstandard.ZstdCompressor().compress(bytes(raw))
    with contextlib.suppress(InputError):  # anything else would fail the test
        codecs()[name].unpack(packed)


@pytest.mark.parametrize("name", ["int8", "int4", "topk"])
@pytest.mark.parametrize("shape", [[1 << 40], [-1], [1 << 20, 1 << 20]])
def test_shapes_that_ask_for_the_world_are_refused(name: str, shape: list[int]) -> None:
    parts = {
        "shape:w": np.array(shape, np.int64),
        "whole:w": np.zeros(64, np.int8),
        "scale:w": np.zeros(1, np.float32),
        "gaps:w": np.zeros(1, np.uint32),
        "values:w": np.zeros(1, np.float16),
    }
    with pytest.raises(InputError):
        codecs()[name].unpack(zstandard.ZstdCompressor().compress(save(parts)))


def test_a_bomb_is_refused_unopened() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 20))
    huge = bytearray(bomb)
    frame = zstandard.get_frame_parameters(bytes(huge))
    assert frame.content_size == 1 << 20
    streamed = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 20))
    with pytest.raises(InputError, match="would unpack to"):
        codecs()["int8"].unpack(streamed)


@settings(max_examples=200, deadline=None)
@given(ARRAYS, st.sampled_from(sorted(codecs())))
def test_what_arrives_says_how_far_off_it_is(value: np.ndarray, name: str) -> None:
    got = there_and_back(name, value)
    assert np.abs(got - value).max() <= codecs()[name].off(got) + 1e-37
