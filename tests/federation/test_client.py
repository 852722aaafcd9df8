"""The client's state machine."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from federation.toys import ToyLearner, tensor
from gradsense.federation.client import Client
from gradsense.federation.message import decode, encode
from gradsense.federation.pool import Quorum
from gradsense.federation.strategies import STRATEGIES, Strategy
from gradsense.federation.trigger import EveryVisit, Gradient, Silence
from gradsense.federation.update import GlobalModel

FEDAVG = STRATEGIES["fedavg"]


def model(version: int = 0, **tensors: float) -> GlobalModel:
    return GlobalModel(version, {n: tensor(v) for n, v in (tensors or {"w": 0.0}).items()})


def sensing(**fields: object) -> Strategy:
    base = dataclasses.replace(STRATEGIES["gsfs"], trigger=Silence(2), pool=Quorum())
    return dataclasses.replace(base, **fields)


def test_a_visit_is_e_epochs_and_gives_the_delta() -> None:
    client = Client("a", ToyLearner(stride=0.5), FEDAVG, visit_epochs=3)
    client.adopt(model(w=10.0))
    update = client.work(budget=100)
    assert update is not None
    assert update.delta["w"] == pytest.approx([3.0])  # 3 epochs × 2 steps × 0.5
    assert (update.base_version, update.sequence, update.samples) == (0, 1, 10)
    assert client.steps == 6


def test_the_budget_cuts_a_visit() -> None:
    client = Client("a", ToyLearner(), FEDAVG)
    client.adopt(model())
    assert client.plan(1) == (1, 0)
    update = client.work(budget=1)
    assert update is not None
    assert update.delta["w"] == pytest.approx([1.0])
    with pytest.raises(ValueError, match="at least one step"):
        client.work(budget=0)


def test_no_work_without_a_model() -> None:
    with pytest.raises(RuntimeError, match="no global model"):
        Client("a", ToyLearner(), FEDAVG).work(5)


def test_silent_visits_add_up() -> None:
    client = Client("a", ToyLearner(), sensing())
    client.adopt(model())
    assert client.work(100) is None
    update = client.work(100)
    assert update is not None
    assert update.reason == "silence"
    assert update.delta["w"] == pytest.approx([4.0])
    assert client.work(100) is None  # the count starts again, and so does the delta
    second = client.work(100)
    assert second is not None
    assert second.delta["w"] == pytest.approx([4.0])
    assert second.sequence == 2


def test_eq15_overwrites_local_progress_and_keep_local_does_not() -> None:
    for keep, expected in ((False, 50.0), (True, 52.0)):
        client = Client("a", ToyLearner(), sensing(keep_local=keep))
        client.adopt(model())
        client.work(100)  # unsent movement of 2
        client.adopt(model(1, w=50.0))
        assert client.local["w"] == pytest.approx([expected])
        assert client.reference["w"] == pytest.approx([50.0])


def test_what_was_sent_is_not_kept_twice() -> None:
    client = Client("a", ToyLearner(), dataclasses.replace(FEDAVG, keep_local=True))
    client.adopt(model())
    client.work(100)
    shared = model(1, w=5.0)
    client.adopt(shared)
    assert client.local["w"] is shared.tensors["w"]


def test_an_older_model_is_ignored() -> None:
    client = Client("a", ToyLearner(), FEDAVG)
    client.adopt(model(3, w=3.0))
    client.adopt(model(2, w=2.0))
    assert client.version == 3
    assert client.local["w"] == pytest.approx([3.0])


def test_a_partial_upload_keeps_the_remainder() -> None:
    """Layers that did not trigger stay behind and travel, whole, when they do."""

    class TwoLayers(ToyLearner):
        loud = ("x",)

        def train(self, tensors, *, first_step, steps, proximal=0.0):  # type: ignore[no-untyped-def]
            trained = super().train(tensors, first_step=first_step, steps=steps)
            norms = {n: (100.0 if n in self.loud and first_step else 1.0) for n in ("x", "y")}
            return dataclasses.replace(trained, gradient_norms=norms)

    learner = TwoLayers()
    strategy = sensing(trigger=Gradient(alpha=0.5, beta=0.1), partial=True)
    client = Client("a", learner, strategy)
    client.adopt(GlobalModel(0, {"x.w": tensor(0.0), "y.w": tensor(0.0)}))
    assert client.work(100) is None
    update = client.work(100)
    assert update is not None
    assert update.layers == ("x",)
    assert update.delta["x.w"] == pytest.approx([4.0])
    learner.loud = ("y",)
    learner.stride = 1.0
    update = client.work(100)
    assert update is not None
    assert update.layers == ("y",)
    assert update.delta["y.w"] == pytest.approx([6.0])  # three visits of 2, none sent before


def test_what_a_codec_rounds_away_travels_later() -> None:
    """Error feedback: the sum of what was sent stays within one message's error of the truth."""
    strategy = sensing(trigger=EveryVisit(), keep_local=True, codec="int4")
    client = Client("a", ToyLearner(), strategy)
    start = tensor(*np.linspace(0, 1, 50))
    learner_step = tensor(*np.linspace(-1, 1, 50) ** 3)

    class Uneven(ToyLearner):
        def train(self, tensors, *, first_step, steps, proximal=0.0):  # type: ignore[no-untyped-def]
            trained = super().train(tensors, first_step=first_step, steps=steps)
            return dataclasses.replace(trained, tensors={"w": tensors["w"] + learner_step})

    client.learner = Uneven()
    client.adopt(GlobalModel(0, {"w": start}))
    arrived = np.zeros(50)
    for visit in range(1, 9):
        update = client.work(100)
        assert update is not None
        got = decode(encode(update)).delta["w"]
        assert np.array_equal(got, update.delta["w"]), "both ends see the same rounding"
        arrived += got
        step = np.abs(got).max() / 7
        assert np.abs(arrived - visit * learner_step).max() <= step / 2 + 1e-5
    assert np.allclose(client.reference["w"], start + arrived, atol=1e-5)


def test_the_reference_score_is_taken_from_the_new_model() -> None:
    """Eq 7 compares with the broadcast: the goal is at 0, so the loss of θ is |θ|."""
    client = Client("a", ToyLearner(), STRATEGIES["gsfs-paper"])
    client.adopt(model(w=10.0))
    assert client.plan(100) == (2, 2)  # one pass for the reference, one after the visit
    update = client.work(100)
    assert client.sensing["0/reference"] == pytest.approx(12.0)  # moved by the upload
    assert update is not None
    assert update.reason == "performance"
    assert client.plan(100) == (2, 1)


def test_state_survives() -> None:
    def fresh() -> Client:
        return Client("a", ToyLearner(stride=0.25), STRATEGIES["gsfs"])

    first = fresh()
    first.adopt(model(w=1.0))
    first.work(100)
    second = fresh()
    second.restore(*first.state())
    for client in (first, second):
        client.adopt(model(1, w=-3.0))
    one, two = first.work(100), second.work(100)
    assert (one is None) == (two is None)
    assert np.array_equal(first.local["w"], second.local["w"])
    assert first.state()[0] == second.state()[0]


def test_every_visit_needs_no_scores() -> None:
    assert not EveryVisit().needs_score
