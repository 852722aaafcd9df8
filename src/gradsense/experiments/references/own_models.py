"""The same model without a federation: every client alone, and all flows in one place.

Both spend the same local compute as the federated algorithms.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from gradsense.experiments import results
from gradsense.experiments.references.reference import ReferenceMethod

if TYPE_CHECKING:
    from gradsense.experiments.bench import Bench
    from gradsense.experiments.run import OnProgress
    from gradsense.learning.learner import Tensors


class LocalOnly(ReferenceMethod):
    """Every client trains alone; there is no central model."""

    name: ClassVar[str] = "local-only"
    rank: ClassVar[int] = 0

    def run(self, bench: Bench, on_progress: OnProgress) -> tuple[results.Row, Tensors | None]:
        from gradsense.experiments.bench import average
        from gradsense.experiments.run import RunProgress

        settings, whole, own = bench.settings, {}, {}
        began, trained = time.monotonic(), 0
        for number, (client, learner) in enumerate(bench.learners.items()):
            steps = max(1, round(settings.epochs * learner.steps_per_epoch))
            tensors: Tensors = bench.initial
            for round_number in range(settings.rounds):
                tensors = learner.train(
                    tensors, first_step=round_number * steps, steps=steps
                ).tensors
            trained += round(settings.rounds * steps / learner.steps_per_epoch * learner.samples)
            whole[client] = bench.evaluate(tensors)[1]
            on_own = bench.own_score(client, tensors)
            if on_own is not None:
                own[client] = on_own
            mean = average(whole)
            assert mean is not None
            share = (number + 1) / len(bench.learners)
            on_progress(RunProgress(share, 0, mean.accuracy, mean.f1_macro))
        return self.row(
            bench,
            clients=average(whole),
            clients_own=average(own),
            samples_trained=trained,
            wall_s=time.monotonic() - began,
        ), None


class Centralised(ReferenceMethod):
    """The same model on the pooled flows, which the whole point is not to pool."""

    name: ClassVar[str] = "centralised"
    rank: ClassVar[int] = 1

    def run(self, bench: Bench, on_progress: OnProgress) -> tuple[results.Row, Tensors | None]:
        from gradsense.experiments.run import RunProgress

        settings, began = bench.settings, time.monotonic()
        per_epoch = -(-len(bench.train) // settings.batch_size)
        steps = max(1, round(settings.epochs * per_epoch))
        # One optimiser throughout: a reference must not be weaker than it could be.
        optimizer = bench.trainer.new_optimizer()
        tensors, curve = bench.initial, []
        for epoch in range(settings.rounds + 1):
            if epoch:
                tensors = bench.trainer.train(
                    bench.train,
                    tensors,
                    stream=len(bench.learners),
                    first_step=(epoch - 1) * steps,
                    steps=steps,
                    optimizer=optimizer,
                ).tensors
            now = bench.point(epoch, tensors)
            curve.append(now)
            on_progress(RunProgress(epoch / settings.rounds, epoch, now.accuracy, now.f1_macro))
        return self.row(
            bench,
            curve=curve,
            samples_trained=round(settings.rounds * settings.epochs * len(bench.train)),
            wall_s=time.monotonic() - began,
            **bench.central(tensors),
        ), tensors
