from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from gradsense.config import RunSettings, settings
from gradsense.data.synthetic.traffic import write_fleet
from gradsense.errors import GradsenseError, InputError
from gradsense.experiments import results, rundir
from gradsense.experiments.bench import Bench, set_up
from gradsense.experiments.compare import plan
from gradsense.experiments.corpus import load_corpus
from gradsense.experiments.run import FederatedRun, RunProgress, flow_cost, train
from gradsense.storage import checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    root = tmp_path_factory.mktemp("captures")
    write_fleet(root, sites=3, flows=80, seed=0)
    return settings(data=root, cap=20, rounds=2, algorithm="fedavg", seed=1)


@pytest.fixture(scope="module")
def bench(base: RunSettings) -> Bench:
    return set_up(base, load_corpus(base))


def finished(run: FederatedRun) -> results.Row:
    while run.step():
        pass
    return run.row(0.0)


def test_row_adds_up(bench: Bench) -> None:
    run = FederatedRun(bench)
    run.start()
    row = finished(run)
    clients = len(bench.learners)
    assert row.aggregations == 2
    assert row.uploads == 2 * clients == row.triggers["round"]
    assert row.samples_trained == 2 * len(bench.train)
    assert row.uplink_bytes == sum(mark.bytes for mark in row.uploads_log)
    assert [point.aggregation for point in row.curve] == [0, 1, 2]
    assert row.curve[0].virtual_s == row.curve[0].uplink_bytes == 0
    assert row.curve[-1].virtual_s == row.virtual_s
    assert row.central is not None
    assert row.curve[-1].accuracy == row.central.accuracy
    assert sum(map(sum, row.confusion)) == len(bench.test)
    assert sum(one.flows for one in row.per_site.values()) == len(bench.test)
    assert row.clients is not None


@pytest.mark.parametrize(
    ("rounds", "local", "aggregations", "epochs"), [(1, 3, 1, 1.0), (5, 2, 2, 2.0), (2, None, 2, 2)]
)
def test_aggregations_and_local_rounds_have_limits_of_their_own(
    bench: Bench, rounds: int, local: int | None, aggregations: int, epochs: float
) -> None:
    """FedAvg aggregates once a local round, so the smaller limit ends it."""
    own = bench.settings.model_copy(update={"rounds": rounds, "local_rounds": local})
    run = FederatedRun(dataclasses.replace(bench, settings=own))
    run.start()
    row = finished(run)
    assert (row.aggregations, row.epochs, row.rounds) == (aggregations, epochs, rounds)
    assert row.epochs_allowed == (local or rounds)
    assert [point.epochs for point in row.curve] == list(range(aggregations + 1))


def test_latency_is_the_mean_inference_on_the_fleets_devices(bench: Bench) -> None:
    """A flow's 2 N a token, over what each device computes a second."""
    run, flop = FederatedRun(bench), flow_cost(bench).inference
    each = [1e3 * flop / device.flops for device in run.simulator.devices.values()]
    assert run.inference_ms() == pytest.approx(sum(each) / len(each))
    other = bench.settings.model_copy(update={"algorithm": "gsfs-paper"})
    same = FederatedRun(dataclasses.replace(bench, settings=other))
    assert same.inference_ms() == run.inference_ms(), "it is the model's, not the algorithm's"


@pytest.mark.slow
def test_run_can_stop_and_go_on_after_any_event(bench: Bench, tmp_path: Path) -> None:
    whole = FederatedRun(bench)
    whole.start()
    moments = []
    while whole.step():
        moments.append(tmp_path / f"{len(moments)}")
        whole.save(moments[-1], 1.5)
    expected = whole.row(0.0)
    for path in moments[:: max(1, len(moments) // 6)]:
        resumed = FederatedRun(bench)
        resumed.restore(path)
        assert resumed.wall_s == 1.5
        assert finished(resumed) == expected
        for name, tensor in whole.simulator.coordinator.model.tensors.items():
            assert np.array_equal(resumed.simulator.coordinator.model.tensors[name], tensor)


@pytest.mark.parametrize("lost", ["curve", "clients", "wall_s"])
def test_checkpoint_that_lacks_something_is_damaged(
    lost: str, bench: Bench, tmp_path: Path
) -> None:
    run = FederatedRun(bench)
    run.start()
    run.save(tmp_path / "c", 0.0)
    values, groups = checkpoint.load(tmp_path / "c")
    values["run"].pop(lost)
    checkpoint.save(tmp_path / "c", values, groups)
    with pytest.raises(GradsenseError, match=f"damaged.*{lost}"):
        FederatedRun(bench).restore(tmp_path / "c")
    values.pop("simulator")
    checkpoint.save(tmp_path / "c", values, groups)
    with pytest.raises(GradsenseError, match="damaged"):
        FederatedRun(bench).restore(tmp_path / "c")


def test_progress_rises_to_the_end(bench: Bench) -> None:
    told: list[RunProgress] = []
    run = FederatedRun(bench, told.append)
    run.start()
    finished(run)
    shares = [one.share for one in told]
    assert shares == sorted(shares)
    assert len(shares) == run.simulator.meter.local_rounds
    assert shares[-1] == 1.0


def test_cost_of_a_flow_by_hand(bench: Bench) -> None:
    cost = flow_cost(bench)
    tokens = bench.train.encoded.input_ids.shape[1]
    # nano: 2 layers of 4 × (80² + 80) attention, 80 × 320 twice with biases, two norms; one
    # more norm at the end, and the head without a bias.
    layer = 4 * (80 * 80 + 80) + 2 * 80 * 320 + 320 + 80 + 2 * 2 * 80
    used = 2 * layer + 2 * 80 + 80 * len(bench.corpus.classes)
    assert cost.inference == tokens * 2 * used
    assert cost.training == tokens * 6 * used


def test_finished_run_is_only_read(bench: Bench, tmp_path: Path) -> None:
    row = train(bench, tmp_path)
    for name in ("checkpoint.zst", ".checkpoint.zst.new"):
        (tmp_path / name).write_bytes(b"left")
    assert train(bench, tmp_path, resume=True) == row
    assert not list(tmp_path.glob("checkpoint*"))
    with pytest.raises(InputError, match="--resume"):
        train(bench, tmp_path)


# The folder of a run ------------------------------------------------------------------------


def test_asking_for_a_folder_leaves_no_trace(tmp_path: Path) -> None:
    rundir.claimable(tmp_path / "a" / "b", resume=False)
    assert not list(tmp_path.iterdir())
    rundir.claimable(tmp_path, resume=False)
    assert tmp_path.exists()


def test_fingerprint_follows_settings_and_every_part_of_the_data(
    base: RunSettings, bench: Bench
) -> None:
    first = rundir.fingerprint(base, bench.corpus)
    assert first == rundir.fingerprint(base, load_corpus(base))
    assert json.loads(json.dumps(first)) == first
    corpus = load_corpus(base)
    parts = corpus.parts
    for name in ("train", "test", "validation"):
        fewer = {**vars(parts), name: getattr(parts, name).head(-1)}
        changed = type(corpus)(type(parts)(**fewer), corpus.classes, True, ())
        assert rundir.fingerprint(base, changed)["data_sha256"] != first["data_sha256"], name


@pytest.mark.skipif(os.name != "posix", reason="a device file is needed")
def test_folder_below_a_device_cannot_be_written() -> None:
    with pytest.raises(InputError, match="cannot write here"):
        rundir.claimable(Path("/dev/null/run"), resume=False)


# The plan of a comparison -------------------------------------------------------------------


def test_plan_goes_seed_by_seed_and_names_each_once(tmp_path: Path, base: RunSettings) -> None:
    names = ["gsfs", "fedavg", "gsfs", "gsfs:floor=0.2"]
    jobs = plan(base, names, 2, tmp_path, references=False)
    assert [job.name for job in jobs] == [
        f"{name} seed {seed}" for seed in (1, 2) for name in ("gsfs", "fedavg", "gsfs:floor=0.2")
    ]
    folders = [job.out for job in jobs]
    assert len(set(folders)) == len(folders)
    assert all(folder.parent == tmp_path for folder in folders)


def test_references_spend_the_local_rounds_that_the_others_may(
    tmp_path: Path, base: RunSettings
) -> None:
    own = base.model_copy(update={"rounds": 50, "local_rounds": 10})
    planned = {
        run.settings.algorithm: run.settings
        for run in plan(own, ["fedavg"], 1, tmp_path, references=True)
    }
    assert (planned["fedavg"].rounds, planned["fedavg"].local_rounds) == (50, 10)
    assert (planned["centralised"].rounds, planned["centralised"].local_rounds) == (10, None)


def test_folder_of_a_spec_stays_below_the_comparison(tmp_path: Path, base: RunSettings) -> None:
    (job,) = plan(base, ["fedopt:kind=yogi"], 1, tmp_path, references=False)
    assert job.out == tmp_path / "fedopt_kind-yogi-seed1"
