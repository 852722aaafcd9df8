"""Runs of sites that send moments, on synthetic traffic and the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gradsense.config import settings
from gradsense.data.synthetic.traffic import write_fleet
from gradsense.errors import InputError
from gradsense.experiments import results
from gradsense.experiments.bench import Bench, set_up
from gradsense.experiments.compare import check
from gradsense.experiments.corpus import load_corpus
from gradsense.experiments.run import FederatedRun, flow_cost
from gradsense.learning.learner import Tensors
from gradsense.learning.statistics import solve

#: Nothing rounded, nothing left out, nobody silent.
EXACT = "gsfs:codec=none:tolerance=0:floor=0:cap=null"


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("captures")
    write_fleet(root, sites=3, flows=200, seed=0)
    return root


def bench_of(captures: Path, algorithm: str, partition: str, **more: object) -> Bench:
    chosen = settings(
        data=captures,
        algorithm=algorithm,
        partition=partition,
        clients=None if partition == "natural" else 6,
        alpha=0.1,
        cap=60,
        rounds=30,
        seed=1,
        **more,
    )
    return set_up(chosen, load_corpus(chosen))


def finished(bench: Bench) -> tuple[FederatedRun, results.Row]:
    run = FederatedRun(bench)
    run.start()
    while run.step():
        pass
    return run, run.row(0.0)


def head_of(run: FederatedRun) -> Tensors:
    return run.simulator.coordinator.model.tensors


def off(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


@pytest.fixture(scope="module")
def skewed(captures: Path) -> Bench:
    return bench_of(captures, EXACT, "dirichlet")


@pytest.mark.slow
def test_skewed_sites_end_with_the_head_of_even_ones_and_of_pooled_training(
    captures: Path, skewed: Bench
) -> None:
    even = bench_of(captures, EXACT, "iid")
    sizes = sorted(learner.samples for learner in skewed.learners.values())
    assert sizes[-1] > 3 * sizes[0], "the partition is skewed"
    heads = []
    for bench in (even, skewed):
        run, row = finished(bench)
        heads.append(head_of(run))
        assert row.uploads == len(bench.learners)
        assert row.samples_trained == len(bench.train), "every flow is read once"
        assert not row.refused
    rows = pooled_rows(skewed)
    weight, bias = solve(rows.T @ rows, len(skewed.corpus.classes), 1e-4)
    for head in heads:
        assert off(head["score.weight"], 10 * weight) < 1e-3
        assert off(head["score.bias"], 10 * bias) < 1e-3


def pooled_rows(bench: Bench) -> np.ndarray:
    """[x; 1; y] of all training flows in one place."""
    classifier, flows = bench.trainer.classifier, bench.train
    with torch.inference_mode():
        features = classifier.features(flows.encoded, torch.arange(len(flows.encoded)))
    x = features.double().numpy()[flows.index.numpy()]
    labels = np.eye(len(bench.corpus.classes))[flows.labels.numpy()]
    return np.hstack([x, np.ones((len(flows), 1)), labels])


@pytest.mark.slow
def test_as_shipped_skewed_sites_give_the_verdicts_of_even_ones(captures: Path) -> None:
    """Rounding and silence move single weights; what the model says they hardly move."""
    said, accuracies = [], []
    even = bench_of(captures, "gsfs", "iid")
    for bench in (even, bench_of(captures, "gsfs", "dirichlet")):
        run, row = finished(bench)
        said.append(even.trainer.evaluate(even.test, head_of(run))[1])
        assert row.central is not None
        accuracies.append(row.central.accuracy)
    exact, _ = finished(bench_of(captures, EXACT, "iid"))
    reference = even.trainer.evaluate(even.test, head_of(exact))[1]
    for verdicts in said:
        assert (verdicts == reference).mean() > 0.95
    assert (said[0] == said[1]).mean() > 0.95
    # No training flow has the compact text of a test flow, and these sites are small.
    assert min(accuracies) > 0.85
    assert abs(accuracies[0] - accuracies[1]) < 0.03


@pytest.mark.slow
def test_run_can_stop_and_go_on_after_any_event(captures: Path, tmp_path: Path) -> None:
    # Of the last token's state only: small moments, so that many stops cost little.
    algorithm = "gsfs:floor=0:readout=last"
    bench = bench_of(captures, algorithm, "dirichlet", epochs=0.5, dropout=0.2, batch_size=4)
    whole = FederatedRun(bench)
    whole.start()
    stops = []
    while whole.step():
        stops.append(tmp_path / f"{len(stops)}")
        whole.save(stops[-1], 0.0)
    expected = whole.row(0.0)
    assert expected.uploads > len(bench.learners), "read and told in pieces"
    for path in stops[:: max(1, len(stops) // 8)]:
        resumed = FederatedRun(bench)
        resumed.restore(path)
        while resumed.step():
            pass
        assert resumed.row(0.0) == expected
        for name, tensor in head_of(whole).items():
            assert np.array_equal(head_of(resumed)[name], tensor)


def test_alarms_add_up(captures: Path) -> None:
    bench = bench_of(captures, "gsfs", "natural")
    _, row = finished(bench)
    assert row.alarms is not None
    assert 0.5 <= row.alarms.threshold < 1
    assert row.alarms.false_alarms is not None
    assert row.alarms.false_alarms < 0.1
    attacks = {name: one.support for name, one in row.per_class.items() if name != "Benign"}
    assert row.alarms.recall.keys() == attacks.keys()
    found = sum(row.alarms.recall[name] * support for name, support in attacks.items())
    assert row.alarms.detected == pytest.approx(found / sum(attacks.values()))
    assert row.alarms.detected > 0.8


def test_a_silent_fleet_sends_nothing_and_ends(captures: Path) -> None:
    run, row = finished(bench_of(captures, "gsfs:floor=5", "iid"))
    assert (row.uploads, row.uplink_bytes, row.aggregations) == (0, 0, 0)
    assert row.samples_trained == len(run.bench.train), "read once, and no more"
    assert json.loads(row.model_dump_json())["central"]["accuracy"] < 1


def test_cost_of_a_flow_that_is_only_read_by_hand(skewed: Bench) -> None:
    cost, classes = flow_cost(skewed), len(skewed.corpus.classes)
    # The base of test_run's count without its head, at each of 19 tokens; the head once.
    layer = 4 * (80 * 80 + 80) + 2 * 80 * 320 + 320 + 80 + 2 * 2 * 80
    head = classes * (19 * 80 + 1)
    assert cost.inference == 19 * 2 * (2 * layer + 2 * 80) + 2 * head
    assert cost.width == 19 * 80 + 1 + classes


def test_only_the_head_travels_down(skewed: Bench) -> None:
    assert set(skewed.initial) == {"score.weight", "score.bias"}


def test_reference_trains_the_whole_model(captures: Path) -> None:
    assert len(bench_of(captures, "centralised", "natural").initial) > 20


# Before a run -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "algorithm", ["gsfs", "gsfs:floor=0.2", "fedavg:frozen=true", "fedavg:readout=pooled"]
)
def test_adapters_are_refused_where_they_would_not_train(algorithm: str) -> None:
    with pytest.raises(InputError, match=r"'--lora-rank': .* trains no adapters") as caught:
        check(settings(algorithm=algorithm, lora_rank=4))
    assert "gsfs-tune" in str(caught.value)
    check(settings(algorithm=algorithm, lora_rank=0))
    check(settings(algorithm=algorithm))


def test_adapters_are_taken_where_the_base_trains() -> None:
    check(settings(algorithm="gsfs-tune", lora_rank=4))
    check(settings(algorithm="centralised", lora_rank=4), reference=True)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("gsfs:frozen=false", "'false' does not fit 'frozen'"),
        ("gsfs:payload=deltas", "no setting 'payload'"),
        ("gsfs:readout=all", "'all' does not fit 'readout'; .* 'last', 'pooled' or 'tokens'"),
    ],
)
def test_statistics_of_a_base_that_trains_are_refused(spec: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check(settings(algorithm=spec))


@pytest.mark.parametrize("readout", ["last", "pooled"])
def test_statistics_of_fewer_features_work_as_well(captures: Path, readout: str) -> None:
    run, row = finished(bench_of(captures, f"gsfs:readout={readout}", "natural"))
    states = {"last": 1, "pooled": 2}[readout]
    assert head_of(run)["score.weight"].shape[1] == 80 * states
    assert row.central is not None
    assert row.central.accuracy > 0.5
