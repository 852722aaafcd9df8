"""The coordinator's state machine: pooling, refusing, deadlines."""

from __future__ import annotations

import contextlib
import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense import errors
from gradsense.federation.algorithm import algorithms, get_algorithm
from gradsense.federation.algorithms.gsfs import UNIT
from gradsense.federation.bounds import Bounds
from gradsense.federation.events import Arrived, Broadcast, Ticked, WakeAt
from gradsense.federation.pools import Quorum
from tests.support.cloud import Cloud
from tests.support.toys import tensor, update

#: Two classes over one feature: moments of width 1 + 1 + 2.
HEAD = {"score.weight": np.zeros((2, 1), np.float32), "score.bias": tensor(0.0, 0.0)}
FACTOR = np.array([[0, 1, 1, 0], [1, 1, 0, 1]], dtype=np.float32)


def coordinator(algorithm: str = "fedavg", clients: str = "abc", **options: float) -> Cloud:
    start = HEAD if get_algorithm(algorithm).trains is False else {"w": tensor(0.0)}
    made = Cloud(start, get_algorithm(algorithm), seed=0, **options)
    made.enrol(clients)
    return made


@pytest.mark.parametrize(("among", "version"), [("all", 0), ("connected", 1)])
def test_eq12_counts_clients_that_have_left(among: str, version: int) -> None:
    """Five joined and three left: 60 % of all are three, of the connected two."""
    cloud = Cloud({"w": tensor(0.0)}, get_algorithm(f"gsfs-paper:among={among}"), seed=0)
    cloud.enrol("abcde")
    for name in "cde":
        cloud.leave(name)
    for name in "ab":
        cloud.receive(update(name), 2.0)
    assert cloud.model.version == version


def test_eq3_n_is_every_client_of_the_fleet() -> None:
    """A third client left before it sent: its part of the mean is zero for the paper's FedOpt."""
    moved = {}
    for name in ("fedopt", "fedadam"):
        cloud = Cloud({"w": tensor(0.0)}, get_algorithm(f"{name}:beta1=0"), seed=0)
        cloud.enrol("abc")
        cloud.leave("c")
        for client in "ab":
            cloud.receive(update(client, delta={"w": tensor(3.0)}), 2.0)
        moved[name] = cloud.server_state["m:w"].tolist()
    assert moved == {"fedopt": [-2.0], "fedadam": [-3.0]}


def test_a_round_of_fedavg() -> None:
    cloud = coordinator()
    assert cloud.receive(update("a"), 1.0) is None
    assert cloud.receive(update("b"), 2.0) is None
    model = cloud.receive(update("c", delta={"w": tensor(4.0)}), 3.0)
    assert model is not None
    assert model.version == 1
    assert model.tensors["w"] == pytest.approx([2.0])
    assert cloud.pooled == []


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"client": "stranger"}, errors.NotInvited),
        ({"base_version": 1}, errors.UnknownBase),
        ({"base_version": -1}, errors.UnknownBase),
        ({"samples": 0}, errors.BadSampleCount),
        ({"sequence": 0}, errors.Replay),
        ({"delta": {}}, errors.UnknownTensor),
        ({"delta": {"v": tensor(1.0)}}, errors.UnknownTensor),
        ({"delta": {"w": tensor(1.0, 2.0)}}, errors.WrongShape),
        ({"delta": {"w": np.array([1.0])}}, errors.WrongDtype),
        ({"delta": {"w": tensor(float("nan"))}}, errors.NotFinite),
        ({"delta": {"w": tensor(float("inf"))}}, errors.NotFinite),
    ],
)
def test_refusals_are_named_counted_and_change_nothing(
    changes: dict[str, object], error: type[errors.UpdateRefused]
) -> None:
    cloud = coordinator()
    before = cloud.snapshot()
    fields = {"client": "a"} | changes
    with pytest.raises(error):
        cloud.receive(update(**fields), 0.0)
    after = cloud.snapshot()
    assert after[0].pop("refused") == {error.reason: 1}
    assert before[0].pop("refused") == {}
    # Nobody waits for an answer that was refused; of a repeat there may be another one.
    still_awaited = error in (errors.NotInvited, errors.Replay)
    assert after[0].pop("excused") == ([] if still_awaited else ["a"])
    assert before[0].pop("excused") == []
    assert after == before


def test_a_replay_is_refused() -> None:
    cloud = coordinator()
    cloud.receive(update("a"), 0.0)
    with pytest.raises(errors.Replay):
        cloud.receive(update("a"), 0.0)
    assert cloud.refused == {"replay": 1}


def test_a_late_answer_to_a_synchronous_round_is_refused() -> None:
    cloud = coordinator(clients="a")
    cloud.receive(update("a"), 0.0)
    with pytest.raises(errors.UnknownBase):
        cloud.receive(update("a", sequence=2, base_version=0), 1.0)


def test_stale_updates_are_counted_where_the_strategy_is_asynchronous() -> None:
    cloud = coordinator("gsfs-paper", clients="ab", max_staleness=1)
    for sequence in (1, 2, 3):
        cloud.receive(update("a", sequence=sequence, base_version=sequence - 1), 0.0)
        if sequence < 3:
            cloud.receive(update("b", sequence=sequence, base_version=sequence - 1), 0.0)
    assert cloud.model.version == 2
    model = cloud.receive(update("b", sequence=3, base_version=1), 0.0)
    assert model is not None
    with pytest.raises(errors.UnknownBase):
        cloud.receive(update("b", sequence=4, base_version=1), 0.0)


def test_quorum_and_deadline() -> None:
    algorithm = dataclasses.replace(algorithms()["gsfs-tune"], pool=Quorum(0.6, deadline_s=30.0))
    cloud = Cloud({"w": tensor(0.0)}, algorithm, seed=0)
    cloud.enrol("abcde")
    assert cloud.deadline() is None
    assert cloud.tick(1e9) is None  # nothing to aggregate
    cloud.receive(update("a"), 10.0)
    assert cloud.deadline() == 40.0
    assert cloud.tick(39.9) is None
    model = cloud.tick(40.0)
    assert model is not None
    assert model.version == 1
    assert cloud.deadline() is None


def test_the_papers_pool_waits_for_ever() -> None:
    cloud = coordinator("gsfs-paper", clients="abcde")
    cloud.receive(update("a"), 0.0)
    assert cloud.deadline() is None
    assert cloud.tick(1e12) is None


def test_who_leaves_is_not_waited_for_and_what_it_sent_counts() -> None:
    cloud = coordinator()
    cloud.receive(update("a"), 0.0)
    cloud.receive(update("b", delta={"w": tensor(3.0)}), 0.0)
    assert cloud.leave("a") is None
    model = cloud.leave("c")
    assert model is not None
    assert model.tensors["w"] == pytest.approx([2.0])
    assert cloud.join("c").version == 1


def test_a_refused_client_does_not_stop_the_round() -> None:
    cloud = coordinator()
    cloud.receive(update("a"), 0.0)
    cloud.receive(update("b"), 0.0)
    with pytest.raises(errors.NotFinite):
        cloud.receive(update("c", delta={"w": tensor(float("nan"))}), 0.0)
    assert cloud.model.version == 1
    assert cloud.model.tensors["w"] == pytest.approx([1.0])
    assert cloud.receive(update("a", sequence=2, base_version=1), 0.0) is None
    assert cloud.receive(update("b", sequence=2, base_version=1), 0.0) is None  # c is awaited again


def test_participation_is_drawn_and_reproducible() -> None:
    names = [f"c{i}" for i in range(10)]
    drawn = []
    for _ in range(2):
        cloud = Cloud({"w": tensor(0.0)}, algorithms()["fedavg"], seed=3, participation=0.3)
        invited = cloud.enrol(names).participants
        assert invited is not None
        assert len(invited) == 3
        with pytest.raises(errors.NotInvited):
            cloud.receive(update(next(n for n in names if n not in invited)), 0.0)
        drawn.append(invited)
    assert drawn[0] == drawn[1]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(algorithms())),
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 2), st.floats(-2, 2)), max_size=25),
    st.integers(0, 24),
)
def test_a_restored_coordinator_goes_on_alike(
    name: str, arrivals: list[tuple[str, int, float]], cut: int
) -> None:
    """Whatever arrives, wherever it is cut: versions only grow, a restart changes nothing."""
    moments = algorithms()[name].trains is False

    def said(value: float) -> dict[str, np.ndarray]:
        return {"statistics": FACTOR * tensor(3 + value)} if moments else {"w": tensor(value)}

    def feed(cloud: Cloud, first: int, last: int) -> None:
        for number, (client, back, value) in enumerate(arrivals[first:last], start=first):
            sent = update(
                client,
                sequence=number + 1,
                base_version=max(0, cloud.model.version - back),
                delta=said(value),
            )
            version = cloud.model.version
            with contextlib.suppress(errors.UpdateRefused):
                cloud.receive(sent, float(number))
            cloud.tick(float(number))
            assert version <= cloud.model.version <= version + 1

    whole = coordinator(name, clients="abcd")
    feed(whole, 0, len(arrivals))
    first = coordinator(name, clients="abcd")
    feed(first, 0, cut)
    second = coordinator(name, clients="abcd")
    second.restore(*first.snapshot())
    feed(second, cut, len(arrivals))
    assert second.snapshot()[0] == whole.snapshot()[0]
    for key, value in whole.model.tensors.items():
        assert np.array_equal(second.model.tensors[key], value)
    for key, sums in whole.server_state.items():
        assert np.array_equal(second.server_state[key], sums)


# Moments ------------------------------------------------------------------------------------


def test_statistics_become_the_head_by_hand() -> None:
    algorithm = get_algorithm("gsfs:regularisation=0.5:sharpness=1")
    cloud = Cloud(HEAD, algorithm, seed=0)
    cloud.enrol("a")
    model = cloud.receive(update("a", delta={"statistics": FACTOR}), 0.0)
    assert model is not None
    # x = 0 of the first class, x = 1 of the second: see learning/test_statistics.py.
    assert model.tensors["score.weight"] == pytest.approx(np.array([[-0.5], [0.5]]))
    assert model.tensors["score.bias"] == pytest.approx([0.75, 0.25])


def test_statistics_of_any_age_up_to_the_limit_count_once_and_whole() -> None:
    cloud = coordinator("gsfs:cap=null", clients="a")
    for sequence in (1, 2, 3):
        cloud.receive(update("a", sequence=sequence, delta={"statistics": FACTOR}), 0.0)
    assert cloud.server_state["statistics"] * UNIT == pytest.approx(3 * FACTOR.T @ FACTOR, abs=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_statistics_of_up_to_as_many_rows_as_columns_are_taken(rows: int) -> None:
    cloud = coordinator("gsfs", clients="abcdef")
    factor = np.array([[1, 1, 0, 1]] * rows, np.float32)
    cloud.receive(update("a", delta={"statistics": factor}), 0.0)
    assert len(cloud.pooled) == 1


@pytest.mark.parametrize(
    ("delta", "error", "says"),
    [
        ({"statistics": np.ones((2, 5), np.float32)}, errors.WrongShape, "(2, 5), not (4, 4)"),
        ({"statistics": np.ones((2, 3), np.float32)}, errors.WrongShape, "(2, 3), not (4, 4)"),
        ({"statistics": np.ones((5, 4), np.float32)}, errors.WrongShape, "(5, 4), not (4, 4)"),
        ({"statistics": np.ones((0, 4), np.float32)}, errors.WrongShape, "(0, 4), not (4, 4)"),
        ({"statistics": np.ones(4, np.float32)}, errors.WrongShape, "(4,), not (4, 4)"),
        (
            {"statistics": np.ones((1, 4, 1), np.float32)},
            errors.WrongShape,
            "(1, 4, 1)",
        ),
        ({"statistics": np.float32(1)}, errors.WrongShape, "(), not (4, 4) or fewer rows"),
        ({"statistics": np.ones((2, 4))}, errors.WrongDtype, "float64"),
        ({"statistics": FACTOR * np.float32("nan")}, errors.NotFinite, "NaN"),
        ({"statistics": FACTOR + np.float32("inf")}, errors.NotFinite, "NaN"),
        ({"score.bias": tensor(1.0, 1.0)}, errors.UnknownTensor, "'score.bias'"),
        ({"statistics": FACTOR, "w": tensor(1.0)}, errors.UnknownTensor, "'w'"),
        ({}, errors.UnknownTensor, "no tensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_statistics_that_do_not_fit_are_refused_by_name(
    delta: dict[str, np.ndarray], error: type[errors.UpdateRefused], says: str
) -> None:
    cloud = coordinator("gsfs", clients="a")
    with pytest.raises(error, match=re.escape(says)):
        cloud.receive(update("a", delta=delta), 0.0)
    assert cloud.refused == {error.reason: 1}
    assert cloud.model.version == 0
    assert not cloud.server_state["statistics"].any()


def test_a_strategy_of_deltas_takes_no_moments() -> None:
    cloud = coordinator("fedavg", clients="a")
    with pytest.raises(errors.UnknownTensor, match="'statistics' is none"):
        cloud.receive(update("a", delta={"statistics": FACTOR}), 0.0)


@pytest.mark.parametrize(
    "factor",
    [np.zeros((1, 4)), [[0, 1, 1, 0]], [[1, 0, 0, 1]]],
    ids=["nothing", "a feature that is always 0", "no constant"],
)
def test_one_odd_site_does_not_stop_the_cloud(factor: object) -> None:
    cloud = coordinator("gsfs", clients="a")
    delta = {"statistics": np.asarray(factor, dtype=np.float32)}
    with contextlib.suppress(errors.UpdateRefused):
        cloud.receive(update("a", delta=delta), 0.0)
    assert all(np.isfinite(value).all() for value in cloud.model.tensors.values())


# How loud one site may be --------------------------------------------------------------------


def test_an_update_may_move_the_model_only_so_far() -> None:
    cloud = coordinator(bounds=Bounds(max_norm=5.0))
    cloud.receive(update("a", delta={"w": tensor(5.0)}), 0.0)
    with pytest.raises(errors.NormTooLarge, match=r"norm of 5\.1; 5 is allowed"):
        cloud.receive(update("b", delta={"w": tensor(5.1)}), 0.0)
    assert cloud.refused == {"norm-too-large": 1}


def test_statistics_weigh_no_more_than_the_flows_that_they_are_of() -> None:
    cloud = coordinator("gsfs")
    # FACTOR has two rows with a constant and a label each: two flows. Three times as loud it is
    # of eighteen.
    with pytest.raises(errors.NormTooLarge, match="statistics of 18 records, where it read 2"):
        cloud.receive(update("a", samples=2, delta={"statistics": 3 * FACTOR}), 0.0)
    cloud.receive(update("a", samples=15, delta={"statistics": 3 * FACTOR}), 0.0)  # rounding
    assert cloud.refused == {"norm-too-large": 1}


def test_statistics_that_no_flows_can_have_are_refused() -> None:
    cloud = coordinator("gsfs")
    with pytest.raises(errors.InconsistentStatistics, match="labels do not add up"):
        cloud.receive(update("a", delta={"statistics": FACTOR * tensor(1, 1, 1, -1)}), 0.0)
    assert cloud.refused == {"inconsistent-statistics": 1}


def test_the_norm_of_moments_is_that_of_a_flow() -> None:
    # ‖FACTOR‖² = 5 over 2 flows: a root mean square of 1.58.
    with pytest.raises(errors.NormTooLarge, match=r"norm of 1\.581"):
        coordinator("gsfs", bounds=Bounds(max_norm=1.5)).receive(
            update("a", samples=2, delta={"statistics": FACTOR}), 0.0
        )
    coordinator("gsfs", bounds=Bounds(max_norm=1.6)).receive(
        update("a", samples=2, delta={"statistics": FACTOR}), 0.0
    )


def test_statistics_have_no_age() -> None:
    cloud = coordinator("gsfs", max_staleness=1)
    for sequence in range(1, 6):
        moments = {"statistics": FACTOR}
        version = cloud.model.version
        cloud.receive(
            update("a", sequence=sequence, base_version=version, samples=2, delta=moments), 0.0
        )
    assert cloud.model.version == 5
    cloud.receive(update("b", base_version=0, samples=2, delta={"statistics": FACTOR}), 0.0)
    # Nor does it matter that a coordinator restored from a backup has forgotten their base.
    cloud.receive(update("c", base_version=99, samples=2, delta={"statistics": FACTOR}), 0.0)
    assert cloud.model.version == 7


def test_a_deadline_counts_from_the_first_of_two_updates_at_different_times() -> None:
    cloud = Cloud({"w": tensor(0.0)}, get_algorithm("gsfs-tune:share=1:deadline_s=30"), seed=0)
    cloud.enrol("abc")
    first = cloud.handle(Arrived(update("a"), 5.0))
    assert first == [WakeAt(35.0)]
    assert cloud.handle(Arrived(update("b"), 20.0)) == []  # it is woken once
    assert cloud.deadline() == 35.0
    assert cloud.handle(Ticked(34.9)) == []
    (broadcast,) = cloud.handle(Ticked(35.0))
    assert isinstance(broadcast, Broadcast)
    assert broadcast.contributors == ("a", "b")
    assert cloud.deadline() is None
    assert cloud.handle(Arrived(update("c", base_version=1), 50.0)) == [WakeAt(80.0)]
