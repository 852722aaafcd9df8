"""What a few devices that speak first, or say that they have nothing, do to all the others."""

from __future__ import annotations

import numpy as np
import pytest

from gradsense import errors
from gradsense.federation.algorithm import get_algorithm
from gradsense.federation.algorithms.gsfs import UNIT, RidgeSum
from gradsense.federation.bounds import Bounds
from gradsense.learning.statistics import STATISTICS
from tests.support.cloud import Cloud
from tests.support.toys import factor_of, tensor, update

HEAD = {"score.weight": np.zeros((2, 1), np.float32), "score.bias": np.zeros(2, np.float32)}


def test_who_speaks_first_and_faintly_does_not_decide_what_is_usual() -> None:
    cloud = Cloud(
        {"w": tensor(3.0, 4.0)},
        get_algorithm("fedbuff:updates=1"),
        seed=0,
        bounds=Bounds(1e3, norm_ratio=4.0),
    )
    honest, faint = "defgh", "abc"
    cloud.enrol(faint + honest)
    for client in faint:
        base = cloud.model.version
        cloud.receive(update(client, base_version=base, delta={"w": tensor(1e-9, 0.0)}), 0.0)
    refused = 0
    for sequence in (1, 2):
        for client in honest:
            delta, base = {"w": tensor(1.0, 0.0)}, cloud.model.version
            try:
                cloud.receive(
                    update(client, sequence=sequence, base_version=base, delta=delta), 1.0
                )
            except errors.NormTooLarge:
                refused += 1
    assert refused == 3, "until as many honest ones have tried"


def test_many_flows_said_to_be_read_are_no_reason_for_a_small_norm() -> None:
    algorithm = get_algorithm("gsfs")
    factor = factor_of(1, 8)
    said = [
        algorithm.norm(update(samples=samples, delta={STATISTICS: factor}), HEAD)
        for samples in (8, 2**52)
    ]
    assert said[0] == pytest.approx(said[1])


def test_statistics_of_no_record_are_refused_and_lower_nobody() -> None:
    algorithm = get_algorithm("gsfs")
    nothing = update(samples=1, delta={STATISTICS: np.zeros((1, 4), np.float32)})
    with pytest.raises(errors.BadSampleCount, match="statistics of 0"):
        algorithm.norm(nothing, HEAD)
    assert RidgeSum().weights({"a": 0.6, "b": 100.0, "c": 50.0})["b"] == 1 / 100


def test_features_beyond_what_a_float_counts_overflow_nothing() -> None:
    cloud = Cloud(HEAD, get_algorithm("gsfs:share=1.0"), seed=0, bounds=Bounds(1e30))
    cloud.enrol("ab")
    loud = factor_of(1, 8)
    loud[:, 0] *= 1e12
    cloud.receive(update("a", samples=8, delta={STATISTICS: loud}), 0.0)
    cloud.receive(update("b", samples=8, delta={STATISTICS: factor_of(2, 8)}), 0.0)
    total = cloud.server_state[STATISTICS] * UNIT
    assert (np.diag(total) >= 0).all()
    assert np.isfinite(cloud.model.tensors["score.weight"]).all()
