"""The reader over a real bundle says what the trainer says with torch, batch by batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gradsense.agent.reader import Reader, Rows
from gradsense.detection import bundle
from gradsense.errors import GradsenseError
from gradsense.federation.algorithm import Plan, get_algorithm
from gradsense.federation.client import Client
from gradsense.federation.update import GlobalModel
from gradsense.learning.learner import Learner, Tensors
from gradsense.learning.statistics import STATISTICS
from gradsense.learning.trainer import Examples, LocalLearner, Trainer
from gradsense.models import folder
from tests.support.heads import some_head

SIZE = 25
TOLERANCE = 1e-6


def rows_of(bundle_path: Path, batches: int, *, seed: int = 0) -> list[Rows]:
    """Batches of ``SIZE`` rows, some of them alike, each of one flow to four."""
    manifest, template = bundle.read(bundle_path)
    rng = np.random.default_rng(seed)
    pool = np.stack([rng.integers(0, len(f.phrases), 60) for f in template.fields], axis=1)
    found = []
    for _ in range(batches):
        rows = rng.integers(0, 60, SIZE)
        labels = rows % len(manifest.labels)
        found.append((pool[rows].astype(np.uint16), labels, rng.integers(1, 5, SIZE)))
    return found


class InOrder(Trainer):
    """Flows in the order in which they were given, a batch the same number of rows each time."""

    def __init__(self, *args: object, bounds: list[int], **settings: object) -> None:
        super().__init__(*args, **settings)  # type: ignore[arg-type]
        self.bounds = bounds

    def batches(self, flows: int, stream: int, first_step: int, steps: int):  # type: ignore[no-untyped-def]
        for step in range(first_step, first_step + steps):
            yield torch.arange(self.bounds[step], self.bounds[step + 1])


class ByTorch(LocalLearner):
    @property
    def steps_per_epoch(self) -> int:
        return len(self.trainer.bounds) - 1  # type: ignore[attr-defined]


def by_torch(model_dir: Path, batches: list[Rows]) -> LocalLearner:
    """The same flows, one by one, in batches of the same flows, for the torch model."""
    classifier = folder.load(model_dir)
    model = classifier.model
    model.base.requires_grad_(False)
    classifier = type(classifier)(
        model,
        classifier.tokenizer,
        labels=classifier.labels,
        template=classifier.template,
        base=classifier.base,
    )
    bounds = np.cumsum([0, *(int(weights.sum()) for _, _, weights in batches)]).tolist()
    trainer = InOrder(classifier, bounds=bounds)
    phrase_ids, labels, weights = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    distinct, index = np.unique(phrase_ids, axis=0, return_inverse=True)
    flows = np.repeat(np.arange(len(phrase_ids)), weights)
    examples = Examples(
        classifier.encode(classifier.template.texts(distinct)),
        torch.from_numpy(index.reshape(-1)[flows]),
        torch.from_numpy(labels[flows]),
    )
    return ByTorch(trainer, examples, examples, 0)


def test_it_observes_what_torch_observes(edge_bundle: Path) -> None:
    batches = rows_of(edge_bundle, 4)
    reader = Reader(edge_bundle, batches)
    other = by_torch(edge_bundle.parent / "run" / "model", batches)
    head = some_head(edge_bundle)
    for first, steps in ((0, 4), (1, 2)):
        ours = reader.observe(head, first_step=first, steps=steps, tolerance=TOLERANCE)
        theirs = other.observe(head, first_step=first, steps=steps, tolerance=TOLERANCE)
        flows = sum(int(weights.sum()) for _, _, weights in batches[first : first + steps])
        assert ours.flows == theirs.flows == flows
        moments, expected = ours.factor.T @ ours.factor, theirs.factor.T @ theirs.factor
        assert np.allclose(moments, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
        assert ours.gradient_norms == pytest.approx(theirs.gradient_norms, rel=1e-4)
    assert (reader.samples, reader.distinct) == (other.samples, other.distinct)
    assert reader.steps_per_epoch == 4


@pytest.mark.parametrize("scale", [0.0, 0.02])
def test_a_client_decides_alike_over_either(edge_bundle: Path, scale: float) -> None:
    batches = rows_of(edge_bundle, 4)
    learners: list[Learner] = [
        Reader(edge_bundle, batches),
        by_torch(edge_bundle.parent / "run" / "model", batches),
    ]
    found = []
    for learner in learners:
        client = Client("porch", learner, get_algorithm("gsfs"), local_epochs=0.5)
        client.adopt(GlobalModel(0, some_head(edge_bundle, scale=scale)))
        updates = [client.work(4), client.work(4)]
        found.append((updates, client.state.read, client.state.reported, client.plan(4)))
    (ours, *our_state), (theirs, *their_state) = found
    assert our_state == their_state
    assert our_state == [4, 4, Plan(0)]
    for one, other in zip(ours, theirs, strict=True):
        assert one is not None
        assert other is not None
        assert (one.reason, one.samples, one.sequence) == (
            other.reason,
            other.samples,
            other.sequence,
        )
        moments, expected = (u.delta[STATISTICS].T @ u.delta[STATISTICS] for u in (one, other))
        # What travels is rounded.
        assert np.allclose(moments, expected, atol=2e-2 * np.abs(expected).max())


def test_batches_that_come_later_are_steps(edge_bundle: Path) -> None:
    batches = rows_of(edge_bundle, 3)
    growing = batches[:1]
    reader = Reader(edge_bundle, growing)
    assert reader.samples == batches[0][2].sum()
    growing += batches[1:]
    assert reader.steps_per_epoch == 3
    assert reader.samples == sum(int(weights.sum()) for _, _, weights in batches)
    with pytest.raises(IndexError):
        reader.observe(some_head(edge_bundle), first_step=2, steps=2, tolerance=TOLERANCE)


def test_it_is_interrupted_between_blocks_and_keeps_nothing(edge_bundle: Path) -> None:
    class Enough(Exception):
        pass

    batches = rows_of(edge_bundle, 4)
    calls, until = 0, 2

    def between() -> None:
        nonlocal calls
        calls += 1
        if calls > until:
            raise Enough

    reader = Reader(edge_bundle, batches, between=between)
    client = Client("porch", reader, get_algorithm("gsfs"))
    client.adopt(GlobalModel(0, some_head(edge_bundle)))
    before = client.snapshot()
    with pytest.raises(Enough):
        client.work(4)
    assert client.snapshot() == before
    until = 1000
    update = client.work(4)
    undisturbed = Client("porch", Reader(edge_bundle, batches), get_algorithm("gsfs"))
    undisturbed.adopt(GlobalModel(0, some_head(edge_bundle)))
    expected = undisturbed.work(4)
    assert update is not None
    assert expected is not None
    assert update.packed == expected.packed


def test_it_trains_no_weights(edge_bundle: Path) -> None:
    reader = Reader(edge_bundle, rows_of(edge_bundle, 1))
    head = some_head(edge_bundle)
    with pytest.raises(GradsenseError, match="no torch model"):
        reader.train(head, first_step=0, steps=1)
    with pytest.raises(GradsenseError, match="no torch model"):
        reader.score(head)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "another run"),
        ({"score.weight": np.zeros((2, 1520), np.float32)}, "another run"),
        ({"score.weight": np.zeros((6, 8), np.float32)}, "reads 8 features"),
    ],
)
def test_a_model_of_another_run_is_refused(tensors: Tensors, said: str, edge_bundle: Path) -> None:
    reader = Reader(edge_bundle, rows_of(edge_bundle, 1))
    head = dict(some_head(edge_bundle)) | tensors if tensors else {}
    with pytest.raises(GradsenseError, match=said):
        reader.observe(head, first_step=0, steps=1, tolerance=TOLERANCE)
