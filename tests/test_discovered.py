"""One set of checks for every algorithm, rule, trigger, pool, transform, codec, device, template.

Found by discovery: a new file is checked without a new test.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pytest

from gradsense.federation.algorithm import algorithms, fields_of, get_algorithm
from gradsense.federation.client import Client
from gradsense.federation.coordinator import Coordinator
from gradsense.federation.pools import Pool, Pooled, PooledUpdate
from gradsense.federation.rules import Rule, rules
from gradsense.federation.rules.rule import DeltaRule
from gradsense.federation.transforms import codecs, transforms
from gradsense.federation.triggers import EveryRound, Sensed, Trigger
from gradsense.learning.learner import FlowCost
from gradsense.learning.statistics import HEAD_BIAS, HEAD_WEIGHT, STATISTICS
from gradsense.prompts.templates import templates
from gradsense.simulation.devices import MIXES, PROFILES, assign
from gradsense.simulation.simulator import Faults, Simulator, encode
from tests.support.toys import ToyLearner, decoded, entry, tensor, update

T = TypeVar("T")
ALGORITHMS = list(algorithms())


TEMPLATES = templates()


def everything(base: type[T]) -> list[T]:
    """A default instance of every concrete class below ``base``, wherever it is defined."""

    def below(cls: type) -> Iterator[type]:
        for child in cls.__subclasses__():
            yield child
            yield from below(child)

    found = {cls for cls in below(base) if not inspect.isabstract(cls)}
    found = {cls for cls in found if cls.__module__.startswith("gradsense.")}
    made = []
    for cls in sorted(found, key=lambda cls: cls.__name__):
        required = [f for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        made.append(cls((EveryRound(),)) if required else cls())
    return made


def names(values: list[Any]) -> list[str]:
    return [type(value).__name__ for value in values]


rules()  # imports those that no algorithm does
TRIGGERS, POOLS, RULES = everything(Trigger), everything(Pool), everything(Rule)


def test_discovery_finds_them() -> None:
    assert {"EveryRound", "Performance", "Gradient", "AnyOf"} <= set(names(TRIGGERS))
    assert {"AllInvited", "Quorum", "Count"} <= set(names(POOLS))
    assert {"WeightedMean", "ServerOptimizer", "FrequencyMean"} <= set(names(RULES))
    assert {"RidgeSum", "ControlledMean", "CoordinateMedian"} <= set(names(RULES))
    assert {"none", "int8", "uniform", "topk"} <= codecs().keys()
    assert {"clip", "noise"} <= transforms().keys()
    assert {"fedavg", "scaffold", "gsfs-paper", "gsfs"} <= set(ALGORITHMS)


# Triggers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("one", TRIGGERS, ids=names(TRIGGERS))
def test_trigger_is_pure_and_its_state_is_json(one: Trigger) -> None:
    rng = np.random.default_rng(0)
    state = one.reset(one.init(), 1.0 if one.needs_score else None)
    for rounds in range(1, 9):
        score = float(rng.random()) if one.needs_score else None
        seen = Sensed({"a": float(rng.random()), "b": 1.0}, score, rounds)
        before = dict(state)
        first, again = one.sense(state, seen), one.sense(state, seen)
        assert first == again
        assert state == before
        state = json.loads(json.dumps(first[0]))
        assert state == first[0]
        if first[1].layers is not None:
            assert first[1].reason is not None
            assert set(first[1].layers) <= {"a", "b"}


# Pools --------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", POOLS, ids=names(POOLS))
def test_pool_never_fires_empty_and_fires_when_all_sent(one: Pool) -> None:
    fleet = [f"c{i}" for i in range(12)]
    assert not one.ready([], fleet)
    assert one.ready([entry(name, 1.0) for name in fleet], fleet)


# Rules --------------------------------------------------------------------------------------


def start_and_deltas(rule: Rule) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    """A global model, and two updates of it that agree, as this kind of rule takes them."""
    if isinstance(rule, DeltaRule):
        tensors = {"x.w": np.zeros((2, 3), np.float32), "y.b": np.ones(4, np.float32)}
        return tensors, [{name: np.full_like(value, 0.5) for name, value in tensors.items()}] * 2
    head = {HEAD_WEIGHT: np.zeros((2, 1), np.float32), HEAD_BIAS: tensor(0.0, 0.0)}
    factor = np.array([[0, 1, 1, 0], [1, 1, 0, 1]], np.float32)
    return head, [{STATISTICS: factor}, {STATISTICS: 2 * factor}]


@pytest.mark.parametrize("one", RULES, ids=names(RULES))
def test_rule_is_pure_and_moves_towards_agreement(one: Rule) -> None:
    tensors, deltas = start_and_deltas(one)
    pooled = [PooledUpdate(update(c, delta=d), 0.0, 0) for c, d in zip("ab", deltas, strict=True)]
    state = one.init(tensors)
    kept = {name: value.copy() for name, value in (tensors | dict(state)).items()}
    first, second = (one.apply(tensors, Pooled(pooled, {"a": 1, "b": 2}), state) for _ in range(2))
    for name, value in (tensors | dict(state)).items():
        assert np.array_equal(value, kept[name]), "arguments are never changed in place"
    for name, value in tensors.items():
        assert first[0][name].dtype == np.float32
        assert first[0][name].shape == value.shape
        assert np.array_equal(first[0][name], second[0][name])
    assert first[1].keys() == state.keys()
    if isinstance(one, DeltaRule):
        assert all((first[0][name] > value).all() for name, value in tensors.items())
    else:  # the second class has the feature, the first has not
        assert first[0][HEAD_WEIGHT][1, 0] > 0 > first[0][HEAD_WEIGHT][0, 0]


@pytest.mark.parametrize("one", RULES, ids=names(RULES))
def test_rule_takes_updates_of_different_times(one: Rule) -> None:
    """Two updates, one of them late and stale: the result is finite, of the same names."""
    tensors, (early, late) = start_and_deltas(one)
    pooled = [PooledUpdate(update("a", delta=early), 1.0, 0)]
    pooled.append(PooledUpdate(update("b", delta=late), 9.0, 3))
    moved, _ = one.apply(tensors, Pooled(pooled, {"a": 1, "b": 1}), one.init(tensors))
    assert moved.keys() == tensors.keys()
    assert all(np.isfinite(value).all() for value in moved.values())


@pytest.mark.parametrize(
    "one",
    [rule for rule in RULES if isinstance(rule, DeltaRule)],
    ids=names([rule for rule in RULES if isinstance(rule, DeltaRule)]),
)
def test_rule_takes_no_movement_as_none(one: Rule) -> None:
    tensors = {"w": tensor(1.0)}
    moved, _ = one.apply(tensors, Pooled([entry("a", 0.0)], {"a": 1}), one.init(tensors))
    assert moved["w"] == pytest.approx([1.0])


# Transforms and codecs ----------------------------------------------------------------------


@pytest.mark.parametrize("name", transforms())
def test_transform_is_pure_and_repeats_with_its_seed(name: str) -> None:
    tensors = {"a": tensor(3.0, -4.0), "b": np.ones((2, 2), np.float32)}
    kept = {key: value.copy() for key, value in tensors.items()}
    first, second = (transforms()[name].apply(tensors, np.random.default_rng(7)) for _ in range(2))
    assert first.keys() == tensors.keys()
    for key, value in tensors.items():
        assert np.array_equal(value, kept[key])
        assert (first[key].shape, first[key].dtype) == (value.shape, np.float32)
        assert np.array_equal(first[key], second[key])


@pytest.mark.parametrize("name", transforms())
def test_an_algorithm_takes_every_transform(name: str) -> None:
    algorithm = get_algorithm(f"fedavg:transforms={name}:keep_local=true")
    client = Client("a", ToyLearner(stride=5.0), algorithm, seed=1)
    coordinator = Coordinator({"w": tensor(0.0, 0.0)}, algorithm, seed=0)
    client.adopt(coordinator.model)
    sent = client.work(10)
    assert sent is not None
    moved = transforms()[name].apply({"w": tensor(10.0, 10.0)}, _rng_of(client))
    assert np.array_equal(sent.delta["w"], moved["w"])
    # What was taken away stays with the client, and travels later.
    unsent = client.state.local["w"] - client.state.reference["w"]
    assert unsent == pytest.approx(tensor(10.0, 10.0) - moved["w"], abs=1e-5)


def _rng_of(client: Client) -> np.random.Generator:
    import zlib  # noqa: PLC0415

    return np.random.default_rng([client.seed, zlib.crc32(client.name.encode()), client.sequence])


@pytest.mark.parametrize("name", codecs())
def test_codec_returns_what_it_was_given(name: str) -> None:
    assert codecs()[name].name == name
    rng = np.random.default_rng(0)
    delta = {
        "a.weight": rng.normal(size=(7, 5)).astype(np.float32),
        "b.bias": np.zeros(3, np.float32),
        "c.one": rng.normal(size=(1,)).astype(np.float32),
    }
    sent = update("site", delta=delta, codec=name)
    message = encode(sent)
    got = decoded(message, delta)
    assert encode(sent) == message
    assert (got.client, got.samples, got.reason) == ("site", 10, "round")
    for key, value in delta.items():
        assert got.delta[key].shape == value.shape
        assert got.delta[key].dtype == np.float32
        assert np.abs(got.delta[key] - value).max() <= np.abs(value).max()


# Algorithms ---------------------------------------------------------------------------------


def fleet(name: str, **faults: float) -> Simulator:
    """Six toy clients of different speed, size and stride, on mixed devices."""
    algorithm = algorithms()[name]
    clients = [
        Client(f"c{i}", ToyLearner(stride=0.1 * (i + 1), samples=10 + i), algorithm)
        for i in range(6)
    ]
    start = {"x.w": tensor(0.0), "y.b": tensor(1.0)}
    if not algorithm.trains:
        start = {HEAD_WEIGHT: np.zeros((2, 1), np.float32), HEAD_BIAS: tensor(0.0, 0.0)}
    return Simulator(
        Coordinator(start, algorithm, seed=0, rounds=5),
        clients,
        devices=assign([c.name for c in clients], "mixed", seed=0),
        cost=FlowCost(1e9, 1e8, width=4),
        budgets={c.name: 5 * c.round_steps for c in clients},
        seed=0,
        faults=Faults(**faults),
    )


def finish(simulator: Simulator) -> Simulator:
    for _ in range(10_000):
        if not simulator.step():
            return simulator
    raise AssertionError("the run does not end")


@pytest.mark.parametrize("faults", [{}, {"dropout": 0.2, "late": 0.4}], ids=["calm", "faults"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithm_ends_learns_and_spends_no_more_than_its_budget(
    name: str, faults: dict[str, float]
) -> None:
    simulator = fleet(name, **faults)
    simulator.start()
    finish(simulator)
    meter = simulator.meter
    assert 1 <= meter.aggregations <= 5
    assert not simulator.coordinator.refused
    tensors = simulator.coordinator.model.tensors
    if algorithms()[name].trains:
        moved = tensors["x.w"]
    else:
        # The toys' one feature speaks for the second class and against the first.
        moved = tensors[HEAD_WEIGHT][1]
        assert tensors[HEAD_WEIGHT][0] < 0
    assert moved.dtype == np.float32
    assert moved[0] > 0
    for client in simulator.clients.values():
        assert client.steps <= simulator.budgets[client.name]
    assert meter.uploads == sum(simulator.triggers.values()) == len(simulator.uploads)


@pytest.mark.parametrize("faults", [{}, {"dropout": 0.2, "late": 0.4}], ids=["calm", "faults"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithm_resumes_exactly_from_any_event(name: str, faults: dict[str, float]) -> None:
    whole = fleet(name, **faults)
    whole.start()
    snapshots = []
    while whole.step():
        snapshots.append(whole.snapshot())
    final = whole.snapshot()
    assert snapshots
    for values, groups in snapshots[:: max(1, len(snapshots) // 7)]:
        resumed = fleet(name, **faults)
        resumed.restore(json.loads(json.dumps(values)), groups)
        finish(resumed)
        state = resumed.snapshot()
        assert state[0] == final[0]
        for group, arrays in final[1].items():
            for key, value in arrays.items():
                assert np.array_equal(state[1][group][key], value), (group, key)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithm_has_its_name_a_summary_and_a_file_that_says_what_it_does(name: str) -> None:
    algorithm = algorithms()[name]
    assert (algorithm.name, bool(algorithm.summary)) == (name, True)
    header = inspect.getmodule(type(algorithm)).__doc__
    assert header
    assert "arXiv" in header or "fedavg" in header.lower() or "gsfs" in header


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithm_settings_can_be_named_and_are_bounded(name: str) -> None:
    for key, value in fields_of(algorithms()[name]):
        spec = f"{name}:{key}={json.dumps(value)}".replace('"', "")
        assert get_algorithm(spec) == algorithms()[name], spec
        if isinstance(value, float):
            with pytest.raises(Exception, match="does not fit"):
                get_algorithm(f"{name}:{key}=-1")


# Devices ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROFILES)
def test_device_is_positive_and_has_a_source(name: str) -> None:
    device = PROFILES[name]
    assert name in MIXES
    assert len(device.source) > 40
    rates = (device.flops, device.uplink_bps, device.downlink_bps, device.compute_w)
    assert min(rates) > 0
    assert device.upload_s(1000) > device.latency_s


# Templates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_stays_in_its_vocabulary_and_budget(name: str) -> None:
    template = TEMPLATES[name]
    assert (template.name, template.version >= 1) == (name, True)
    schema = {**template.task.schema, **template.task.history}
    unset = pl.DataFrame({column: [None] for column in schema}, schema=schema)
    words = template.render(unset)[0].split()
    assert 0 < len(words) <= template.budget
    assert set(words) <= set(template.vocabulary())
    assert len(set(template.vocabulary())) == len(template.vocabulary())
