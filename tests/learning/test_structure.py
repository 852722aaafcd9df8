"""The structure of sufficient statistics: every honest factor passes, whatever rounds it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.errors import InconsistentStatistics, UpdateRefused
from gradsense.federation.transforms import codecs
from gradsense.federation.update import exactly
from gradsense.learning.statistics import factorise
from gradsense.learning.structure import check_structure

CLASSES, STATES, WIDTH = 4, 3, 20
#: What a layer norm of weight 1 gives, and half as much again.
LENGTHS = {"state_width": WIDTH, "state_length": 1.5 * WIDTH}


def rows_of(flows: int, seed: int, *, distinct: int | None = None) -> np.ndarray:
    """[x, 1, one-hot y]: normalised states; flows that are not distinct repeat some of them."""
    rng = np.random.default_rng(seed)
    distinct = min(flows, distinct or flows)
    # A few directions matter much more than the others, as those of a real base do.
    states = rng.normal(size=(distinct, STATES, WIDTH)) * np.geomspace(1, 0.02, WIDTH)
    states -= states.mean(axis=2, keepdims=True)
    states /= states.std(axis=2, keepdims=True)
    labels = np.eye(CLASSES)[rng.integers(CLASSES, size=distinct)]
    rows = np.hstack([states.reshape(distinct, -1), np.ones((distinct, 1)), labels])
    return np.asarray(rows[np.arange(flows) % distinct])


def sent(rows: np.ndarray, codec: str = "uniform", tolerance: float = 0.005) -> np.ndarray:
    one = codecs()[codec]
    factor = factorise(rows, tolerance)
    return one.unpack(one.pack({"r": factor}), exactly({"r": factor}))["r"]


def check(factor: np.ndarray, samples: int, codec: str = "uniform", **kwargs: object) -> None:
    given_ = {"off": codecs()[codec].off(factor), "tolerance": 0.005, **LENGTHS}
    check_structure(factor.astype(np.float32), samples, CLASSES, **(given_ | kwargs))


@settings(max_examples=150, deadline=None)
@given(
    flows=st.integers(1, 400),
    distinct=st.sampled_from([1, 2, 5, None]),
    seed=st.integers(0, 2**16),
    codec=st.sampled_from(["none", "fp16", "int8", "int4", "uniform"]),
    tolerance=st.sampled_from([0.0, 0.005, 0.05]),
)
def test_every_honest_factor_passes(
    flows: int, distinct: int | None, seed: int, codec: str, tolerance: float
) -> None:
    factor = sent(rows_of(flows, seed, distinct=distinct), codec, tolerance)
    check(factor, flows, codec, tolerance=tolerance)


def test_by_hand() -> None:
    # Two flows of one state of width 1: x = 3 of class 0, x = 2 of class 1.
    exact = {"off": 0.0, "tolerance": 0.0, "state_width": 1, "state_length": 7.0}
    honest = np.array([[3, 1, 1, 0], [2, 1, 0, 1]], np.float32)
    check_structure(honest, 2, 2, **exact)  # (9 + 4) / 2 = 6.5
    for told, wrong in {
        "of 2 flows, where it read 1": (honest, 1),
        "do not add up": (np.array([[3, 1, 1, 0], [2, 1, 0, 0]]), 2),
        "several labels": (np.array([[3, 1, 2, -1], [2, 1, 0, 1]]), 2),
        "state 1 has a square of 52 over 2 flows; .* 7 at most": (honest * [2, 1, 1, 1], 2),
    }.items():
        with pytest.raises(InconsistentStatistics, match=told):
            check_structure(wrong[0].astype(np.float32), wrong[1], 2, **exact)
    check_structure(honest, 3, 2, **exact)  # what weighs less than it could harms nobody
    check_structure((honest * [2, 1, 1, 1]).astype(np.float32), 2, 2, off=0.0, tolerance=0.0)


def test_its_reason() -> None:
    assert issubclass(InconsistentStatistics, UpdateRefused)
    assert InconsistentStatistics.reason == "inconsistent-statistics"


LABELS = slice(-CLASSES, None)
FEATURES = slice(0, STATES * WIDTH)


def part_times(columns: slice, by: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(factor: np.ndarray) -> np.ndarray:
        factor = factor.copy()
        factor[:, columns] *= by
        return factor

    return change


HOSTILE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "scaled": lambda factor: 30 * factor,
    "features scaled": part_times(FEATURES, 2.0),
    "one state scaled": part_times(slice(WIDTH), 3.0),
    "labels negated": part_times(LABELS, -1.0),
    "labels scaled": part_times(LABELS, 3.0),
    "labels missing": part_times(LABELS, 0.0),
    "no constant": part_times(slice(-CLASSES - 1, -CLASSES), 0.0),
    "constant": lambda factor: np.full_like(factor, 1.0),
    "random": lambda factor: np.random.default_rng(0).normal(size=factor.shape),
    "random of the same size": lambda factor: (
        np.random.default_rng(1).normal(size=factor.shape) * np.sqrt(np.square(factor).mean())
    ),
    "all labels at once": lambda factor: np.hstack(
        [factor[:, : -CLASSES - 1], np.repeat(factor[:, [-CLASSES - 1]], CLASSES + 1, axis=1)]
    ),
}


@pytest.mark.parametrize("flows", [13, 120, 1000])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_flows_can_have_is_refused(name: str, flows: int) -> None:
    factor = sent(rows_of(flows, 1))
    check(factor, flows)
    with pytest.raises(InconsistentStatistics):
        check(HOSTILE[name](factor).astype(np.float32), flows)
