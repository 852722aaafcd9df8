from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as save_tensors

from gradsense.errors import GradsenseError, InputError
from gradsense.storage import checkpoint

VALUES: dict[str, Any] = {"now": 0.1 + 0.2, "names": ["a", "ü"], "nothing": None, "deep": {"x": 1}}


def groups() -> dict[str, dict[str, np.ndarray]]:
    shared = np.arange(6, dtype=np.float32).reshape(2, 3)
    model = {"w": shared, "b": np.float32([np.nan, -0.0])}
    return {
        "model": model,
        "client0/local": model,
        "client1/local": {"w": shared, "b": np.float32([1, 2])},
        "message": {"bytes": np.frombuffer(b"\0\xff", dtype=np.uint8)},
        "nobody": {},
    }


def test_values_and_arrays_come_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.zst"
    saved = groups()
    checkpoint.save(path, VALUES, saved)
    values, loaded = checkpoint.load(path)
    assert values == VALUES
    assert loaded.keys() == saved.keys()
    for group, arrays in saved.items():
        assert loaded[group].keys() == arrays.keys()
        for name, array in arrays.items():
            assert loaded[group][name].dtype == array.dtype
            assert loaded[group][name].shape == array.shape
            assert loaded[group][name].tobytes() == array.tobytes()
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.zst"]


def test_bytes_and_file_are_the_same(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", VALUES, groups())
    data = checkpoint.dumps(VALUES, groups())
    assert data == (tmp_path / "c").read_bytes()
    values, loaded = checkpoint.loads(data)
    assert values == VALUES
    assert loaded["model"] is loaded["client0/local"], "one mapping"
    assert loaded["message"]["bytes"].tolist() == [0, 255]


@pytest.mark.parametrize("data", [b"", b"no checkpoint", checkpoint.dumps({}, groups())[:-9]])
def test_damaged_bytes_are_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the words are those of three libraries
        checkpoint.loads(data)


def test_what_was_shared_is_shared_again(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", {}, groups())
    _, loaded = checkpoint.load(tmp_path / "c")
    assert loaded["model"] is loaded["client0/local"], "one mapping"
    assert loaded["client1/local"]["w"] is loaded["model"]["w"], "one array"
    assert loaded["client1/local"]["b"] is not loaded["model"]["b"]


def test_a_thousand_clients_with_one_model_take_the_room_of_one(tmp_path: Path) -> None:
    model = {"w": np.random.default_rng(0).normal(size=50_000).astype(np.float32)}
    checkpoint.save(tmp_path / "one", {}, {"c0": model})
    checkpoint.save(tmp_path / "many", {}, {f"c{i}": dict(model) for i in range(1000)})
    sizes = [(tmp_path / name).stat().st_size for name in ("one", "many")]
    assert sizes[1] < sizes[0] + 40_000


def test_arrays_that_are_views_are_written_as_they_look(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    checkpoint.save(tmp_path / "c", {}, {"g": {"w": array}})
    assert np.array_equal(checkpoint.load(tmp_path / "c")[1]["g"]["w"], array)


def test_broken_write_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    checkpoint.save(path, {"n": 1}, {})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gradsense.storage.files.os.fsync", full)
    with pytest.raises(InputError, match="No space left"):
        checkpoint.save(path, {"n": 2}, {})
    assert checkpoint.load(path)[0] == {"n": 1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "c"
    checkpoint.save(path, VALUES, groups())
    return path.read_bytes()


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damage_is_found(data: st.DataObject, whole: bytes, tmp_path_factory: Any) -> None:
    place = data.draw(st.integers(0, len(whole) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    hurt = bytearray(whole)
    hurt[place] ^= bit
    path = tmp_path_factory.getbasetemp() / "hurt"
    path.write_bytes(bytes(hurt))
    with contextlib.suppress(GradsenseError):
        values, loaded = checkpoint.load(path)
        # Only bits of the frame's header that mean nothing come through.
        assert values == VALUES
        assert loaded["model"]["w"].tobytes() == groups()["model"]["w"].tobytes()
    path.write_bytes(whole[:place])
    with pytest.raises(GradsenseError):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "meta",
    [
        None,
        [],
        {},
        {"values": {}, "layouts": [], "groups": {"a": 0}},
        {"values": {}, "layouts": [[]], "groups": {}},
        {"values": {}, "layouts": [{"w": "t9"}], "groups": {}},
    ],
)
def test_whole_file_of_another_shape_is_damaged(tmp_path: Path, meta: object) -> None:
    text = {"gradsense": json.dumps(meta)} if meta is not None else None
    data = save_tensors({"t0": np.zeros(1, np.float32)}, text)
    (tmp_path / "c").write_bytes(zstandard.ZstdCompressor().compress(data))
    with pytest.raises(GradsenseError, match="damaged"):
        checkpoint.load(tmp_path / "c")


def test_folder_in_its_place_is_damage(tmp_path: Path) -> None:
    with pytest.raises(GradsenseError, match="damaged"):
        checkpoint.load(tmp_path)
