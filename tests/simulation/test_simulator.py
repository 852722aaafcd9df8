"""Virtual time, bytes and joules, done by hand on toy clients."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from gradsense.federation.algorithm import Plan, algorithms, get_algorithm
from gradsense.federation.client import Client
from gradsense.federation.coordinator import Coordinator
from gradsense.federation.transforms import codecs
from gradsense.federation.update import GlobalModel, Update
from gradsense.learning.learner import FlowCost, Observed, Tensors, Trained
from gradsense.simulation.devices import DeviceProfile
from gradsense.simulation.simulator import Faults, Simulator, encode
from tests.support.toys import ToyLearner, tensor

START = {"w": tensor(0.0)}
#: What one model weighs on its way down.
MODEL = len(codecs()["none"].pack(START))
#: The same for sites that send moments: two classes over one feature.
HEAD = {"score.weight": np.zeros((2, 1), np.float32), "score.bias": tensor(0.0, 0.0)}
HEAD_BYTES = len(codecs()["none"].pack(HEAD))
#: 10 FLOP a flow, and 10 flows a visit: 100 FLOP, so 1 s on ``FAST`` and 4 s on ``SLOW``.
COST = FlowCost(training=10.0, inference=1.0, width=4)
FAST = DeviceProfile("fast", 100.0, 8_000.0, 16_000.0, 0.25, 4.0, 1.0, "made up")
SLOW = DeviceProfile("slow", 25.0, 4_000.0, 8_000.0, 0.5, 2.0, 0.5, "made up")


def message_bytes(client: str) -> int:
    """The size of the only update that a toy sends; numbers of one digit do not change it."""
    sent = Update(client, 0, 1, 10, "round", {"w": tensor(1.0)})
    return len(encode(sent))


@dataclass
class Diverged(ToyLearner):
    """Its training ends in NaN."""

    def train(
        self, tensors: Tensors, *, first_step: int, steps: int, proximal: float = 0.0
    ) -> Trained:
        trained = super().train(tensors, first_step=first_step, steps=steps)
        broken = {name: np.full_like(t, np.nan) for name, t in trained.tensors.items()}
        return dataclasses.replace(trained, tensors=broken)


class Fleet:
    """A simulator over toys, and the global models in the order of their birth."""

    def __init__(
        self,
        algorithm: str,
        learners: dict[str, ToyLearner],
        devices: Sequence[DeviceProfile] = (FAST, SLOW),
        *,
        visits: int = 9,
        aggregations: int = 2,
        faults: Faults | None = None,
    ) -> None:
        rules = get_algorithm(algorithm)
        clients = [Client(name, learner, rules) for name, learner in learners.items()]
        self.models: list[tuple[float, float]] = []
        self.done: list[tuple[float, str]] = []
        self.run = Simulator(
            Coordinator(HEAD if not rules.trains else START, rules, seed=0, rounds=aggregations),
            clients,
            devices=dict(zip(learners, devices, strict=True)),
            cost=COST,
            budgets={client.name: visits * client.round_steps for client in clients},
            seed=0,
            faults=faults,
            on_model=self._on_model,
            on_last_work=lambda client: self.done.append((self.run.now, client.name)),
        )

    def _on_model(self, model: GlobalModel) -> None:
        values = next(iter(model.tensors.values()))
        self.models.append((self.run.now, float(values.ravel()[-1])))

    def finish(self, events: int = 2_000) -> Simulator:
        self.run.start()
        for _ in range(events):
            if not self.run.step():
                return self.run
        raise AssertionError("the run does not end")


def two(**changes: float) -> dict[str, ToyLearner]:
    """``a`` moves by 2 a visit and weighs 10, ``b`` by 6 and weighs 30."""
    heavy = ToyLearner(stride=3.0, samples=30, **changes)
    return {"a": ToyLearner(stride=1.0, samples=10, **changes), "b": heavy}


def test_fedavg_round_takes_the_slowest_download_compute_and_upload() -> None:
    fleet = Fleet("fedavg", {"a": ToyLearner(), "b": ToyLearner()})
    run = fleet.finish()
    size = message_bytes("b")
    down = 0.5 + 8 * MODEL / 8_000
    compute = 100 / 25
    up = 0.5 + 8 * size / 4_000
    seconds = down + compute + up
    assert [time for time, _ in fleet.models] == pytest.approx([seconds, 2 * seconds])
    assert run.central_latency_s() == pytest.approx(seconds)
    # The fast client waits: its next visit begins one round after its last.
    assert run.client_latency_s() == pytest.approx(seconds)


def test_fedavg_averages_by_samples_each_round() -> None:
    fleet = Fleet("fedavg", two())
    fleet.finish()
    # (10 × 2 + 30 × 6) / 40 = 5 a round.
    assert [value for _, value in fleet.models] == [5.0, 10.0]


def test_bytes_joules_and_counts_of_two_rounds_by_hand() -> None:
    run = Fleet("fedavg", {"a": ToyLearner(), "b": ToyLearner()}).finish()
    meter, size = run.meter, message_bytes("a")
    assert (meter.uploads, meter.aggregations, meter.local_rounds, meter.dropped_out) == (
        4,
        2,
        4,
        0,
    )
    assert meter.samples_trained == 40
    assert meter.uplink_bytes == 4 * size
    # Version 0 and version 1 went to both; version 2 ended the run and went to nobody.
    assert meter.downlink_bytes == 4 * MODEL
    fast = 1.0 * (0.25 + 8 * MODEL / 16_000) + 4.0 * 1 + 1.0 * (0.25 + 8 * size / 8_000)
    slow = 0.5 * (0.5 + 8 * MODEL / 8_000) + 2.0 * 4 + 0.5 * (0.5 + 8 * size / 4_000)
    assert meter.energy_j == pytest.approx(2 * (fast + slow))
    assert [mark.client for mark in run.uploads] == ["a", "b", "a", "b"]
    assert [mark.aggregation for mark in run.uploads] == [0, 0, 1, 1]
    assert run.triggers == {"round": 4}


def test_validation_costs_time_where_the_trigger_asks_for_it() -> None:
    # gsfs-paper looks twice in the first visit: at the model that came, and at its own.
    run = Fleet("gsfs-paper:looks=1", {"a": ToyLearner(validation_samples=50)}, [FAST], visits=1)
    simulator = run.finish()
    down = 0.25 + 8 * MODEL / 16_000
    assert run.done == [(pytest.approx(down + (100 + 2 * 50 * 1) / 100), "a")]
    assert simulator.meter.local_rounds == 1


def test_asynchronous_client_goes_on_while_its_update_travels() -> None:
    run = Fleet("fedbuff:wait=false", two(), visits=3, aggregations=9).finish()
    down = 0.25 + 8 * MODEL / 16_000
    ends = [mark.virtual_s for mark in run.uploads if mark.client == "a"]
    assert ends[:3] == pytest.approx([down + 1, down + 2, down + 3])


def test_messages_of_one_device_arrive_one_after_another() -> None:
    creeping = dataclasses.replace(FAST, uplink_bps=8.0, latency_s=0.0)  # one byte a second
    run = Fleet("fedbuff:wait=false", {"a": ToyLearner()}, [creeping], visits=3, aggregations=3)
    simulator = run.finish()
    size = message_bytes("a")
    begun = 8 * MODEL / 16_000 + 1
    assert [time for time, _ in run.models] == pytest.approx(
        [begun + size, begun + 2 * size, begun + 3 * size]
    )
    assert not simulator.coordinator.refused


def test_budget_ends_a_run_and_the_last_work_is_told_once() -> None:
    fleet = Fleet("fedavg", two(), visits=3, aggregations=100)
    run = fleet.finish()
    assert run.meter.aggregations == 3
    assert [client.steps for client in run.clients.values()] == [6, 6]
    assert sorted(name for _, name in fleet.done) == ["a", "b"]


def test_refused_update_is_counted_paid_for_and_changes_nothing() -> None:
    learners = {"a": ToyLearner(), "b": Diverged()}
    run = Fleet("fedbuff", learners, [FAST, FAST], visits=4, aggregations=50).finish()
    assert run.coordinator.refused["not-finite"] > 0
    assert np.isfinite(run.coordinator.model.tensors["w"]).all()
    sent = [mark.client for mark in run.uploads]
    assert sent.count("b") == run.coordinator.refused.total()
    assert run.meter.uploads == len(sent)
    assert run.meter.uplink_bytes == sum(mark.bytes for mark in run.uploads)


def test_late_client_costs_nothing_before_it_comes_and_is_waited_for_after() -> None:
    faults = Faults(late=0.5, late_s=1_000.0)
    early = Fleet("fedavg", two(), aggregations=1, faults=faults).finish()
    assert len(early.coordinator.connected) == 1
    assert early.meter.downlink_bytes == MODEL
    assert early.meter.uploads == 1

    whole = Fleet("fedavg", two(), visits=300, aggregations=300, faults=faults)
    run = whole.finish(20_000)
    late = next(name for name in run.clients if name not in early.coordinator.connected)
    first = next(mark for mark in run.uploads if mark.client == late)
    assert 0 < first.virtual_s < 1_000 + 20
    joined = first.aggregation
    assert joined + 10 < run.meter.aggregations
    # From its first upload on, every round has two.
    for number in range(joined + 1, run.meter.aggregations - 1):
        senders = [mark.client for mark in run.uploads if mark.aggregation == number]
        assert sorted(senders) == ["a", "b"]


def test_device_that_always_vanishes_spends_only_its_radio() -> None:
    fleet = Fleet("fedavg", {"a": ToyLearner()}, [FAST], faults=Faults(dropout=1.0, offline_s=5.0))
    fleet.run.start()
    for _ in range(3 * 50):  # deliver, drop, join
        assert fleet.run.step()
    meter = fleet.run.meter
    assert meter.dropped_out == 50
    assert (meter.local_rounds, meter.uploads, meter.samples_trained) == (0, 0, 0)
    assert meter.downlink_bytes == 51 * MODEL, "once at first, and once with each return"
    assert meter.energy_j == pytest.approx(51 * 1.0 * (0.25 + 8 * MODEL / 16_000))
    # 50 absences of 5 s on average, and 50 visits of which it vanishes within a second.
    assert 50 * 5 * 0.5 < fleet.run.now < 50 * 5 * 2


def test_round_does_not_wait_for_a_device_that_vanished() -> None:
    faults = Faults(dropout=0.3, offline_s=1e9)
    run = Fleet("fedavg", {f"c{i}": ToyLearner() for i in range(8)}, [FAST] * 8, faults=faults)
    simulator = run.finish()
    assert simulator.meter.dropped_out > 0
    assert simulator.meter.aggregations == 2
    assert len(run.models) == 2
    assert simulator.now < 60


# Sites that send moments ------------------------------------------------------------------


def test_arithmetic_of_moments_by_hand() -> None:
    # A forward pass each, 6 m n² + 20 n³ for the SVD: the longer side is m, whichever it is.
    assert COST.reading(6) == 6 * 1 + 6 * 6 * 4**2 + 20 * 4**3 == 1862
    assert COST.reading(2) == 2 * 1 + 6 * 4 * 2**2 + 20 * 2**3 == 258


def moments_bytes(client: str = "a") -> int:
    factor = ToyLearner().observe(HEAD, first_step=0, steps=2, tolerance=0.005).factor
    delta = {"statistics": factor}
    packed = codecs()["uniform"].pack(delta)
    return len(encode(Update(client, 0, 1, 10, "gradient", delta, codec="uniform", packed=packed)))


def test_one_site_reads_tells_and_is_done_by_hand() -> None:
    fleet = Fleet("gsfs", {"a": ToyLearner()}, [FAST], aggregations=9)
    run = fleet.finish()
    size = moments_bytes()
    down = 0.25 + 8 * HEAD_BYTES / 16_000
    read = 1862 / 100  # of six distinct flows; the ten are only counted
    up = 0.25 + 8 * size / 8_000
    assert [mark.virtual_s for mark in run.uploads] == pytest.approx([down + read])
    assert [time for time, _ in fleet.models] == pytest.approx([down + read + up])
    # The new head travels down once more, and nothing follows from it.
    assert run.now == pytest.approx(down + read + up + down)
    meter = run.meter
    assert (meter.local_rounds, meter.uploads, meter.aggregations, meter.left_pooled) == (
        1,
        1,
        1,
        0,
    )
    assert (meter.uplink_bytes, meter.downlink_bytes) == (size, 2 * HEAD_BYTES)
    assert meter.samples_trained == 10
    assert meter.energy_j == pytest.approx(1.0 * 2 * down + 4.0 * read + 1.0 * up)
    assert run.triggers == {"gradient": 1}


def test_half_an_epoch_is_half_the_arithmetic() -> None:
    rules = get_algorithm("gsfs")
    client = Client("a", ToyLearner(distinct=6), rules, local_epochs=0.5)
    fleet = Fleet("gsfs", {"a": ToyLearner()}, [FAST], aggregations=9)
    fleet.run.clients["a"] = client
    run = fleet.finish()
    first, second = run.uploads
    assert first.virtual_s == pytest.approx(0.25 + 8 * HEAD_BYTES / 16_000 + COST.reading(3) / 100)
    assert run.meter.samples_trained == 10
    assert second.aggregation == 1


def test_run_ends_when_everybody_has_told_everything() -> None:
    fleet = Fleet("gsfs", two(), visits=100, aggregations=100)
    run = fleet.finish()
    assert sorted(mark.client for mark in run.uploads) == ["a", "b"]
    assert all(client.plan(100) == Plan(0) for client in run.clients.values())
    # A quorum of half the fleet is one site: each upload makes a model.
    assert run.meter.aggregations == 2
    assert run.meter.left_pooled == 0


def test_lone_speaker_below_the_quorum_is_heard_after_the_deadline() -> None:
    learners = {"a": ToyLearner(), "b": ToyLearner(pull=0.0)}
    fleet = Fleet("gsfs:share=1", learners, [FAST, FAST], aggregations=9)
    run = fleet.finish()
    ((time, _),) = fleet.models
    arrived = run.uploads[0].virtual_s + 0.25 + 8 * moments_bytes() / 8_000
    assert time == pytest.approx(arrived + 2.0)
    # The quiet site looked at both models, and had nothing to say.
    assert run.meter.local_rounds == 3
    assert run.meter.samples_trained == 30


def test_cycle_ends_where_there_is_nothing_left_to_do() -> None:
    run = Fleet("gsfs", {"a": ToyLearner()}, [FAST], aggregations=9).finish()
    # From the start of the one visit to when the next model found nothing to do.
    down, up = 0.25 + 8 * HEAD_BYTES / 16_000, 0.25 + 8 * moments_bytes() / 8_000
    cycle = 18.62 + up + down
    assert run.cycles["a"] == [pytest.approx(cycle), 1]
    assert run.client_latency_s() == pytest.approx(cycle)
    assert run.central_latency_s() == pytest.approx(run.now)


def test_silent_site_has_a_cycle_as_well_and_is_not_counted_twice() -> None:
    learners = {"a": ToyLearner(), "b": ToyLearner(pull=0.0)}
    run = Fleet("gsfs", learners, [FAST, FAST], aggregations=9).finish()
    # Silent at once, so its first cycle is its first visit; then one more look.
    total, count = run.cycles["b"]
    assert count == 2
    assert total == pytest.approx(2 * 18.62)


def test_model_that_came_during_the_reading_is_the_one_that_is_judged() -> None:
    """Whether flows are news is asked of the newest head, not of the one at the start."""

    @dataclass
    class Learnt(ToyLearner):
        """Finds its flows explained as soon as there is any head."""

        def observe(
            self, tensors: Tensors, *, first_step: int, steps: int, tolerance: float
        ) -> Observed:
            self.pull = 0.0 if tensors["score.weight"].any() else 1.0
            return super().observe(tensors, first_step=first_step, steps=steps, tolerance=tolerance)

    fleet = Fleet("gsfs", {"a": ToyLearner(), "b": Learnt()}, [FAST, SLOW], aggregations=9)
    run = fleet.finish()
    assert [mark.client for mark in run.uploads] == ["a"]
    assert run.clients["b"].version == 1
    assert run.meter.local_rounds == 2, "the model was not looked at a second time"


def test_no_latency_before_there_was_anything_to_measure() -> None:
    fleet = Fleet("fedavg", two())
    assert fleet.run.central_latency_s() is None
    assert fleet.run.client_latency_s() is None


@pytest.mark.parametrize("name", algorithms())
def test_virtual_time_never_runs_backwards(name: str) -> None:
    fleet = Fleet(name, two(), aggregations=4, faults=Faults(0.2, 3.0, 0.5, 10.0))
    fleet.run.start()
    last = 0.0
    while fleet.run.step():
        assert fleet.run.now >= last
        last = fleet.run.now
    assert last > 0
