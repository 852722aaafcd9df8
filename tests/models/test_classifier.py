from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.models.build import build
from gradsense.models.classifier import TextClassifier

LABELS = ("Benign", "DDoS", "Scan")


@pytest.fixture
def classifier(template: Any) -> TextClassifier:
    return build("nano", template=template, labels=LABELS, seed=0)


def test_texts_of_one_length_need_no_mask(classifier: TextClassifier) -> None:
    encoded = classifier.encode(["w0 w1", "w2 w3", "w0 w1"])
    assert encoded.input_ids.tolist() == [[4, 5], [6, 7], [4, 5]]
    assert encoded.input_ids.dtype == torch.int64
    assert encoded.attention_mask is None


def test_texts_of_several_lengths_are_padded_and_cut(classifier: TextClassifier) -> None:
    long = " ".join(["w1"] * 9)
    encoded = classifier.encode(["w0", long, long])
    assert encoded.input_ids.tolist() == [[4, 0, 0, 0, 0, 0], [5] * 6, [5] * 6]
    assert encoded.attention_mask is not None
    assert encoded.attention_mask.sum(dim=1).tolist() == [1, 6, 6]


def test_a_batch_drops_the_padding_that_it_does_not_need(classifier: TextClassifier) -> None:
    encoded = classifier.encode(["w0", "w1 w2", "w3 w4 w5"])
    short = encoded.take(torch.tensor([1, 0]))
    assert short.input_ids.tolist() == [[5, 6], [4, 0]]
    assert encoded.take(torch.tensor([2])).attention_mask is None


@given(st.lists(st.lists(st.sampled_from(["w0", "w1", "w2"]), min_size=1, max_size=6), min_size=1))
@settings(max_examples=25, deadline=None)
def test_the_opt_reads_the_last_real_token_whatever_the_padding(lines: list[list[str]]) -> None:
    texts = [" ".join(line) for line in lines]
    together = MODEL.probabilities(texts, batch_size=3)
    alone = np.concatenate([MODEL.probabilities([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    with torch.inference_mode():
        # With the mask that the wrapper leaves out for OPT.
        encoded = MODEL.encode(texts)
        masked = MODEL.model(
            input_ids=encoded.input_ids, attention_mask=encoded.attention_mask
        ).logits.softmax(dim=-1)
    np.testing.assert_allclose(together, masked.numpy(), atol=1e-6)


def test_each_distinct_text_is_computed_once(
    classifier: TextClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    whole = classifier.encode

    def counted(texts: Sequence[str]) -> Any:
        seen.append(len(texts))
        return whole(texts)

    monkeypatch.setattr(classifier, "encode", counted)
    table = classifier.probabilities(["w0 w1", "w2 w3"] * 50)
    assert seen == [2]
    assert table.shape == (100, 3)
    np.testing.assert_allclose(table.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(table[0], table[2])


def test_an_empty_text_among_others_gets_a_finite_answer(classifier: TextClassifier) -> None:
    assert np.isfinite(classifier.probabilities(["w0 w1", ""])).all()


def test_no_texts(classifier: TextClassifier) -> None:
    assert len(classifier.encode([])) == 0
    assert classifier.probabilities([]).shape == (0, 3)


def test_probabilities_leave_the_training_mode_alone(classifier: TextClassifier) -> None:
    classifier.model.train()
    classifier.probabilities(["w0"])
    assert classifier.model.training


def test_tensors_are_copies_and_load_brings_them_back(classifier: TextClassifier) -> None:
    tensors = classifier.tensors()
    assert list(tensors) == list(classifier.trainable())
    name = next(iter(tensors))
    with torch.no_grad():
        classifier.trainable()[name].add_(1.0)
    assert not np.array_equal(tensors[name], classifier.tensors()[name])
    for array in tensors.values():
        array.flags.writeable = False
    classifier.load(tensors)
    np.testing.assert_array_equal(tensors[name], classifier.tensors()[name])


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_load_refuses_what_does_not_fit_and_changes_nothing(
    classifier: TextClassifier, fault: str
) -> None:
    before = classifier.tensors()
    tensors = {name: array + 1 for name, array in before.items()}
    last = list(tensors)[-1]
    if fault == "missing":
        del tensors[last]
    elif fault == "unknown":
        tensors["stranger"] = np.zeros(1, np.float32)
    else:
        tensors[last] = np.zeros((1, 1), np.float32)
    with pytest.raises(ValueError, match=last if fault != "unknown" else "stranger"):
        classifier.load(tensors)
    after = classifier.tensors()
    assert all(np.array_equal(before[name], after[name]) for name in before)


class _Words:
    """The stand-in template of ``conftest``, for a test that hypothesis runs many times."""

    name, version, budget, length = "stand-in", 1, 6, None

    def vocabulary(self) -> tuple[str, ...]:
        return ("w0", "w1", "w2")


MODEL = build("nano", template=_Words(), labels=LABELS, seed=0)  # type: ignore[arg-type]
