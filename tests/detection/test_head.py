"""A bundle with another head: what is written, what the detector makes of it, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from gradsense.detection import bundle, session
from gradsense.detection import head as heads
from gradsense.detection.detector import Detector
from gradsense.detection.export import export
from gradsense.detection.head import Head, with_head
from gradsense.detection.session import open_bundle
from gradsense.errors import InputError
from gradsense.learning.statistics import HEAD_BIAS, HEAD_WEIGHT


def some_head(bundle_path: Path, *, features: int = 1520, seed: int = 0) -> Head:
    classes = len(bundle.read(bundle_path)[0].labels)
    rng = np.random.default_rng(seed)
    return Head(
        rng.normal(size=(classes, features)).astype(np.float32),
        rng.normal(size=classes).astype(np.float32),
    )


def some_picks(detector: Detector) -> np.ndarray:
    rng = np.random.default_rng(1)
    columns = [rng.integers(0, len(field.phrases), 32) for field in detector.template.fields]
    return np.stack(columns, axis=1).astype(np.uint16)


@pytest.fixture(scope="module")
def int8_bundle(model_dir: Path, captures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "edge"
    export(model_dir, path, int8=True, data=captures, force=True)
    return path


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_the_detector_answers_by_the_new_head(
    precision: str, edge_bundle: Path, int8_bundle: Path, tmp_path: Path
) -> None:
    source = edge_bundle if precision == "float32" else int8_bundle
    head = some_head(source)
    opened = open_bundle(source, threads=1)
    before = bundle.read(source)[0]
    fleet = {"fleet": {"version": 3}}
    written = with_head(source, tmp_path / "edge", head, {"provenance": fleet})
    detector = Detector.load(tmp_path / "edge", threads=1)
    phrase_ids = some_picks(detector)
    (features,) = opened.graph.run(["features"], opened.encoder.phrase_ids(phrase_ids))
    assert features.dtype == np.float32
    logits, novelty = detector.answers(phrase_ids)
    assert novelty is not None
    assert logits == pytest.approx(features @ head.weight.T + head.bias, rel=1e-3, abs=1e-3)
    assert detector.manifest == written
    assert (written.provenance, written.verified) == (fleet, None)
    assert written.id != before.id
    unchanged = {"labels", "alarm", "temperature", "novelty", "precision", "tokens", "reference"}
    assert all(getattr(written, name) == getattr(before, name) for name in unchanged)
    assert (tmp_path / "edge" / "model.onnx").samefile(source / "model.onnx"), "no copy"
    assert bundle.read(source)[0] == before


def test_a_bundle_may_get_one_head_after_the_other(edge_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "edge"
    with_head(edge_bundle, out, some_head(edge_bundle, seed=1), {})
    with_head(out, out, some_head(edge_bundle, seed=2), {})
    again = with_head(edge_bundle, tmp_path / "other", some_head(edge_bundle, seed=2), {})
    assert bundle.read(out)[0] == again
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_where_nothing_can_be_linked_it_is_copied(
    edge_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*paths: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refused)
    with_head(edge_bundle, tmp_path / "edge", some_head(edge_bundle), {})
    graph = tmp_path / "edge" / "model.onnx"
    assert not graph.samefile(edge_bundle / "model.onnx")
    assert graph.read_bytes() == (edge_bundle / "model.onnx").read_bytes()


def altered(path: Path) -> None:
    data = bytearray((path / "head.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "head.safetensors").write_bytes(data)


def replaced(tensors: dict[str, np.ndarray]) -> Callable[[Path], None]:
    """With a manifest that vouches for it."""

    def replace(path: Path) -> None:
        (path / "head.safetensors").write_bytes(safetensors.numpy.save(tensors))
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"]["head.safetensors"] = bundle.describe(
            path / "head.safetensors"
        ).model_dump()
        (path / "manifest.json").write_text(json.dumps(manifest))

    return replace


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (altered, "not the one that was exported"),
        (lambda path: (path / "head.safetensors").unlink(), "cannot be read"),
        (replaced({HEAD_WEIGHT: zeros(6, 1520)}), "it holds"),
        (replaced({HEAD_WEIGHT: zeros(5, 1520), HEAD_BIAS: zeros(5)}), "it has shapes"),
        (replaced({HEAD_WEIGHT: zeros(6, 1519), HEAD_BIAS: zeros(6)}), "."),
        (replaced({HEAD_WEIGHT: zeros(6, 1520), HEAD_BIAS: zeros(6) * np.nan}), "finite"),
        (replaced({HEAD_WEIGHT: zeros(6, 1520).astype(np.float64), HEAD_BIAS: zeros(6)}), "finite"),
    ],
    ids=["altered", "missing", "half", "classes", "features", "nan", "float64"],
)
def test_a_head_that_does_not_fit_is_not_used(
    damage: Callable[[Path], None], said: str, edge_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "edge"
    with_head(edge_bundle, out, some_head(edge_bundle), {})
    damage(out)
    with pytest.raises(InputError, match=said):
        Detector.load(out)


def test_a_large_head_is_not_read(
    edge_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_head(edge_bundle, tmp_path / "edge", some_head(edge_bundle), {})
    monkeypatch.setattr(heads, "_MAX_BYTES", 1000)
    with pytest.raises(InputError, match="larger than"):
        Detector.load(tmp_path / "edge")


def test_a_graph_that_would_pass_over_the_head_is_noticed(
    edge_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_WEIGHT", "score.weight")
    with pytest.raises(InputError, match="does not take the head"):
        open_bundle(edge_bundle, threads=1, head=some_head(edge_bundle))


def test_a_file_that_the_manifest_does_not_name_is_not_a_head(
    edge_bundle: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(edge_bundle, tmp_path / "copy")
    (copy / "head.safetensors").write_bytes(some_head(edge_bundle).packed())
    plain, other = Detector.load(edge_bundle, threads=1), Detector.load(copy, threads=1)
    phrase_ids = some_picks(plain)
    assert (plain.answers(phrase_ids)[0] == other.answers(phrase_ids)[0]).all()
