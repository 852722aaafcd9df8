"""The rows that keep a comparison honest: no federation, all data in one place, no language model.

Local-only and centralised training spend the same local compute as the federated algorithms.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from gradsense.experiments import forest as random_forest
from gradsense.experiments import results
from gradsense.experiments.bench import Bench, average
from gradsense.experiments.run import OnProgress, RunProgress, write_model
from gradsense.experiments.rundir import RESULTS, claim
from gradsense.learning.learner import Tensors
from gradsense.prompts.templates import get_template


def local_only(bench: Bench, on_progress: OnProgress) -> tuple[results.Row, Tensors | None]:
    """Every client trains alone; there is no central model."""
    settings, whole, own = bench.settings, {}, {}
    began, trained = time.monotonic(), 0
    for number, (client, learner) in enumerate(bench.learners.items()):
        steps = max(1, round(settings.epochs * learner.steps_per_epoch))
        tensors: Tensors = bench.initial
        for round_number in range(settings.rounds):
            tensors = learner.train(tensors, first_step=round_number * steps, steps=steps).tensors
        trained += round(settings.rounds * steps / learner.steps_per_epoch * learner.samples)
        whole[client] = bench.evaluate(tensors)[1]
        on_own = bench.own_score(client, tensors)
        if on_own is not None:
            own[client] = on_own
        mean = average(whole)
        assert mean is not None
        share = (number + 1) / len(bench.learners)
        on_progress(RunProgress(share, 0, mean.accuracy, mean.f1_macro))
    return _row(
        bench,
        "local-only",
        clients=average(whole),
        clients_own=average(own),
        samples_trained=trained,
        wall_s=time.monotonic() - began,
    ), None


def centralised(bench: Bench, on_progress: OnProgress) -> tuple[results.Row, Tensors | None]:
    """The same model on the pooled flows, which the whole point is not to pool."""
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
    return _row(
        bench,
        "centralised",
        curve=curve,
        samples_trained=round(settings.rounds * settings.epochs * len(bench.train)),
        wall_s=time.monotonic() - began,
        **bench.central(tensors),
    ), tensors


def forest(bench: Bench, on_progress: OnProgress) -> tuple[results.Row, Tensors | None]:
    """A random forest on the pooled raw features of what the model reads as text."""
    began, parts = time.monotonic(), bench.corpus.parts
    predicted = random_forest.predict(
        parts.train,
        parts.test,
        bench.corpus.classes,
        seed=bench.settings.seed,
        context=get_template(bench.settings.template).needs_context,
    )
    row = _row(bench, "forest", wall_s=time.monotonic() - began, **bench.verdicts(predicted))
    assert row.central is not None
    on_progress(RunProgress(1.0, 0, row.central.accuracy, row.central.f1_macro))
    return row, None


def _row(bench: Bench, name: str, **fields: object) -> results.Row:
    return results.Row.model_validate(
        {
            "algorithm": name,
            "kind": "reference",
            "seed": bench.settings.seed,
            "rounds": bench.settings.rounds,
            "synthetic": bench.corpus.synthetic,
            "leakage": bench.corpus.leakage,
            **fields,
        }
    )


Reference = Callable[[Bench, OnProgress], tuple[results.Row, Tensors | None]]

#: Every reference row by name.
REFERENCES: dict[str, Reference] = {
    "local-only": local_only,
    "centralised": centralised,
    "forest": forest,
}


def run_reference(
    bench: Bench, name: str, out: Path, *, resume: bool, on_progress: OnProgress
) -> results.Row:
    """One reference into ``out``; a finished one is only read.

    Raises:
        InputError: as ``run.train``.
    """
    finished = claim(out, bench.settings, bench.corpus, resume=resume)
    if finished is not None:
        return finished
    row, tensors = REFERENCES[name](bench, on_progress)
    if tensors is not None:
        write_model(bench, tensors, out, row)
    results.save([row], out / RESULTS)
    return row
