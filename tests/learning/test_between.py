"""Training that is interrupted and begun again ends where undisturbed training ends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from gradsense.learning import trainer as module
from gradsense.learning.learner import Tensors
from gradsense.learning.trainer import Examples, LocalLearner, Trainer
from gradsense.models.build import build
from gradsense.prompts.templates import get_template


class Stop(Exception):
    """Something newer came."""


def stops_at(call: int) -> Callable[[], None]:
    """Raises at this call, counted from 1, and at no other."""
    calls = iter(range(1, 1000))

    def between() -> None:
        if next(calls) == call:
            raise Stop

    return between


@pytest.fixture(scope="module")
def made() -> tuple[Trainer, Examples, Tensors]:
    """A nano with 60 random prompts, and the weights that it begins with."""
    template = get_template("context")
    labels = ("Benign", "DDoS")
    classifier = build("nano", template=template, labels=labels, seed=0, readout="pooled")
    rng = np.random.default_rng(0)
    sizes = [len(field.phrases) for field in template.fields]
    phrase_ids = np.array([[rng.integers(size) for size in sizes] for _ in range(60)], np.uint16)
    encoded = classifier.encode(template.texts(phrase_ids))
    data = Examples(encoded, torch.arange(60), torch.from_numpy(rng.integers(2, size=60)))
    return Trainer(classifier, batch_size=8), data, classifier.tensors()


def same(one: Tensors, other: Tensors) -> bool:
    return all(one[name].tobytes() == other[name].tobytes() for name in one)


@pytest.mark.parametrize("call", [1, 4, 6])
def test_training_again_after_an_interrupt_gives_the_same_bits(
    made: tuple[Trainer, Examples, Tensors], call: int
) -> None:
    own, data, start = made
    before = {name: tensor.copy() for name, tensor in start.items()}
    learner = LocalLearner(own, data, data, stream=3)
    own.between = lambda: None
    undisturbed = learner.train(start, first_step=2, steps=6)
    own.between = stops_at(call)
    with pytest.raises(Stop):
        learner.train(start, first_step=2, steps=6)
    assert same(start, before)
    again = learner.train(start, first_step=2, steps=6)  # between no longer raises
    assert same(again.tensors, undisturbed.tensors)
    assert (again.loss, again.gradient_norms) == (undisturbed.loss, undisturbed.gradient_norms)
    assert not same(again.tensors, start)


def test_observing_is_interrupted_between_blocks_of_prompts(
    made: tuple[Trainer, Examples, Tensors], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, data, start = made
    monkeypatch.setattr(module, "_OBSERVED_AT_ONCE", 25)  # 60 prompts: three blocks
    rows = torch.arange(60)
    own.between = lambda: None
    undisturbed = own.observe(data, start, rows, 0.01)
    own.between = stops_at(3)
    with pytest.raises(Stop):
        own.observe(data, start, rows, 0.01)
    again = own.observe(data, start, rows, 0.01)
    assert again.factor.tobytes() == undisturbed.factor.tobytes()
