"""What every kind of run shares: the model, the trainer, the examples, and how they are scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from gradsense.config import RunSettings
from gradsense.experiments import results
from gradsense.experiments.corpus import Corpus, by_client, examples
from gradsense.federation.algorithm import algorithms, get_algorithm
from gradsense.learning import metrics
from gradsense.learning.alarms import flagged, threshold_for
from gradsense.learning.calibration import suspicion
from gradsense.learning.learner import Tensors
from gradsense.learning.trainer import Examples, LocalLearner, Trainer
from gradsense.models.build import build
from gradsense.prompts.templates import get_template


@dataclass
class Bench:
    """One corpus and one model, set up for one seed.

    Attributes:
        trainer: holds the process's one model.
        initial: the trainable tensors before any training; the same for every algorithm.
        learners: a learner for each client with training flows.
        train, test, validation: pooled examples; without validation flows the training ones.
        own_tests: each client's own test flows, where it has any.
    """

    settings: RunSettings
    corpus: Corpus
    trainer: Trainer
    initial: Tensors
    learners: dict[str, LocalLearner]
    train: Examples
    test: Examples
    validation: Examples
    own_tests: dict[str, Examples] = field(default_factory=dict)

    @property
    def normal(self) -> str:
        """The class that raises no alert."""
        return self.trainer.classifier.template.task.normal

    def evaluate(
        self, tensors: Tensors, flows: Examples | None = None
    ) -> tuple[float, results.ScoreSummary]:
        """Loss in nats and scores on these flows; by default on the whole test set."""
        flows = self.test if flows is None else flows
        loss, predicted = self.trainer.evaluate(flows, tensors)
        scores = self._score(flows.labels.numpy(), predicted)
        return loss, results.ScoreSummary.model_validate(scores)

    def own_score(self, client: str, tensors: Tensors) -> results.ScoreSummary | None:
        """A client's model on its own site's test flows; None where the site has none."""
        own = self.own_tests.get(client)
        return None if own is None else self.evaluate(tensors, own)[1]

    def point(
        self, version: int, tensors: Tensors, virtual_s: float = 0.0, uplink_bytes: int = 0
    ) -> results.Point:
        """A point of the curve: the global model ``version`` on the whole test set."""
        loss, scores = self.evaluate(tensors)
        return results.Point(
            aggregation=version,
            virtual_s=virtual_s,
            uplink_bytes=uplink_bytes,
            accuracy=scores.accuracy,
            f1_macro=scores.f1_macro,
            loss=loss,
        )

    def _score(self, truth: np.ndarray, predicted: np.ndarray) -> metrics.Scores:
        return metrics.score(truth, predicted, self.corpus.classes, normal=self.normal)

    def alarms(self, tensors: Tensors) -> results.Alarms | None:
        """The model as an alarm; see ``alarms_of``."""
        self.trainer.classifier.load(tensors)
        return self.alarms_of(self._odds(self.validation), self._odds(self.test))

    def _odds(self, flows: Examples) -> np.ndarray:
        return torch.softmax(self.trainer.logits(flows).double(), dim=1)[flows.index].numpy()

    def alarms_of(self, validation: np.ndarray, test: np.ndarray) -> results.Alarms | None:
        """A classifier as an alarm, its threshold from the validation flows.

        Args:
            validation, test: class probabilities of these flows, [flows, classes].

        Returns:
            None without a benign class to be suspicious against.
        """
        if self.normal not in self.corpus.classes:
            return None
        benign = self.corpus.classes.index(self.normal)
        quiet = suspicion(validation, benign)[self.validation.labels.numpy() == benign]
        threshold, truth = threshold_for(quiet), self.test.labels.numpy()
        suspected = suspicion(test, benign)
        recall = flagged(suspected, truth, self.corpus.classes, threshold)
        attacks = truth != benign
        return results.Alarms(
            threshold=threshold,
            false_alarms=recall.pop(self.normal, None),
            detected=float((suspected[attacks] > threshold).mean()) if attacks.any() else None,
            recall=recall,
        )

    def central(self, tensors: Tensors) -> dict[str, Any]:
        """The ``Row`` fields on a central model."""
        predicted = self.trainer.evaluate(self.test, tensors)[1]
        return {**self.verdicts(predicted), "alarms": self.alarms(tensors)}

    def verdicts(self, predicted: np.ndarray) -> dict[str, Any]:
        """The ``Row`` fields on the verdicts of a central model on the whole test set."""
        truth, sites = self.test.labels.numpy(), self.corpus.parts.test["client"].to_numpy()
        scores, per_site = self._score(truth, predicted), {}
        for site in dict.fromkeys(sites.tolist()):
            here = sites == site
            own = self._score(truth[here], predicted[here])
            per_site[site] = results.SiteScores(
                accuracy=own.accuracy, f1_macro=own.f1_macro, flows=int(here.sum())
            )
        return {
            "central": scores,
            "per_class": {name: one for name, one in scores.per_class.items() if one.support},
            "per_site": per_site,
            "confusion": scores.confusion,
            "classes": self.corpus.classes,
        }


def set_up(settings: RunSettings, corpus: Corpus) -> Bench:
    """Build the model and encode the corpus.

    Raises:
        InputError: an unknown model or template.
    """
    torch.set_num_threads(settings.threads)
    # numpy's own threads too: how a sum is split changes its last bits.
    threadpool_limits(settings.threads)
    # A reference is no algorithm; it trains the whole model as FedAvg does.
    named = settings.algorithm.partition(":")[0] in algorithms()
    algorithm = get_algorithm(settings.algorithm if named else "fedavg")
    classifier = build(
        settings.model,
        template=get_template(settings.template),
        labels=corpus.classes,
        seed=settings.seed,
        lora_rank=settings.lora_rank,
        pretrained=settings.pretrained,
        readout=algorithm.readout,
        frozen=algorithm.frozen,
    )
    trainer = Trainer(
        classifier,
        optimizer=settings.optimizer,
        lr=settings.lr,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    parts = corpus.parts
    train = examples(parts.train, corpus, classifier)
    test = examples(parts.test, corpus, classifier)
    validation = examples(parts.validation, corpus, classifier) if len(parts.validation) else None
    train_sets = by_client(parts.train, train)
    validation_sets = by_client(parts.validation, validation) if validation else {}
    learners = {
        client: LocalLearner(trainer, own, validation_sets.get(client, own), stream)
        for stream, (client, own) in enumerate(train_sets.items())
    }
    return Bench(
        settings,
        corpus,
        trainer,
        classifier.tensors(),
        learners,
        train,
        test,
        validation or train,
        by_client(parts.test, test),
    )


def average(scores: Mapping[str, results.ScoreSummary]) -> results.ScoreSummary | None:
    """The mean over clients; None without any."""
    if not scores:
        return None
    columns = {
        key: [getattr(one, key) for one in scores.values()]
        for key in results.ScoreSummary.model_fields
    }
    return results.ScoreSummary(**{key: float(np.mean(column)) for key, column in columns.items()})
