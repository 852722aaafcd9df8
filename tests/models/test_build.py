from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradsense.errors import InputError
from gradsense.models.build import build
from gradsense.models.classifier import TextClassifier
from gradsense.models.embedded import SIZES

FAMILIES = ("opt", "bert", "gpt2", "gpt_neox", "roberta", "deberta-v2", "t5")
LABELS = ("Benign", "DDoS", "Scan")
TEXTS = ["w0 w1 w2", "w3 w4 w5 w6 w7", "w0 w1 w2", "w8"]


def _step(classifier: TextClassifier) -> None:
    """One gradient step on all of TEXTS."""
    classifier.model.train()
    logits = classifier.forward(classifier.encode(TEXTS))
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0, 2])).backward()
    with torch.no_grad():
        for parameter in classifier.trainable().values():
            assert parameter.grad is not None
            parameter.sub_(0.1 * parameter.grad)


@pytest.mark.parametrize(("size", "least", "most"), [("nano", 1e5, 3e5), ("micro", 8e5, 1.3e6)])
def test_sizes(size: str, least: float, most: float, template: Any) -> None:
    classifier = build(size, template=template, labels=LABELS, seed=0)
    assert least < sum(p.numel() for p in classifier.trainable().values()) < most
    assert classifier.model.config.model_type == "opt"
    assert classifier.model.config.id2label == dict(enumerate(LABELS))


def test_one_seed_one_model_and_the_global_generator_untouched(template: Any) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = build("nano", template=template, labels=LABELS, seed=1).tensors()
    two = build("nano", template=template, labels=LABELS, seed=1).tensors()
    other = build("nano", template=template, labels=LABELS, seed=2).tensors()
    assert torch.equal(before, torch.get_rng_state())
    assert list(one) == list(two)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_train_adapters_and_head_only(
    family: str, hf_folder: Callable[[str], Path], template: Any
) -> None:
    path = str(hf_folder(family))
    classifier = build(path, template=template, labels=LABELS, seed=0, lora_rank=2)
    names = list(classifier.trainable())
    assert any("lora_A" in name for name in names)
    heads = [name for name in names if "lora_" not in name]
    assert heads
    assert all(".modules_to_save.default." in name for name in heads)
    assert not any("modules_to_save" in name and "lora_" in name for name in names)
    frozen = {
        name: parameter.detach().clone()
        for name, parameter in classifier.model.named_parameters()
        if not parameter.requires_grad
    }
    assert frozen
    before, started = classifier.probabilities(TEXTS), classifier.tensors()
    _step(classifier)
    after = classifier.probabilities(TEXTS)
    assert after.shape == (4, 3)
    assert not np.allclose(before, after)
    for name, parameter in classifier.model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name])
    classifier.load(started)
    np.testing.assert_array_equal(classifier.probabilities(TEXTS), before)
    again = build(path, template=template, labels=LABELS, seed=0, lora_rank=2)
    np.testing.assert_array_equal(again.probabilities(TEXTS), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_batches_do_not_change_an_answer(
    family: str, hf_folder: Callable[[str], Path], template: Any
) -> None:
    classifier = build(str(hf_folder(family)), template=template, labels=LABELS, seed=0)
    together = classifier.probabilities(TEXTS)
    alone = np.concatenate([classifier.probabilities([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    classifier.model.eval()
    with torch.inference_mode():
        padded = torch.softmax(classifier.forward(classifier.encode(TEXTS)), dim=-1).numpy()
    np.testing.assert_allclose(padded, alone, atol=1e-6)


def test_rank_zero_trains_everything(hf_folder: Callable[[str], Path], template: Any) -> None:
    path = str(hf_folder("bert"))
    classifier = build(path, template=template, labels=LABELS, seed=0, lora_rank=0)
    assert classifier.lora_rank is None
    assert len(classifier.trainable()) == len(list(classifier.model.parameters()))


def test_embedded_sizes_take_adapters_on_request(template: Any) -> None:
    classifier = build("nano", template=template, labels=LABELS, seed=0, lora_rank=4)
    small = sum(p.numel() for p in classifier.trainable().values())
    assert small < 0.1 * sum(p.numel() for p in classifier.model.parameters())


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("nanno", f"use {', '.join(SIZES)}"),
        ("/no/such/folder", "unknown model"),
        ("not a name", "unknown model"),
    ],
)
def test_unknown_models(model: str, says: str, template: Any) -> None:
    with pytest.raises(InputError, match=says):
        build(model, template=template, labels=LABELS, seed=0)


def test_an_unreachable_hub_is_one_quick_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, template: Any
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("Name or service not known\nsecond line")

    monkeypatch.setattr("gradsense.models.build.model_info", refuse)
    monkeypatch.setattr("gradsense.models.build.HF_HUB_OFFLINE", False)
    with pytest.raises(InputError, match="check the name and the connection") as caught:
        build("nobody/no-such-model", template=template, labels=LABELS, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "tokenizer.json"])
def test_incomplete_folders(
    lost: str, hf_folder: Callable[[str], Path], tmp_path: Path, template: Any
) -> None:
    path = tmp_path / "model"
    shutil.copytree(hf_folder("bert"), path)
    (path / lost).unlink()
    with pytest.raises(InputError) as caught:
        build(str(path), template=template, labels=LABELS, seed=0)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_never_opened(
    hf_folder: Callable[[str], Path], tmp_path: Path, template: Any
) -> None:
    path = tmp_path / "model"
    shutil.copytree(hf_folder("bert"), path)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        build(str(path), template=template, labels=LABELS, seed=0)


def test_weights_of_another_architecture(
    hf_folder: Callable[[str], Path], tmp_path: Path, template: Any
) -> None:
    path = tmp_path / "model"
    shutil.copytree(hf_folder("bert"), path)
    shutil.copy(hf_folder("gpt2") / "model.safetensors", path)
    with pytest.raises(InputError, match="do not fit"):
        build(str(path), template=template, labels=LABELS, seed=0)
