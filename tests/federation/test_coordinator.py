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
from gradsense.federation.coordinator import Coordinator
from gradsense.federation.pool import Quorum
from gradsense.federation.strategies import STRATEGIES, get_strategy
from tests.support.toys import tensor, update

#: Two classes over one feature: moments of width 1 + 1 + 2.
HEAD = {"score.weight": np.zeros((2, 1), np.float32), "score.bias": tensor(0.0, 0.0)}
FACTOR = np.array([[0, 1, 1, 0], [1, 1, 0, 1]], dtype=np.float32)


def coordinator(strategy: str = "fedavg", clients: str = "abc", **options: float) -> Coordinator:
    start = HEAD if STRATEGIES[strategy].payload == "moments" else {"w": tensor(0.0)}
    made = Coordinator(start, STRATEGIES[strategy], seed=0, **options)
    made.enrol(clients)
    return made


def test_a_round_of_fedavg() -> None:
    cloud = coordinator()
    assert cloud.receive(update("a"), 1.0) is None
    assert cloud.receive(update("b"), 2.0) is None
    model = cloud.receive(update("c", delta={"w": tensor(4.0)}), 3.0)
    assert model is not None
    assert model.version == 1
    assert model.tensors["w"] == pytest.approx([2.0])
    assert cloud.entries == []


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
    before = cloud.state()
    fields = {"client": "a"} | changes
    with pytest.raises(error):
        cloud.receive(update(**fields), 0.0)
    after = cloud.state()
    assert after[0].pop("refused") == {error.reason: 1}
    assert before[0].pop("refused") == {}
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
    strategy = dataclasses.replace(STRATEGIES["gsfs-tune"], pool=Quorum(0.6, deadline_s=30.0))
    cloud = Coordinator({"w": tensor(0.0)}, strategy, seed=0)
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
    model = cloud.excuse("c")
    assert model is not None
    assert model.tensors["w"] == pytest.approx([1.0])
    assert cloud.receive(update("a", sequence=2, base_version=1), 0.0) is None
    assert cloud.receive(update("b", sequence=2, base_version=1), 0.0) is None  # c is awaited again


def test_participation_is_drawn_and_reproducible() -> None:
    names = [f"c{i}" for i in range(10)]
    drawn = []
    for _ in range(2):
        cloud = Coordinator({"w": tensor(0.0)}, STRATEGIES["fedavg"], seed=3, participation=0.3)
        invited = cloud.enrol(names).participants
        assert invited is not None
        assert len(invited) == 3
        with pytest.raises(errors.NotInvited):
            cloud.receive(update(next(n for n in names if n not in invited)), 0.0)
        drawn.append(invited)
    assert drawn[0] == drawn[1]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(STRATEGIES)),
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 2), st.floats(-2, 2)), max_size=25),
    st.integers(0, 24),
)
def test_a_restored_coordinator_goes_on_alike(
    name: str, arrivals: list[tuple[str, int, float]], cut: int
) -> None:
    """Whatever arrives, wherever it is cut: versions only grow, a restart changes nothing."""
    moments = STRATEGIES[name].payload == "moments"

    def said(value: float) -> dict[str, np.ndarray]:
        return {"moments": FACTOR * tensor(3 + value)} if moments else {"w": tensor(value)}

    def feed(cloud: Coordinator, first: int, last: int) -> None:
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
    second.restore(*first.state())
    feed(second, cut, len(arrivals))
    assert second.state()[0] == whole.state()[0]
    for key, value in whole.model.tensors.items():
        assert np.array_equal(second.model.tensors[key], value)
    for key, sums in whole.server_state.items():
        assert np.array_equal(second.server_state[key], sums)


# Moments ------------------------------------------------------------------------------------


def test_moments_become_the_head_by_hand() -> None:
    strategy = get_strategy("gsfs:regularisation=0.5:sharpness=1")
    cloud = Coordinator(HEAD, strategy, seed=0)
    cloud.enrol("a")
    model = cloud.receive(update("a", delta={"moments": FACTOR}), 0.0)
    assert model is not None
    # x = 0 of the first class, x = 1 of the second: see learning/test_moments.py.
    assert model.tensors["score.weight"] == pytest.approx(np.array([[-0.5], [0.5]]))
    assert model.tensors["score.bias"] == pytest.approx([0.75, 0.25])


def test_moments_of_any_age_up_to_the_limit_count_once_and_whole() -> None:
    cloud = coordinator("gsfs", clients="a")
    for sequence in (1, 2, 3):
        cloud.receive(update("a", sequence=sequence, delta={"moments": FACTOR}), 0.0)
    assert cloud.server_state["moments"] == pytest.approx(3 * FACTOR.T @ FACTOR)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_moments_of_up_to_as_many_rows_as_columns_are_taken(rows: int) -> None:
    cloud = coordinator("gsfs", clients="abcdef")
    factor = np.ones((rows, 4), np.float32)
    cloud.receive(update("a", delta={"moments": factor}), 0.0)
    assert len(cloud.entries) == 1


@pytest.mark.parametrize(
    ("delta", "error", "says"),
    [
        ({"moments": np.ones((2, 5), np.float32)}, errors.WrongShape, "(2, 5), not (2, 4)"),
        ({"moments": np.ones((2, 3), np.float32)}, errors.WrongShape, "(2, 3), not (2, 4)"),
        ({"moments": np.ones((5, 4), np.float32)}, errors.WrongShape, "(5, 4), not (4, 4)"),
        ({"moments": np.ones((0, 4), np.float32)}, errors.WrongShape, "(0, 4), not (1, 4)"),
        ({"moments": np.ones(4, np.float32)}, errors.WrongShape, "(4,), not (4, 4)"),
        ({"moments": np.ones((1, 4, 1), np.float32)}, errors.WrongShape, "(1, 4, 1), not (1, 4)"),
        ({"moments": np.float32(1)}, errors.WrongShape, "(), not (1, 4)"),
        ({"moments": np.ones((2, 4))}, errors.WrongDtype, "float64"),
        ({"moments": FACTOR * np.float32("nan")}, errors.NotFinite, "NaN"),
        ({"moments": FACTOR + np.float32("inf")}, errors.NotFinite, "NaN"),
        ({"score.bias": tensor(1.0, 1.0)}, errors.UnknownTensor, "'score.bias'"),
        ({"moments": FACTOR, "w": tensor(1.0)}, errors.UnknownTensor, "'w'"),
        ({}, errors.UnknownTensor, "no tensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_moments_that_do_not_fit_are_refused_by_name(
    delta: dict[str, np.ndarray], error: type[errors.UpdateRefused], says: str
) -> None:
    cloud = coordinator("gsfs", clients="a")
    with pytest.raises(error, match=re.escape(says)):
        cloud.receive(update("a", delta=delta), 0.0)
    assert cloud.refused == {error.reason: 1}
    assert cloud.model.version == 0
    assert not cloud.server_state["moments"].any()


def test_a_strategy_of_deltas_takes_no_moments() -> None:
    cloud = coordinator("fedavg", clients="a")
    with pytest.raises(errors.UnknownTensor, match="no tensor 'moments'"):
        cloud.receive(update("a", delta={"moments": FACTOR}), 0.0)


@pytest.mark.parametrize(
    "factor",
    [np.zeros((1, 4)), [[0, 1, 1, 0]], [[1, 0, 0, 1]]],
    ids=["nothing", "a feature that is always 0", "no constant"],
)
def test_one_odd_site_does_not_stop_the_cloud(factor: object) -> None:
    cloud = coordinator("gsfs", clients="a")
    delta = {"moments": np.asarray(factor, dtype=np.float32)}
    with contextlib.suppress(errors.UpdateRefused):
        cloud.receive(update("a", delta=delta), 0.0)
    assert all(np.isfinite(value).all() for value in cloud.model.tensors.values())


# How loud one site may be --------------------------------------------------------------------


def test_an_update_may_move_the_model_only_so_far() -> None:
    cloud = coordinator(max_norm=5.0)
    cloud.receive(update("a", delta={"w": tensor(5.0)}), 0.0)
    with pytest.raises(errors.NormTooLarge, match=r"norm of 5\.1; 5 is allowed"):
        cloud.receive(update("b", delta={"w": tensor(5.1)}), 0.0)
    assert cloud.refused == {"norm-too-large": 1}


def test_moments_weigh_no_more_than_the_flows_that_they_are_of() -> None:
    cloud = coordinator("gsfs")
    # FACTOR has two rows with a constant and a label each: two flows. Three times as loud it is
    # of eighteen.
    with pytest.raises(errors.NormTooLarge, match="moments of 18 flows, where it read 2"):
        cloud.receive(update("a", samples=2, delta={"moments": 3 * FACTOR}), 0.0)
    cloud.receive(update("a", samples=9, delta={"moments": 3 * FACTOR}), 0.0)
    assert cloud.refused == {"norm-too-large": 1}


def test_the_norm_of_moments_is_that_of_a_flow() -> None:
    # ‖FACTOR‖² = 5 over 2 flows: a root mean square of 1.58.
    with pytest.raises(errors.NormTooLarge, match=r"norm of 1\.581"):
        coordinator("gsfs", max_norm=1.5).receive(
            update("a", samples=2, delta={"moments": FACTOR}), 0.0
        )
    coordinator("gsfs", max_norm=1.6).receive(
        update("a", samples=2, delta={"moments": FACTOR}), 0.0
    )


def test_moments_have_no_age() -> None:
    cloud = coordinator("gsfs", max_staleness=1)
    for sequence in range(1, 6):
        moments = {"moments": FACTOR}
        version = cloud.model.version
        cloud.receive(
            update("a", sequence=sequence, base_version=version, samples=2, delta=moments), 0.0
        )
    assert cloud.model.version == 5
    cloud.receive(update("b", base_version=0, samples=2, delta={"moments": FACTOR}), 0.0)
    with pytest.raises(errors.UnknownBase):  # from the future all the same
        cloud.receive(update("c", base_version=99, samples=2, delta={"moments": FACTOR}), 0.0)
