"""One set of checks for every strategy, trigger, pool, aggregator, codec, device and template.

Found by discovery: a new row in a table is checked without a new test.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest

from gradsense.data.flows import CONTEXT_SCHEMA, FLOW_SCHEMA
from gradsense.federation import aggregate, pool, trigger
from gradsense.federation.client import Client
from gradsense.federation.codec import CODECS
from gradsense.federation.coordinator import Coordinator
from gradsense.federation.message import decode, encode
from gradsense.federation.strategies import STRATEGIES
from gradsense.prompts.templates import templates
from gradsense.simulation.cost import Cost
from gradsense.simulation.devices import MIXES, PROFILES, assign
from gradsense.simulation.simulator import Faults, Simulator
from tests.support.toys import ToyLearner, entry, tensor, update


def values_of(module: ModuleType, verb: str) -> list[Any]:
    """A default instance of every public dataclass of the module that has this verb."""
    classes = [
        member
        for name, member in inspect.getmembers(module, inspect.isclass)
        if dataclasses.is_dataclass(member)
        and member.__module__ == module.__name__
        and hasattr(member, verb)
        and not name.startswith("_")
    ]
    everything = []
    for member in classes:
        needs = [f for f in dataclasses.fields(member) if f.default is dataclasses.MISSING]
        everything.append(member((trigger.EveryRound(),)) if needs else member())
    return everything


TEMPLATES = templates()
TRIGGERS = values_of(trigger, "sense")
POOLS = values_of(pool, "ready")
AGGREGATORS = values_of(aggregate, "apply")


def names(values: list[Any]) -> list[str]:
    return [type(value).__name__ for value in values]


def test_discovery_finds_them() -> None:
    assert {"EveryRound", "Performance", "Gradient", "AnyOf"} <= set(names(TRIGGERS))
    assert {"AllInvited", "Quorum", "Count"} <= set(names(POOLS))
    assert {"WeightedMean", "ServerOptimizer", "FrequencyMean"} <= set(names(AGGREGATORS))


# Triggers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("one", TRIGGERS, ids=names(TRIGGERS))
def test_trigger_is_pure_and_its_state_is_json(one: trigger.Trigger) -> None:
    rng = np.random.default_rng(0)
    state = one.reset(one.init(), 1.0 if one.needs_score else None)
    for visits in range(1, 9):
        score = float(rng.random()) if one.needs_score else None
        seen = trigger.Sensed({"a": float(rng.random()), "b": 1.0}, score, visits)
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
def test_pool_never_fires_empty_and_fires_when_all_spoke(one: pool.Pool) -> None:
    fleet = [f"c{i}" for i in range(12)]
    assert not one.ready([], fleet)
    assert one.ready([entry(name, 1.0) for name in fleet], fleet)


# Aggregators --------------------------------------------------------------------------------


@pytest.mark.parametrize("one", AGGREGATORS, ids=names(AGGREGATORS))
def test_aggregator_is_pure_and_moves_towards_agreement(one: aggregate.Aggregator) -> None:
    tensors = {"x.w": np.zeros((2, 3), np.float32), "y.b": np.ones(4, np.float32)}
    delta = {name: np.full_like(value, 0.5) for name, value in tensors.items()}
    entries = [pool.PooledUpdate(update(c, delta=delta), 0.0, 0) for c in "ab"]
    state = one.init(tensors)
    kept = {name: value.copy() for name, value in (tensors | state).items()}
    first, second = (one.apply(tensors, entries, {"a": 1, "b": 2}, state) for _ in range(2))
    for name, value in (tensors | state).items():
        assert np.array_equal(value, kept[name]), "arguments are never changed in place"
    for name, value in tensors.items():
        assert first[0][name].dtype == np.float32
        assert first[0][name].shape == value.shape
        assert np.array_equal(first[0][name], second[0][name])
        assert (first[0][name] > value).all()
    assert first[1].keys() == state.keys()


@pytest.mark.parametrize("one", AGGREGATORS, ids=names(AGGREGATORS))
def test_aggregator_takes_no_movement_as_none(one: aggregate.Aggregator) -> None:
    tensors = {"w": tensor(1.0)}
    moved, _ = one.apply(tensors, [entry("a", 0.0)], {"a": 1}, one.init(tensors))
    assert moved["w"] == pytest.approx([1.0])


# Codecs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODECS)
def test_codec_returns_what_it_was_given(name: str) -> None:
    assert CODECS[name].name == name
    rng = np.random.default_rng(0)
    delta = {
        "a.weight": rng.normal(size=(7, 5)).astype(np.float32),
        "b.bias": np.zeros(3, np.float32),
        "c.one": rng.normal(size=(1,)).astype(np.float32),
    }
    sent = update("site", delta=delta, codec=name)
    message = encode(sent)
    got = decode(message)
    assert encode(sent) == message
    assert (got.client, got.samples, got.reason) == ("site", 10, "visit")
    for key, value in delta.items():
        assert got.delta[key].shape == value.shape
        assert got.delta[key].dtype == np.float32
        assert np.abs(got.delta[key] - value).max() <= np.abs(value).max()


# Strategies ---------------------------------------------------------------------------------


def fleet(name: str, **faults: float) -> Simulator:
    """Six toy clients of different speed, size and stride, on mixed devices."""
    strategy = STRATEGIES[name]
    clients = [
        Client(f"c{i}", ToyLearner(stride=0.1 * (i + 1), samples=10 + i), strategy)
        for i in range(6)
    ]
    start = {"x.w": tensor(0.0), "y.b": tensor(1.0)}
    if strategy.payload == "moments":
        start = {"score.weight": np.zeros((2, 1), np.float32), "score.bias": tensor(0.0, 0.0)}
    return Simulator(
        Coordinator(start, strategy, seed=0),
        clients,
        devices=assign([c.name for c in clients], "mixed", seed=0),
        cost=Cost(1e9, 1e8, width=4),
        budgets={c.name: 5 * c.visit_steps for c in clients},
        max_aggregations=5,
        seed=0,
        faults=Faults(**faults),
    )


def finish(simulator: Simulator) -> Simulator:
    for _ in range(10_000):
        if not simulator.step():
            return simulator
    raise AssertionError("the run does not end")


@pytest.mark.parametrize("faults", [{}, {"dropout": 0.2, "late": 0.4}], ids=["calm", "faults"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_ends_learns_and_spends_no_more_than_its_budget(
    name: str, faults: dict[str, float]
) -> None:
    simulator = fleet(name, **faults)
    simulator.start()
    finish(simulator)
    meter = simulator.meter
    assert 1 <= meter.aggregations <= 5
    assert not simulator.coordinator.refused
    tensors = simulator.coordinator.model.tensors
    if STRATEGIES[name].payload == "moments":
        # The toys' one feature speaks for the second class and against the first.
        moved = tensors["score.weight"][1]
        assert tensors["score.weight"][0] < 0
    else:
        moved = tensors["x.w"]
    assert moved.dtype == np.float32
    assert moved[0] > 0
    for client in simulator.clients.values():
        assert client.steps <= simulator.budgets[client.name]
    assert meter.uploads == sum(simulator.triggers.values()) == len(simulator.uploads)


@pytest.mark.parametrize("faults", [{}, {"dropout": 0.2, "late": 0.4}], ids=["calm", "faults"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_resumes_exactly_from_any_event(name: str, faults: dict[str, float]) -> None:
    whole = fleet(name, **faults)
    whole.start()
    snapshots = []
    while whole.step():
        snapshots.append(whole.state())
    final = whole.state()
    for values, groups in snapshots[:: max(1, len(snapshots) // 7)]:
        resumed = fleet(name, **faults)
        resumed.restore(json.loads(json.dumps(values)), groups)
        finish(resumed)
        state = resumed.state()
        assert state[0] == final[0]
        for group, arrays in final[1].items():
            for key, value in arrays.items():
                assert np.array_equal(state[1][group][key], value), (group, key)


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_has_its_name_and_a_summary(name: str) -> None:
    assert STRATEGIES[name].name == name
    assert STRATEGIES[name].summary


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
    schema = FLOW_SCHEMA | CONTEXT_SCHEMA
    unset = pl.DataFrame({column: [None] for column in schema}, schema=schema)
    words = template.render(unset)[0].split()
    assert 0 < len(words) <= template.budget
    assert set(words) <= set(template.vocabulary())
    assert len(set(template.vocabulary())) == len(template.vocabulary())
