"""Local training (eq 1) against numbers done by hand, and against autograd on the real model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradsense.learning.trainer import Examples, LocalLearner, Trainer
from gradsense.models.build import build
from gradsense.models.classifier import Encoded
from gradsense.prompts.templates import get_template

VOCABULARY, CLASSES = 3, 2


class Bag:
    """A linear classifier of which token is there: logits = W x. Speaks as ``TextClassifier``."""

    def __init__(self) -> None:
        self.model = nn.Linear(VOCABULARY, CLASSES, bias=False)
        self.batches: list[list[int]] = []

    def trainable(self) -> dict[str, nn.Parameter]:
        return {"head.weight": self.model.weight}

    def load(self, tensors: Mapping[str, np.ndarray]) -> None:
        with torch.no_grad():
            self.model.weight.copy_(torch.tensor(tensors["head.weight"]))

    def tensors(self) -> dict[str, np.ndarray]:
        return {"head.weight": self.model.weight.detach().numpy().copy()}

    def forward(self, encoded: Encoded, rows: torch.Tensor) -> torch.Tensor:
        self.batches.append(rows.tolist())
        words = nn.functional.one_hot(encoded.input_ids[rows, 0], VOCABULARY).float()
        logits: torch.Tensor = self.model(words)
        return logits


def trainer(classifier: Any, **options: Any) -> Trainer:
    return Trainer(classifier, **{"optimizer": "sgd", "lr": 0.1, "batch_size": 1, **options})


def examples(words: list[int], labels: list[int]) -> Examples:
    """Flow i reads word ``words[i]``; the distinct prompts are the vocabulary."""
    encoded = Encoded(torch.arange(VOCABULARY).reshape(-1, 1), None)
    return Examples(encoded, torch.tensor(words), torch.tensor(labels))


ZERO = {"head.weight": np.zeros((CLASSES, VOCABULARY), np.float32)}


def test_one_step_of_eq_1_by_hand() -> None:
    trained = trainer(Bag()).train(examples([1], [0]), ZERO, stream=0, first_step=0, steps=1)
    # At W = 0 both classes have probability 1/2: the gradient is (1/2 - 1) for the true class
    # and 1/2 for the other, in the column of the word. η = 0.1.
    assert trained.tensors["head.weight"] == pytest.approx(
        np.array([[0, 0.05, 0], [0, -0.05, 0]], np.float32)
    )
    assert trained.loss == pytest.approx(math.log(2))
    assert trained.gradient_norms == {"head": pytest.approx(math.sqrt(0.5**2 + 0.5**2))}
    assert not ZERO["head.weight"].any(), "the tensors that were given stay as they are"


def test_two_steps_by_hand() -> None:
    trained = trainer(Bag()).train(examples([1], [0]), ZERO, stream=0, first_step=0, steps=2)
    wrong = 1 / (1 + math.exp(0.1))  # logits 0.05 and -0.05
    assert trained.tensors["head.weight"][0, 1] == pytest.approx(0.05 + 0.1 * wrong)
    assert trained.loss == pytest.approx((math.log(2) - math.log(1 - wrong)) / 2)
    first, second = math.sqrt(0.5), math.sqrt(2) * wrong
    assert trained.gradient_norms["head"] == pytest.approx((first + second) / 2)


def test_fedprox_draws_the_second_step_back_by_hand() -> None:
    data, own = examples([1], [0]), trainer(Bag())
    trained = own.train(data, ZERO, stream=0, first_step=0, steps=2, proximal=0.5)
    wrong = 1 / (1 + math.exp(0.1))
    # At 0.05 the pull back to 0 is μ × 0.05 = 0.025, times η; the first step starts at 0.
    assert trained.tensors["head.weight"][0, 1] == pytest.approx(0.05 + 0.1 * (wrong - 0.025))
    plain = own.train(data, ZERO, stream=0, first_step=0, steps=2)
    assert trained.gradient_norms == plain.gradient_norms, "sensing sees the data's gradient"


def test_a_part_without_gradient_keeps_its_place() -> None:
    class TwoHeads(Bag):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Parameter(torch.ones(2))

        def trainable(self) -> dict[str, nn.Parameter]:
            return {"idle.weight": self.idle, "head.weight": self.model.weight}

    trained = trainer(TwoHeads()).train(examples([1], [0]), ZERO, stream=0, first_step=0, steps=1)
    assert trained.gradient_norms == {"idle": 0.0, "head": pytest.approx(math.sqrt(0.5))}


def test_batch_is_the_mean_over_its_flows() -> None:
    data = examples([0, 0, 2, 2], [0, 1, 1, 1])
    trained = trainer(Bag(), batch_size=4).train(data, ZERO, stream=0, first_step=0, steps=1)
    # Word 0 has both labels, which cancel; word 2 pulls twice, by 2 × 1/2 / 4 × η.
    assert trained.tensors["head.weight"] == pytest.approx(
        np.array([[0, 0, -0.025], [0, 0, 0.025]], np.float32)
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_flow_comes_once_an_epoch_in_an_order_of_its_own(optimizer: str) -> None:
    bag = Bag()
    data = Examples(
        Encoded(torch.zeros((10, 1), dtype=torch.int64), None),
        torch.arange(10),
        torch.zeros(10).long(),
    )
    own = trainer(bag, batch_size=4, optimizer=optimizer)
    own.train(data, ZERO, stream=3, first_step=0, steps=6)
    assert [len(batch) for batch in bag.batches] == [4, 4, 2] * 2
    epochs = [list(chain(*bag.batches[:3])), list(chain(*bag.batches[3:]))]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]
    seen = list(bag.batches)
    bag.batches.clear()
    own.train(data, ZERO, stream=4, first_step=0, steps=3)
    assert bag.batches != seen[:3], "another client"


def test_two_visits_are_one_long_one() -> None:
    data, own = examples([0, 1, 2, 0, 1], [0, 1, 1, 0, 0]), trainer(Bag(), batch_size=2)
    whole = own.train(data, ZERO, stream=0, first_step=0, steps=5)
    half = own.train(data, ZERO, stream=0, first_step=0, steps=2)
    rest = own.train(data, half.tensors, stream=0, first_step=2, steps=3)
    assert rest.tensors["head.weight"].tobytes() == whole.tensors["head.weight"].tobytes()


def test_evaluation_by_hand() -> None:
    weights = {"head.weight": np.array([[1, 0, 0], [0, 2, 0]], np.float32)}
    loss, predicted = trainer(Bag()).evaluate(examples([0, 1, 1], [0, 1, 0]), weights)
    assert predicted.tolist() == [0, 1, 1]
    right, sure = math.log(1 + math.exp(-1)), math.log(1 + math.exp(-2))
    assert loss == pytest.approx((right + sure + (2 + sure)) / 3)


def test_selection_keeps_only_the_prompts_that_it_needs() -> None:
    chosen = examples([2, 0, 2, 1], [0, 1, 0, 1]).select(torch.tensor([0, 2, 1]))
    assert chosen.encoded.input_ids[:, 0].tolist() == [0, 2]
    assert chosen.index.tolist() == [1, 1, 0]
    assert chosen.labels.tolist() == [0, 0, 1]


def test_learner_counts_its_steps_and_scores_on_its_validation_flows() -> None:
    own = trainer(Bag(), batch_size=2)
    learner = LocalLearner(own, examples([0, 1, 2], [0, 1, 1]), examples([0], [0]), stream=0)
    assert (learner.samples, learner.steps_per_epoch, learner.validation_samples) == (3, 2, 1)
    assert learner.score(ZERO) == pytest.approx(math.log(2))
    assert learner.train(ZERO, first_step=0, steps=1).loss == pytest.approx(math.log(2))


def test_one_step_of_the_embedded_opt_is_theta_minus_eta_times_the_gradient() -> None:
    template = get_template("compact")
    classifier = build("nano", template=template, labels=("x", "y", "z"), seed=0)
    words = [" ".join(template.vocabulary()[i : i + 5]) for i in range(4)]
    data = Examples(classifier.encode(words), torch.arange(4), torch.tensor([0, 1, 2, 1]))
    own = Trainer(classifier, optimizer="sgd", lr=0.5, batch_size=4)
    before = classifier.tensors()
    named = classifier.trainable()
    classifier.model.train()
    order = torch.from_numpy(np.random.default_rng([0, 0, 0]).permutation(4))
    logits = classifier.forward(data.encoded, data.index[order])
    chosen = torch.log_softmax(logits, dim=1)[torch.arange(4), data.labels[order]]
    slopes = torch.autograd.grad(-chosen.mean(), list(named.values()))
    trained = own.train(data, before, stream=0, first_step=0, steps=1)
    for (name, start), slope in zip(before.items(), slopes, strict=True):
        expected = start - 0.5 * slope.numpy()
        assert trained.tensors[name] == pytest.approx(expected, abs=1e-6), name
    assert trained.loss == pytest.approx(-chosen.mean().item(), abs=1e-6)
    total = math.sqrt(sum(float((slope**2).sum()) for slope in slopes))
    layers = math.sqrt(sum(norm**2 for norm in trained.gradient_norms.values()))
    assert layers == pytest.approx(total, rel=1e-5)


# Reading ------------------------------------------------------------------------------------


class Reading(Bag):
    """A word w is the feature (w + 1); the head is the whole model."""

    labels = ("x", "y")

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.score = nn.Linear(1, CLASSES)
        self.read: list[list[int]] = []

    def trainable(self) -> dict[str, nn.Parameter]:
        return {"score.weight": self.model.score.weight, "score.bias": self.model.score.bias}

    def load(self, tensors: Mapping[str, np.ndarray]) -> None:
        with torch.no_grad():
            for name, parameter in self.trainable().items():
                parameter.copy_(torch.tensor(tensors[name]))

    def features(self, encoded: Encoded, rows: torch.Tensor) -> torch.Tensor:
        self.read.append(rows.tolist())
        return encoded.input_ids[rows].float() + 1


UNTRAINED = {"score.weight": np.zeros((2, 1), np.float32), "score.bias": np.zeros(2, np.float32)}


def test_statistics_of_flows_by_hand() -> None:
    # Words 0, 0, 2 with classes x, x, y: rows (1, 1, 1, 0) twice and (3, 1, 0, 1).
    reading = Reading()
    learner = LocalLearner(
        trainer(reading, batch_size=2), examples([0, 2, 0], [0, 1, 0]), examples([0], [0]), stream=0
    )
    assert learner.distinct == 2
    seen = learner.observe(UNTRAINED, first_step=0, steps=2, tolerance=0.0)
    assert seen.flows == 3
    assert seen.factor.T @ seen.factor == pytest.approx(
        np.array([[11, 5, 2, 3], [5, 3, 2, 1], [2, 2, 2, 0], [3, 1, 0, 1]]), abs=1e-5
    )
    assert reading.read == [[0, 2]], "the two that read the same are computed once"
    assert seen.gradient_norms == pytest.approx({"x": 1.0, "y": 1.0})


def test_gradient_norms_are_those_of_autograd() -> None:
    tensors = {
        "score.weight": np.array([[0.3], [-0.2]], np.float32),
        "score.bias": np.array([0.1, 0.4], np.float32),
    }
    words, labels = [0, 1, 1, 2, 0, 1], [0, 1, 1, 1, 0, 0]
    reading = Reading()
    learner = LocalLearner(
        trainer(reading, batch_size=9), examples(words, labels), examples([0], [0]), stream=0
    )
    seen = learner.observe(tensors, first_step=0, steps=1, tolerance=0.0)
    x = torch.tensor(words)[:, None].float() + 1
    for number, label in enumerate(reading.labels):
        own = torch.tensor(labels) == number
        norms = []
        for values in (tensors, UNTRAINED):
            reading.load(values)
            logits = reading.model.score(x[own])
            loss = nn.functional.cross_entropy(logits, torch.tensor(labels)[own], reduction="sum")
            slopes = torch.autograd.grad(loss, list(reading.trainable().values()))
            norms.append(math.sqrt(sum(float((slope**2).sum()) for slope in slopes)))
        assert seen.gradient_norms[label] == pytest.approx(norms[0] / norms[1], rel=1e-5)


def test_what_pieces_tell_adds_up_to_the_whole() -> None:
    data = examples([0, 1, 2, 0, 1, 2, 2], [0, 1, 1, 0, 0, 1, 1])
    own = trainer(Reading(), batch_size=3)
    learner = LocalLearner(own, data, data, stream=4)
    whole = learner.observe(UNTRAINED, first_step=0, steps=3, tolerance=0.0)
    parts = [learner.observe(UNTRAINED, first_step=i, steps=1, tolerance=0.0) for i in range(3)]
    assert [part.flows for part in parts] == [3, 3, 1]
    total = sum(part.factor.T @ part.factor for part in parts)
    assert total == pytest.approx(whole.factor.T @ whole.factor, abs=1e-4)


def test_reading_changes_no_weight_and_needs_no_gradient() -> None:
    template = get_template("compact")
    classifier = build(
        "nano", template=template, labels=("x", "y"), seed=0, readout="tokens", frozen=True
    )
    words = [" ".join(template.vocabulary()[i : i + 14]) for i in range(4)]
    data = Examples(classifier.encode(words), torch.arange(4), torch.tensor([0, 1, 1, 0]))
    before = {name: p.clone() for name, p in classifier.model.named_parameters()}
    own = Trainer(classifier, batch_size=4)
    seen = own.observe(data, classifier.tensors(), torch.arange(4), 0.0)
    assert seen.factor.shape[1] == 14 * 80 + 1 + 2
    assert len(seen.factor) <= 4
    with torch.inference_mode():
        features = classifier.features(data.encoded, torch.arange(4)).double().numpy()
    rows = np.hstack([features, np.ones((4, 1)), np.eye(2)[[0, 1, 1, 0]]])
    np.testing.assert_allclose(seen.factor.T @ seen.factor, rows.T @ rows, atol=1e-3)
    assert all(torch.equal(before[name], p) for name, p in classifier.model.named_parameters())
    assert all(p.grad is None for p in classifier.model.parameters())
