"""SCAFFOLD by hand: one weight, two sites that pull in opposite directions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from gradsense.federation.algorithm import algorithms
from gradsense.federation.algorithms.scaffold import (
    controls_of,
    rejoined,
    weights_of,
)
from gradsense.federation.client import Client
from gradsense.learning.learner import Tensors, Trained
from tests.support.cloud import Cloud
from tests.support.toys import ToyLearner, tensor

SCAFFOLD = algorithms()["scaffold"]


@dataclass
class Valley(ToyLearner):
    """SGD at rate 0.1 on (w - goal)² / 2, one step an epoch."""

    steps_per_epoch: int = 1

    def train(
        self,
        tensors: Tensors,
        *,
        first_step: int,
        steps: int,
        proximal: float = 0.0,
        correction: Tensors | None = None,
    ) -> Trained:
        w, total = tensors["w"], np.zeros_like(tensors["w"])
        shift = 0.0 if correction is None else correction["w"]
        for _ in range(steps):
            gradient = w - np.float32(self.goal)
            total = total + gradient
            w = w - np.float32(0.1) * (gradient + shift)
        mean = {} if correction is None else {"w": total / np.float32(steps)}
        return Trained({"w": w}, {"w": 1.0}, 0.0, mean)


def test_weights_and_controls_part_and_rejoined() -> None:
    both = SCAFFOLD.opened({"w": tensor(3.0)})
    assert list(both) == ["w", "control/w"]
    assert weights_of(both).keys() == controls_of(both).keys() == {"w"}
    assert rejoined(weights_of(both), controls_of(both)).keys() == both.keys()
    plain = {"w": tensor(1.0)}
    assert algorithms()["fedavg"].weights(plain) is plain


def test_two_rounds_by_hand() -> None:
    cloud = Cloud({"w": tensor(0.0)}, SCAFFOLD, seed=0)
    sites = {
        "a": Client("a", Valley(goal=1.0), SCAFFOLD),
        "b": Client("b", Valley(goal=-3.0), SCAFFOLD),
    }
    model = cloud.enrol(sites)
    for _ in range(2):
        for site in sites.values():
            site.adopt(model)
            update = site.work(10)
            assert update is not None
            model = cloud.receive(update, 0.0) or model
    # Round 1, c = c_k = 0: gradients -1 and 3, so w = 0.1 and -0.3, mean -0.1; c = (-1 + 3) / 2.
    assert sites["a"].version == 1
    # Round 2 at w = -0.1: gradients -1.1 and 2.9, corrected by 1 - (-1) and 1 - 3 to 0.9 each:
    # both go the fleet's way, to -0.19.
    assert model.version == 2
    assert model.tensors["w"] == pytest.approx([-0.19])
    assert sites["a"].state.control["w"] == pytest.approx([-1.1])
    assert sites["a"].state.reference["control/w"] == pytest.approx([1.0 + (-1.1 - -1.0)])
    assert model.tensors["control/w"] == pytest.approx([0.9])


def test_controls_move_by_the_share_that_spoke() -> None:
    cloud = Cloud({"w": tensor(0.0)}, SCAFFOLD, seed=0)
    sites = [Client(name, Valley(goal=-1.0), SCAFFOLD) for name in "ab"]
    model = cloud.enrol(["a", "b"])
    for site in sites:
        site.adopt(model)
        update = site.work(10)
        assert update is not None
        model = cloud.receive(update, 0.0) or model
    cloud.leave("b")
    sites[0].adopt(model)
    update = sites[0].work(10)
    assert update is not None
    model = cloud.receive(update, 0.0) or model
    # c was 1 (both gradients at w = 0 were 1). Then a alone reports its gradient at -0.1, 0.9,
    # and c moves by half of that change.
    assert model.tensors["control/w"] == pytest.approx([0.95])


def test_a_site_remembers_its_control() -> None:
    site = Client("a", Valley(goal=1.0), SCAFFOLD)
    site.adopt(Cloud({"w": tensor(0.0)}, SCAFFOLD, seed=0).enrol(["a"]))
    site.work(10)
    again = Client("a", Valley(goal=1.0), SCAFFOLD)
    again.restore(*site.snapshot())
    assert again.state.control["w"] == pytest.approx([-1.0])
