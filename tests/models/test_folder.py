from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from gradsense.errors import InputError
from gradsense.models import folder
from gradsense.models.build import build
from gradsense.models.card import Kind
from gradsense.models.classifier import TextClassifier
from gradsense.prompts.templates import get_template

LABELS = ("Benign", "DDoS", "Scan")


@pytest.fixture
def classifier() -> TextClassifier:
    return build("nano", template=get_template("compact"), labels=LABELS, seed=0)


def _texts(classifier: TextClassifier) -> list[str]:
    words = classifier.template.vocabulary()
    return [" ".join(words[start : start + 14]) for start in range(0, 140, 14)]


def test_a_saved_model_answers_the_same(classifier: TextClassifier, tmp_path: Path) -> None:
    folder.save(classifier, tmp_path / "model", extra={"accuracy": 0.5})
    loaded = folder.load(tmp_path / "model")
    assert (loaded.labels, loaded.template) == (classifier.labels, classifier.template)
    np.testing.assert_array_equal(
        loaded.probabilities(_texts(loaded)), classifier.probabilities(_texts(classifier))
    )
    assert folder.read_card(tmp_path / "model").extra == {"accuracy": 0.5}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_hugging_face_opens_the_folder(classifier: TextClassifier, tmp_path: Path) -> None:
    folder.save(classifier, tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    texts = _texts(classifier)
    with torch.inference_mode():
        logits = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits
    np.testing.assert_allclose(
        logits.softmax(dim=-1).numpy(), classifier.probabilities(texts), atol=1e-6
    )
    assert model.config.id2label == dict(enumerate(LABELS))
    modes = {path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert len(modes) == 1
    assert "PreTrainedTokenizerFast" in (tmp_path / "model" / "tokenizer_config.json").read_text()


@pytest.mark.parametrize("family", ["opt", "bert", "gpt2"])
def test_adapters_are_merged_and_the_classifier_trains_on(
    family: str, hf_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    classifier = build(
        str(hf_folder(family)), template=get_template("plain"), labels=LABELS, seed=0
    )
    generator = np.random.default_rng(0)
    noisy = {
        name: array + generator.normal(0, 0.1, array.shape).astype(np.float32)
        for name, array in classifier.tensors().items()
    }
    classifier.load(noisy)
    texts = ["w0 w1 w2", "w3", "w4 w5 w6 w7"]
    expected = classifier.probabilities(texts)
    folder.save(classifier, tmp_path / "model")
    np.testing.assert_array_equal(classifier.probabilities(texts), expected)
    loaded = folder.load(tmp_path / "model")
    np.testing.assert_allclose(loaded.probabilities(texts), expected, atol=1e-5)
    assert not any("lora" in name for name in loaded.trainable())
    assert folder.read_card(tmp_path / "model").lora_rank == 8


def test_a_model_folder_is_replaced_and_nothing_else(
    classifier: TextClassifier, tmp_path: Path
) -> None:
    folder.save(classifier, tmp_path / "model", extra={"run": 1})
    folder.save(classifier, tmp_path / "model", extra={"run": 2})
    assert folder.read_card(tmp_path / "model").extra == {"run": 2}
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "draft.txt").write_text("precious")
    with pytest.raises(InputError, match="no model folder"):
        folder.save(classifier, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "draft.txt").read_text() == "precious"


def test_a_failed_write_leaves_the_old_folder(
    classifier: TextClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.save(classifier, tmp_path / "model", extra={"run": 1})

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(classifier.tokenizer, "save_pretrained", fail)
    with pytest.raises(folder.GradsenseError, match="No space left"):
        folder.save(classifier, tmp_path / "model", extra={"run": 2})
    assert folder.read_card(tmp_path / "model").extra == {"run": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("lost", folder._FILES)
def test_each_missing_file_is_named(classifier: TextClassifier, tmp_path: Path, lost: str) -> None:
    folder.save(classifier, tmp_path / "model")
    (tmp_path / "model" / lost).unlink()
    with pytest.raises(InputError, match=lost):
        folder.load(tmp_path / "model")


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such model folder"):
        folder.load(tmp_path / "model")


def _edit_card(path: Path, **changes: Any) -> None:
    card = json.loads((path / folder.CARD_FILE).read_text())
    (path / folder.CARD_FILE).write_text(json.dumps({**card, **changes}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 2}, "format"),
        ({"labels": ["Benign", "Scan"]}, "2 labels, but the model answers 3"),
        ({"labels": "Benign"}, "labels"),
        ({"template": {"name": "compact", "version": 99}}, "version 99"),
        ({"template": {"name": "nonsense", "version": 1}}, "nonsense"),
    ],
)
def test_a_card_that_does_not_fit(
    classifier: TextClassifier, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    folder.save(classifier, tmp_path / "model")
    _edit_card(tmp_path / "model", **changes)
    with pytest.raises(InputError, match=says) as caught:
        folder.load(tmp_path / "model")
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_any_bytes_for_a_card_are_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("card")
    for name in folder._FILES:
        (path / name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        folder.load(path)
    assert "\n" not in str(caught.value)


def test_an_oversized_card_is_not_read(classifier: TextClassifier, tmp_path: Path) -> None:
    folder.save(classifier, tmp_path / "model")
    with (tmp_path / "model" / folder.CARD_FILE).open("ab") as card:
        card.truncate(1 << 30)
    with pytest.raises(InputError, match="larger than 4 MiB"):
        folder.load(tmp_path / "model")


@pytest.mark.parametrize("damage", ["truncated", "foreign"])
def test_damaged_weights(
    classifier: TextClassifier, hf_folder: Callable[[str], Path], tmp_path: Path, damage: str
) -> None:
    folder.save(classifier, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        weights.write_bytes((hf_folder("bert") / "model.safetensors").read_bytes())
    with pytest.raises(InputError) as caught:
        folder.load(tmp_path / "model")
    assert "\n" not in str(caught.value)


# A head beside its base ---------------------------------------------------------------------


def _with_head(kind: Kind = "tokens") -> TextClassifier:
    """A frozen nano under a head of random weights."""
    made = build(
        "nano",
        template=get_template("compact"),
        labels=LABELS,
        seed=0,
        readout=kind,
        frozen=True,
    )
    rng = np.random.default_rng(0)
    head = {name: rng.normal(size=array.shape) for name, array in made.tensors().items()}
    made.load({name: value.astype(np.float32) for name, value in head.items()})
    return made


@pytest.mark.parametrize("kind", ["tokens", "pooled", "last"])
def test_a_saved_head_answers_the_same(kind: Kind, tmp_path: Path) -> None:
    classifier = _with_head(kind)
    path = tmp_path / "model"
    folder.save(classifier, path)
    loaded = folder.load(path)
    expected = classifier.probabilities(_texts(classifier))
    np.testing.assert_array_equal(loaded.probabilities(_texts(loaded)), expected)
    assert np.ptp(expected, axis=0).max() > 0.001, "the prompts do differ"
    card = folder.read_card(path)
    assert card.readout == folder.ReadoutCard(kind=kind, length=14)
    assert len(loaded.trainable()) > 2, "all of its weights train if it is trained on"
    assert {file.name for file in path.iterdir()} == {*folder._FILES, folder.HEAD_FILE}
    assert len({file.stat().st_mode for file in path.iterdir()}) == 1
    # Again from what was loaded: no file and no bit is lost on the way.
    folder.save(loaded, tmp_path / "again")
    assert (tmp_path / "again" / folder.HEAD_FILE).read_bytes() == (
        path / folder.HEAD_FILE
    ).read_bytes()


def test_hugging_face_opens_the_base(tmp_path: Path) -> None:
    classifier = _with_head()
    folder.save(classifier, tmp_path / "model")
    base = AutoModel.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    head = load_file(tmp_path / "model" / folder.HEAD_FILE)
    texts = _texts(classifier)
    with torch.inference_mode():
        states = base(**tokenizer(texts, return_tensors="pt")).last_hidden_state
    logits = states.flatten(1).numpy() @ head["weight"].T + head["bias"]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        odds / odds.sum(axis=1, keepdims=True), classifier.probabilities(texts), atol=1e-5
    )


@pytest.mark.parametrize(
    "family",
    [
        "opt",
        "bert",
        "gpt2",
        "gpt_neox",
        "roberta",
        "deberta-v2",
    ],
)
def test_a_head_over_a_hugging_face_base_comes_back(
    family: str, hf_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    classifier = build(
        str(hf_folder(family)),
        template=get_template("plain"),
        labels=LABELS,
        seed=0,
        readout="pooled",
        frozen=True,
    )
    rng = np.random.default_rng(0)
    head = {name: rng.normal(size=array.shape) for name, array in classifier.tensors().items()}
    classifier.load({name: value.astype(np.float32) for name, value in head.items()})
    texts = ["w0 w1 w2", "w3", "w4 w5 w6 w7"]
    folder.save(classifier, tmp_path / "model")
    loaded = folder.load(tmp_path / "model")
    np.testing.assert_allclose(
        loaded.probabilities(texts), classifier.probabilities(texts), atol=1e-6
    )


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _rewrite(path: Path, **changes: Any) -> None:
    tensors = load_file(path) | changes
    save_file({name: value for name, value in tensors.items() if value is not None}, path)


DAMAGED_HEADS: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": _cut,
    "nonsense": lambda path: path.write_bytes(b"nonsense" * 99),
    "a pickle": lambda path: path.write_bytes(b"\x80\x04\x95" + bytes(99)),
    "no bias": lambda path: _rewrite(path, bias=None),
    "a stranger": lambda path: _rewrite(path, stranger=np.zeros(1, np.float32)),
    "other classes": lambda path: _rewrite(path, bias=np.zeros(4, np.float32)),
    "other width": lambda path: _rewrite(path, weight=np.zeros((3, 80), np.float32)),
}


@pytest.mark.parametrize("damage", DAMAGED_HEADS)
def test_a_damaged_head_is_named(damage: str, tmp_path: Path) -> None:
    folder.save(_with_head(), tmp_path / "model")
    DAMAGED_HEADS[damage](tmp_path / "model" / folder.HEAD_FILE)
    with pytest.raises(InputError, match=r"head\.safetensors: the head cannot be read") as caught:
        folder.load(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_an_oversized_head_is_not_read(tmp_path: Path) -> None:
    folder.save(_with_head(), tmp_path / "model")
    with (tmp_path / "model" / folder.HEAD_FILE).open("ab") as file:
        file.truncate(1 << 30)
    with pytest.raises(InputError, match="larger than 64 MiB"):
        folder.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("readout", "says"),
    [
        ({"kind": "tokens", "length": 13}, "head.safetensors"),
        ({"kind": "pooled", "length": 14}, "head.safetensors"),
        ({"kind": "tokens", "length": 0}, "head.safetensors"),
        ({"kind": "tokens", "length": -1}, "readout.length"),
        ({"kind": "telepathy", "length": 14}, "readout.kind"),
        ({}, "readout.kind"),
        ({"kind": "tokens", "length": 10**12}, "readout.length"),
    ],
)
def test_a_card_that_misstates_the_head(readout: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder.save(_with_head(), tmp_path / "model")
    _edit_card(tmp_path / "model", readout=readout)
    with pytest.raises(InputError, match=says) as caught:
        folder.load(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_a_card_that_forgets_the_head_does_not_invent_one(tmp_path: Path) -> None:
    folder.save(_with_head(), tmp_path / "model")
    _edit_card(tmp_path / "model", readout=None)
    with pytest.raises(InputError, match=r"score\.weight"):
        folder.load(tmp_path / "model")


def test_a_card_of_other_labels_than_the_head_says_so(tmp_path: Path) -> None:
    folder.save(_with_head(), tmp_path / "model")
    _edit_card(tmp_path / "model", labels=["Benign", "Scan"])
    with pytest.raises(InputError) as caught:
        folder.load(tmp_path / "model")
    assert "2 labels, but the model answers 3" in str(caught.value)


def test_a_failed_write_of_the_head_leaves_the_old_folder(
    classifier: TextClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.save(classifier, tmp_path / "model", extra={"run": 1})

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "save_file", fail)
    with pytest.raises(folder.GradsenseError, match="No space left"):
        folder.save(_with_head(), tmp_path / "model", extra={"run": 2})
    assert folder.read_card(tmp_path / "model").extra == {"run": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_plain_model_replaces_one_with_a_head(classifier: TextClassifier, tmp_path: Path) -> None:
    folder.save(_with_head(), tmp_path / "model")
    folder.save(classifier, tmp_path / "model")
    assert not (tmp_path / "model" / folder.HEAD_FILE).exists()
    np.testing.assert_array_equal(
        folder.load(tmp_path / "model").probabilities(_texts(classifier)),
        classifier.probabilities(_texts(classifier)),
    )
