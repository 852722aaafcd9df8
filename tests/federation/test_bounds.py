"""What one client may do to a run: how often, how much, how far; and how it is taken back."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense import errors
from gradsense.federation.algorithm import get_algorithm
from gradsense.federation.algorithms.gsfs import UNIT, RidgeSum
from gradsense.federation.bounds import Bounds
from gradsense.federation.contributions import Remembered
from gradsense.federation.events import Arrived, Broadcast, Refuse, Revoked, RolledBack, WakeAt
from gradsense.learning.statistics import STATISTICS
from tests.support.cloud import Cloud
from tests.support.toys import factor_of, tensor, update

HEAD = {"score.weight": np.zeros((2, 1), np.float32), "score.bias": np.zeros(2, np.float32)}


def weights_run(
    clients: str = "abcd", algorithm: str = "fedbuff:updates=1", **bounds: Any
) -> Cloud:
    start = {"w": tensor(3.0, 4.0)}
    cloud = Cloud(start, get_algorithm(algorithm), seed=0, bounds=Bounds(**bounds))
    cloud.enrol(clients)
    return cloud


def moved(client: str, sequence: int, by: float, base: int = 0, samples: int = 10) -> Any:
    delta = {"w": tensor(by, 0.0)}
    return update(client, sequence=sequence, base_version=base, samples=samples, delta=delta)


def read(client: str, sequence: int, seed: int, records: int = 4) -> Any:
    delta = {STATISTICS: factor_of(seed, records)}
    return update(client, sequence=sequence, samples=records, delta=delta)


# How often --------------------------------------------------------------------------------------


def test_models_are_no_closer_than_the_interval() -> None:
    cloud = weights_run(interval_s=10.0)
    assert cloud.receive(moved("a", 1, 0.1), 1.0) is not None, "the first needs no pause"
    effects = cloud.handle(Arrived(moved("b", 1, 0.1), 2.0))
    assert effects == [WakeAt(11.0), WakeAt(11.0)]
    assert cloud.deadline() == 11.0
    assert cloud.receive(moved("c", 1, 0.1), 10.9) is None
    model = cloud.receive(moved("d", 1, 0.1), 11.0)
    assert model is not None
    assert model.version == 2
    assert not cloud.pooled, "all that waited is in it"


@given(pauses=st.lists(st.floats(0.0, 30.0), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_a_client_uploads_no_more_than_its_allowance(pauses: list[float]) -> None:
    gap, burst = 5.0, 3
    cloud = weights_run(upload_gap_s=gap, burst=burst)
    at, taken = 0.0, list[float]()
    for sequence, pause in enumerate(pauses, 1):
        at += pause
        answer = cloud.handle(Arrived(moved("a", sequence, 0.1, cloud.model.version), at))
        if not isinstance(answer[0], Refuse):
            taken.append(at)
    for first, last in itertools.combinations(range(len(taken)), 2):
        # Within any span: a burst, and one for each gap.
        assert last - first + 1 <= burst + (taken[last] - taken[first]) / gap + 1e-6


def test_refused_updates_use_the_allowance_too() -> None:
    cloud = weights_run(upload_gap_s=5.0, burst=2)
    for sequence in (1, 2):
        with pytest.raises(errors.BadSampleCount):
            cloud.receive(moved("a", sequence, 0.1, samples=0), 0.0)
    with pytest.raises(errors.TooOften):
        cloud.receive(moved("a", 3, 0.1), 0.0)
    assert cloud.receive(moved("b", 1, 0.1), 0.0) is not None, "others are not concerned"
    assert cloud.receive(moved("a", 3, 0.1, 1), 5.1) is not None


def test_the_pool_is_bounded_by_client_and_in_bytes() -> None:
    cloud = weights_run(algorithm="fedbuff:updates=100", clients="".join(map(chr, range(40, 140))))
    cloud.bounds = Bounds(pooled=2, pool_bytes=4 * 8)
    for sequence in (1, 2):
        cloud.receive(moved("A", sequence, 0.1), 0.0)
    with pytest.raises(errors.PoolFull, match="2 of its updates"):
        cloud.receive(moved("A", 3, 0.1), 0.0)
    assert cloud.receive(moved("B", 1, 0.1), 0.0) is None
    assert cloud.receive(moved("C", 1, 0.1), 0.0) is not None, "full: aggregated as it is"


# How much, how far ------------------------------------------------------------------------------


def test_samples_count_up_to_the_bound() -> None:
    cloud = weights_run("ab", "fedavg", max_samples=100)
    cloud.receive(moved("a", 1, 1.0, samples=2**53), 0.0)
    model = cloud.receive(moved("b", 1, 0.0, samples=100), 0.0)
    assert model is not None
    assert model.tensors["w"][0] == pytest.approx(3.0 + 0.5), "half, not all"


def test_a_norm_is_measured_by_what_the_fleet_has_shown() -> None:
    cloud = weights_run(max_norm=1e3, norm_ratio=4.0)
    with pytest.raises(errors.NormTooLarge, match="20 is allowed"):  # the model's own is 5
        cloud.receive(moved("d", 1, 20.1), 0.0)
    for client, by in zip("abc", (1.0, 2.0, 3.0), strict=True):
        cloud.receive(moved(client, 1, by, cloud.model.version), 0.0)
    with pytest.raises(errors.NormTooLarge, match="8 is allowed"):  # four times their median
        cloud.receive(moved("d", 1, 8.1, cloud.model.version), 0.0)
    assert cloud.receive(moved("d", 1, 7.9, cloud.model.version), 0.0) is not None


def test_a_site_counts_for_no_more_records_than_most_sites_have() -> None:
    # The quarter's of 4 sites is the smallest, 10, rounded down to 8.
    assert RidgeSum().weights({"a": 1000.0, "b": 10.0, "c": 16.0, "d": 20.0}) == {
        "a": 0.008,
        "b": 0.8,
        "c": 0.5,
        "d": 0.4,
    }
    assert RidgeSum(cap=1.0).weights({"a": 15.0, "b": 2.0}) == {"a": 8 / 15, "b": 1.0}
    assert RidgeSum(cap=None).weights({"a": 1000.0, "b": 10.0}) == {"a": 1.0, "b": 1.0}
    assert RidgeSum().weights({}) == {}
    # What is exact in S holds for 512 records a site: of more, all count for less.
    assert RidgeSum().weights({"a": 8192.0, "b": 1024.0}) == {"a": 1 / 16, "b": 1 / 2}


def test_a_claim_of_a_thousand_records_counts_for_eight_of_the_others_ten() -> None:
    cloud = Cloud(HEAD, get_algorithm("gsfs:share=1.0"), seed=0)
    cloud.enrol("ab")
    cloud.receive(read("a", 1, 1, 1000), 0.0)
    cloud.receive(read("b", 1, 2, 10), 0.0)
    assert round(cloud.contributions["a"].records) == 1000
    (records,) = np.diag(cloud.server_state[STATISTICS] * UNIT)[1:2]
    assert records == pytest.approx(16, rel=1e-4)


# Taken back -------------------------------------------------------------------------------------


@given(order=st.permutations([c for c in "abx" for _ in range(3)]), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_revoked_client_never_spoke(order: list[str], data: st.DataObject) -> None:
    """Bit for bit, wherever in the story it is revoked, and across a restart.

    The sites read more and more, some much more than others: what each counts for changes.
    """
    cut = data.draw(st.integers(0, len(order)))
    sizes = data.draw(st.lists(st.integers(1, 60), min_size=10, max_size=10))
    clouds = [
        Cloud(HEAD, get_algorithm("gsfs:share=0.3"), seed=0, contributions=kept)
        for kept in (None, Remembered())
    ]
    for cloud, clients in zip(clouds, ("abx", "ab"), strict=True):
        cloud.enrol(clients)
    left = True
    for turn, client in enumerate([*order, "a"]):
        if turn == cut:
            clouds[0].handle(Revoked("x", 0.0))
            left = False
            values, groups = clouds[0].snapshot()
            clouds[0] = Cloud(HEAD, clouds[0].algorithm, seed=0)
            clouds[0].restore(values, groups)
        for cloud in clouds[: 1 if client == "x" else 2]:
            if client != "x" or left:
                cloud.handle(Arrived(read(client, turn + 1, turn, sizes[turn]), 0.0))
    revoked, other = clouds
    assert not left
    assert np.array_equal(revoked.server_state[STATISTICS], other.server_state[STATISTICS])
    total = revoked.algorithm.rule.total(revoked.model.tensors, revoked.contributions)
    assert np.array_equal(revoked.server_state[STATISTICS], total[STATISTICS])
    for name, values_of in other.model.tensors.items():
        assert np.array_equal(revoked.model.tensors[name], values_of), name


def test_what_waits_of_a_revoked_client_is_dropped() -> None:
    cloud = weights_run("ab", "fedavg")
    cloud.receive(moved("a", 1, 2.0), 0.0)
    assert cloud.handle(Revoked("a", 1.0)) == []
    model = cloud.receive(moved("b", 1, 1.0), 2.0)
    assert model is not None
    assert model.tensors["w"].tolist() == [4.0, 4.0]
    with pytest.raises(errors.NotInvited):
        cloud.receive(moved("a", 2, 1.0, 1), 3.0)


def test_a_rollback_is_a_new_model_with_old_values() -> None:
    cloud = weights_run("ab")
    first = cloud.model.tensors
    cloud.receive(moved("a", 1, 1.0), 0.0)
    cloud.receive(moved("b", 1, 1.0), 1.0)
    (effect,) = cloud.handle(RolledBack(first, {}, 2.0))
    assert isinstance(effect, Broadcast)
    assert (effect.model.version, effect.contributors) == (3, ())
    assert effect.model.tensors["w"].tolist() == [3.0, 4.0]
    with pytest.raises(errors.UnknownBase):  # it was trained on what was dropped
        cloud.receive(moved("a", 2, 1.0, base=2), 3.0)
    assert cloud.receive(moved("a", 2, 1.0, base=3), 3.0) is not None
