"""Local training (eq 1): one model in memory, lent to one client after another.

A client's own state is only its trained tensors. The optimiser starts afresh with each local round,
so nothing else has to be kept for a thousand clients, and a resumed run needs nothing more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional

from gradsense.learning.corrections import Control, Correction, Proximal
from gradsense.learning.learner import Observed, Tensors, Trained, layer_of
from gradsense.learning.statistics import observed
from gradsense.models.classifier import Encoded, TextClassifier

#: Prompts whose features are computed at once, between two calls of ``between``.
_OBSERVED_AT_ONCE = 1024


@dataclass(frozen=True)
class Examples:
    """Encoded prompts and their class numbers.

    Attributes:
        encoded: the distinct prompts, token ids of shape [distinct, length].
        index: for each flow, its prompt's row in ``encoded``, int64 of shape [flows].
        labels: for each flow, its class number, int64 of shape [flows].
    """

    encoded: Encoded
    index: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, flows: torch.Tensor) -> Examples:
        """These flows, with only the prompts that they need."""
        rows, index = torch.unique(self.index[flows], return_inverse=True)
        return Examples(self.encoded.take(rows), index, self.labels[flows])


class Trainer:
    """The one model of a process, and how it learns.

    Args:
        classifier: lent to whoever trains; its trainable tensors are overwritten.
        optimizer: ``adamw``, or ``sgd`` for eq 1 to the letter.
        lr: η, the learning rate.
        batch_size: flows a step.
        seed: with the client's number and epoch it fixes the order of the batches.
        between: called before every step of ``train`` and every block of prompts of ``observe``.
            It may wait, or raise to give up: both are functions of what they are given, so the
            same call again gives the same result, to the bit.
    """

    def __init__(
        self,
        classifier: TextClassifier,
        *,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        lr: float = 1e-3,
        batch_size: int = 32,
        seed: int = 0,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        self.classifier = classifier
        self.optimizer = optimizer
        self.lr = lr
        self.batch_size = batch_size
        self.seed = seed
        self.between = between
        self.parameters = classifier.trainable()
        self.layers: dict[str, list[int]] = defaultdict(list)
        for position, name in enumerate(self.parameters):
            self.layers[layer_of(name)].append(position)

    def new_optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimiser over the trainable tensors."""
        parameters = list(self.parameters.values())
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=self.lr)
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=0.01, fused=True)

    def train(
        self,
        examples: Examples,
        tensors: Tensors,
        *,
        stream: int,
        first_step: int,
        steps: int,
        proximal: float = 0.0,
        correction: Tensors | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> Trained:
        """Take ``steps`` optimiser steps from ``tensors``.

        Args:
            examples: D_k, at least one flow.
            stream: the client's number; each has its own order of batches.
            first_step: steps that this client has taken in its life; the epoch and the place in
                it follow from it, so the order needs no state.
            steps: how many to take.
            proximal: μ of FedProx; each step is drawn back to ``tensors`` by μ (θ − θ_start).
            correction: what SCAFFOLD adds to every gradient, c − c_k.
            optimizer: from ``new_optimizer``, to go on with its moments; None starts afresh.
        """
        self.classifier.load(tensors)
        model = self.classifier.model
        model.train()
        # Dropout, where a model has it, draws from torch's own generator.
        state = np.random.SeedSequence([self.seed, stream, first_step]).generate_state(1)
        torch.manual_seed(int(state[0]))
        optimizer = optimizer or self.new_optimizer()
        step_norms: list[dict[str, float]] = []
        total_loss = 0.0
        control = None if correction is None else Control(correction)
        corrections: list[Correction] = [] if control is None else [control]
        if proximal:
            corrections.append(Proximal(proximal, self.parameters))
        for batch in self.batches(len(examples), stream, first_step, steps):
            self.between()
            loss, squares = self.step(examples, batch, optimizer, corrections)
            total_loss += loss
            step_norms.append(
                {
                    layer: sum(squares[i] for i in positions) ** 0.5
                    for layer, positions in self.layers.items()
                }
            )
        return Trained(
            tensors=self.classifier.tensors(),
            gradient_norms={
                layer: sum(norms[layer] for norms in step_norms) / steps for layer in self.layers
            },
            loss=total_loss / steps,
            mean_gradient={} if control is None else control.mean(),
            step_norms=tuple(step_norms),
        )

    def batches(
        self, flows: int, stream: int, first_step: int, steps: int
    ) -> Iterator[torch.Tensor]:
        """Rows of each batch of these steps; every epoch has its own seeded order."""
        per_epoch, epoch = -(-flows // self.batch_size), -1
        for step in range(first_step, first_step + steps):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                rng = np.random.default_rng([self.seed, stream, epoch])
                order = torch.from_numpy(rng.permutation(flows))
            start = step % per_epoch * self.batch_size
            yield order[start : start + self.batch_size]

    def step(
        self,
        examples: Examples,
        batch: torch.Tensor,
        optimizer: torch.optim.Optimizer,
        corrections: Sequence[Correction] = (),
    ) -> tuple[float, list[float]]:
        """One optimiser step (eq 1): the batch's loss in nats, and ‖g‖² of each parameter."""
        logits = self.classifier.forward(examples.encoded, examples.index[batch])
        loss = functional.cross_entropy(logits, examples.labels[batch])
        optimizer.zero_grad(set_to_none=False)
        loss.backward()  # type: ignore[no-untyped-call]
        # A part that this input did not reach has no gradient; its place stays, at zero.
        reached = {
            place: p.grad for place, p in enumerate(self.parameters.values()) if p.grad is not None
        }
        norms = torch.stack(torch._foreach_norm(list(reached.values()))).square_().tolist()
        squares = [0.0] * len(self.parameters)
        for place, square in zip(reached, norms, strict=True):
            squares[place] = square
        for correction in corrections:
            correction.apply(self.parameters)
        optimizer.step()
        return loss.item(), squares

    @torch.inference_mode()
    def observe(
        self, examples: Examples, tensors: Tensors, rows: torch.Tensor, tolerance: float
    ) -> Observed:
        """The sufficient statistics of flows, and how well the head ``tensors`` explains them.

        Each distinct (prompt, label) is computed once and counts as often as it occurs.

        Args:
            rows: which flows of ``examples``, int64.
            tolerance: see ``statistics.factorise``.
        """
        self.classifier.load(tensors)
        self.classifier.model.eval()
        classes = len(self.classifier.labels)
        pairs, counts = torch.unique(
            examples.index[rows] * classes + examples.labels[rows], return_counts=True
        )
        prompts, labels = pairs // classes, (pairs % classes).numpy()
        blocks = []
        for block in torch.split(prompts, _OBSERVED_AT_ONCE):
            self.between()
            blocks.append(self.classifier.features(examples.encoded, block))
        features = torch.cat(blocks)
        head: Any = self.classifier.model
        return observed(
            features.numpy(),
            torch.softmax(head.score(features), dim=1).double().numpy(),
            labels,
            counts.numpy(),
            classes=self.classifier.labels,
            tolerance=tolerance,
        )

    @torch.inference_mode()
    def logits(self, examples: Examples, batch_size: int = 1024) -> torch.Tensor:
        """Logits of the distinct prompts under the loaded tensors, shape [distinct, classes]."""
        self.classifier.model.eval()
        parts = torch.split(torch.arange(len(examples.encoded)), batch_size)
        return torch.cat([self.classifier.forward(examples.encoded, rows) for rows in parts])

    def evaluate(self, examples: Examples, tensors: Tensors) -> tuple[float, np.ndarray]:
        """Mean cross-entropy in nats, and the predicted class of each flow, shape [flows]."""
        self.classifier.load(tensors)
        # Identical prompts get identical answers: each distinct one is computed once.
        logits = self.logits(examples)[examples.index]
        loss = functional.cross_entropy(logits, examples.labels).item()
        return loss, logits.argmax(dim=1).numpy()


@dataclass(frozen=True)
class LocalLearner:
    """One client's data, bound to the process's trainer; a ``learner.Learner``.

    Attributes:
        trainer: shared by all clients of the process.
        train_set: D_k.
        validation_set: D_k^val; a site without any validates on its training flows.
        stream: the client's number in the fleet.
    """

    trainer: Trainer
    train_set: Examples
    validation_set: Examples
    stream: int

    @property
    def samples(self) -> int:
        return len(self.train_set)

    @property
    def distinct(self) -> int:
        pairs = torch.stack((self.train_set.index, self.train_set.labels))
        return int(torch.unique(pairs, dim=1).shape[1])

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.train_set) // self.trainer.batch_size)

    @property
    def validation_samples(self) -> int:
        return len(self.validation_set)

    def train(
        self,
        tensors: Tensors,
        *,
        first_step: int,
        steps: int,
        proximal: float = 0.0,
        correction: Tensors | None = None,
    ) -> Trained:
        return self.trainer.train(
            self.train_set,
            tensors,
            stream=self.stream,
            first_step=first_step,
            steps=steps,
            proximal=proximal,
            correction=correction,
        )

    def observe(
        self, tensors: Tensors, *, first_step: int, steps: int, tolerance: float
    ) -> Observed:
        batches = self.trainer.batches(len(self.train_set), self.stream, first_step, steps)
        return self.trainer.observe(self.train_set, tensors, torch.cat(list(batches)), tolerance)

    def score(self, tensors: Tensors) -> float:
        return self.trainer.evaluate(self.validation_set, tensors)[0]
