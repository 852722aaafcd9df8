"""Classifiers of every kind as ONNX graphs: the same answers without torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from gradsense.errors import GradsenseError
from gradsense.models.build import build
from gradsense.models.card import Kind
from gradsense.models.classifier import TextClassifier
from gradsense.models.graph import reads_words, write_graph
from gradsense.models.heads.influence import SketchedInfluence
from gradsense.prompts.templates import get_template

FAMILIES = ("opt", "bert", "gpt2", "gpt_neox", "roberta", "deberta-v2", "t5")
LABELS = ("Benign", "DDoS", "Scan")
#: Batches of other sizes than the exported one: one prompt, prompts of many lengths, the longest.
BATCHES = (
    ["w0"],
    [" ".join(f"w{n % 20}" for n in range(1 + n % 9)) for n in range(33)],
    ["w1 " * 32],
)


def with_a_head(classifier: TextClassifier) -> TextClassifier:
    """Some answer: an untrained head of our own says zero to everything."""
    model: Any = classifier.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        nn.init.normal_(model.score.weight)
    return classifier


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def names(values: list[Any]) -> list[str]:
    return [value.name for value in values]


def agrees(classifier: TextClassifier, path: Path, texts: list[str]) -> None:
    encoded = classifier.encode(texts)
    mask = encoded.attention_mask
    with torch.inference_mode():
        expected = classifier.forward(encoded).numpy()
    inputs = {
        "input_ids": encoded.input_ids.numpy(),
        "attention_mask": (torch.ones_like(encoded.input_ids) if mask is None else mask).numpy(),
    }
    (found,) = session(path).run(["logits"], inputs)
    assert found.dtype == np.float32
    # What torch answers differs from prompt to prompt by far more than this.
    assert found == pytest.approx(expected, abs=1e-5 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_exports(
    family: str, hf_folder: Callable[[str], Path], template: Any, tmp_path: Path
) -> None:
    classifier = build(
        str(hf_folder(family)), template=template, labels=LABELS, seed=0, lora_rank=0
    )
    for parameter in classifier.trainable().values():
        parameter.data.mul_(3)  # freshly drawn ones hardly tell prompts apart
    write_graph(classifier, tmp_path / "model.onnx")
    assert names(session(tmp_path / "model.onnx").get_inputs()) == ["input_ids", "attention_mask"]
    for texts in BATCHES:
        agrees(classifier, tmp_path / "model.onnx", texts)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "readout"), [("opt", "pooled"), ("bert", "last")])
def test_a_head_of_our_own_exports(
    family: str, readout: Kind, hf_folder: Callable[[str], Path], template: Any, tmp_path: Path
) -> None:
    classifier = with_a_head(
        build(
            str(hf_folder(family)),
            template=template,
            labels=LABELS,
            seed=0,
            readout=readout,
            frozen=True,
        )
    )
    path = tmp_path / "model.onnx"
    write_graph(classifier, path)
    for texts in BATCHES:
        agrees(classifier, path, texts)
    model: Any = classifier.model
    encoded = classifier.encode(BATCHES[1])
    with torch.inference_mode():
        expected = classifier.features(encoded, torch.arange(33)).numpy()
    inputs = {
        "input_ids": encoded.input_ids.numpy(),
        "attention_mask": encoded.attention_mask.numpy(),
    }
    (features,) = session(path).run(["features"], inputs)
    assert features.shape == (33, model.features_per_prompt)
    assert features == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_another_head_may_take_the_place_of_the_graphs_own(tmp_path: Path) -> None:
    classifier = build(
        "nano", template=get_template("context"), labels=LABELS, seed=0, readout="tokens"
    )
    path = tmp_path / "model.onnx"
    write_graph(classifier, path)
    heads = {v.name: tuple(v.dims) for v in onnx.load(path).graph.initializer if "score" in v.name}
    assert heads == {"model.score.weight": (3, 1520), "model.score.bias": (3,)}
    weight = np.random.default_rng(0).normal(size=(3, 1520)).astype(np.float32)
    lent = [ort.OrtValue.ortvalue_from_numpy(array) for array in (weight, np.ones(3, np.float32))]
    options = ort.SessionOptions()
    for name, value in zip(heads, lent, strict=True):
        options.add_initializer(name, value)
    ids = np.random.default_rng(0).integers(4, 900, size=(5, 19))
    graph = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    logits, features = graph.run(["logits", "features"], {"input_ids": ids})
    assert np.ptp(logits) > 1, "its own head says zero to everything"
    assert logits == pytest.approx(features @ weight.T + 1, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("readout", ["last", "pooled"])
def test_an_embedded_model_takes_ids_alone(readout: Kind, tmp_path: Path) -> None:
    classifier = build(
        "nano", template=get_template("context"), labels=LABELS, seed=0, readout=readout
    )
    if readout != "last":
        with_a_head(classifier)
    assert reads_words(classifier)
    path = tmp_path / "model.onnx"
    write_graph(classifier, path)
    graph = session(path)
    assert names(graph.get_inputs()) == ["input_ids"]
    assert graph.get_inputs()[0].shape[1] == 19
    ids = np.random.default_rng(0).integers(4, 900, size=(5, 19))
    for some in (ids, ids[:1]):
        with torch.inference_mode():
            expected = classifier.model(input_ids=torch.from_numpy(some)).logits.numpy()
        (found,) = graph.run(["logits"], {"input_ids": some})
        assert found == pytest.approx(expected, abs=1e-4)


def test_prompts_of_several_words_a_field_are_not_looked_up() -> None:
    classifier = build("nano", template=get_template("plain"), labels=LABELS, seed=0)
    assert not reads_words(classifier)


@pytest.mark.slow
def test_the_novelty_score_is_a_second_output(tmp_path: Path) -> None:
    classifier = with_a_head(
        build("nano", template=get_template("context"), labels=LABELS, seed=0, readout="tokens")
    )
    projection = np.random.default_rng(0).normal(size=(16, 1521)).astype(np.float32)
    score, path = SketchedInfluence.of(projection, 10.0), tmp_path / "model.onnx"
    write_graph(classifier, path, score=score)
    ids = torch.from_numpy(np.random.default_rng(0).integers(4, 900, size=(5, 19)))
    with torch.inference_mode():
        features = classifier.model.features(ids, None)  # type: ignore[operator]
        logits = classifier.model.score(features)  # type: ignore[operator]
        expected = score(features, logits).numpy()
    graph = session(path)
    assert names(graph.get_outputs()) == ["logits", "novelty", "features"]
    answer, novelty, said = graph.run(None, {"input_ids": ids.numpy()})
    assert (said.dtype, said.shape) == (np.float32, (5, 1520))
    assert said == pytest.approx(features.numpy(), abs=1e-4)
    assert answer == pytest.approx(logits.numpy(), abs=1e-3)
    assert (novelty.dtype, novelty.shape) == (np.float32, (5,))
    assert novelty == pytest.approx(expected, abs=1e-4)
    assert np.ptp(novelty) > 1e-3


@pytest.mark.slow
def test_a_graph_is_the_same_each_time_and_names_no_file(tmp_path: Path) -> None:
    classifier = build("nano", template=get_template("compact"), labels=LABELS, seed=0)
    for name in ("one", "two"):
        write_graph(classifier, tmp_path / name)
    data = (tmp_path / "one").read_bytes()
    assert data == (tmp_path / "two").read_bytes()
    assert b".py" not in data
    assert not any(
        part.HasField("data_location") for part in onnx.load(tmp_path / "one").graph.initializer
    )


@pytest.mark.slow
def test_what_torch_cannot_export_is_said_in_one_line(tmp_path: Path) -> None:
    classifier = build("nano", template=get_template("compact"), labels=LABELS, seed=0)

    class Branching(nn.Module):
        config = classifier.model.config

        def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
            if inputs["input_ids"].sum() > 3:
                raise ValueError("never on zeros")
            return inputs["input_ids"]

    classifier.model = Branching()
    with pytest.raises(GradsenseError, match="torch cannot export a model of kind 'opt'") as caught:
        write_graph(classifier, tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.onnx").exists()
