"""The client's state machine."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.federation.algorithm import Algorithm, Plan, algorithms, get_algorithm
from gradsense.federation.client import Client
from gradsense.federation.pools import Quorum
from gradsense.federation.transforms import codecs
from gradsense.federation.triggers import EveryRound, Gradient, Silence
from gradsense.federation.update import GlobalModel, exactly
from gradsense.learning.learner import Observed, Tensors, Trained
from gradsense.learning.statistics import STATISTICS
from gradsense.simulation.simulator import encode
from tests.support.toys import ToyLearner, decoded, tensor

FEDAVG = algorithms()["fedavg"]


def model(version: int = 0, **tensors: float) -> GlobalModel:
    return GlobalModel(version, {n: tensor(v) for n, v in (tensors or {"w": 0.0}).items()})


def sensing(**fields: object) -> Algorithm:
    base = dataclasses.replace(algorithms()["gsfs-tune"], trigger=Silence(2), pool=Quorum())
    return dataclasses.replace(base, **fields)


def test_a_visit_is_e_epochs_and_gives_the_delta() -> None:
    client = Client("a", ToyLearner(stride=0.5), FEDAVG, local_epochs=3)
    client.adopt(model(w=10.0))
    update = client.work(budget=100)
    assert update is not None
    assert update.delta["w"] == pytest.approx([3.0])  # 3 epochs × 2 steps × 0.5
    assert (update.base_version, update.sequence, update.samples) == (0, 1, 10)
    assert client.steps == 6


def test_the_budget_cuts_a_visit() -> None:
    client = Client("a", ToyLearner(), FEDAVG)
    client.adopt(model())
    assert client.plan(1) == Plan(1, 0)
    update = client.work(budget=1)
    assert update is not None
    assert update.delta["w"] == pytest.approx([1.0])
    with pytest.raises(ValueError, match="at least one step"):
        client.work(budget=0)


def test_no_work_without_a_model() -> None:
    with pytest.raises(RuntimeError, match="no global model"):
        Client("a", ToyLearner(), FEDAVG).work(5)


def test_silent_visits_add_up() -> None:
    client = Client("a", ToyLearner(), sensing())
    client.adopt(model())
    assert client.work(100) is None
    update = client.work(100)
    assert update is not None
    assert update.reason == "silence"
    assert update.delta["w"] == pytest.approx([4.0])
    assert client.work(100) is None  # the count starts again, and so does the delta
    second = client.work(100)
    assert second is not None
    assert second.delta["w"] == pytest.approx([4.0])
    assert second.sequence == 2


def test_eq15_overwrites_local_progress_and_keep_local_does_not() -> None:
    for keep, expected in ((False, 50.0), (True, 52.0)):
        client = Client("a", ToyLearner(), sensing(keep_local=keep))
        client.adopt(model())
        client.work(100)  # unsent movement of 2
        client.adopt(model(1, w=50.0))
        assert client.state.local["w"] == pytest.approx([expected])
        assert client.state.reference["w"] == pytest.approx([50.0])


def test_what_was_sent_is_not_kept_twice() -> None:
    client = Client("a", ToyLearner(), dataclasses.replace(FEDAVG, keep_local=True))
    client.adopt(model())
    client.work(100)
    shared = model(1, w=5.0)
    client.adopt(shared)
    assert client.state.local["w"] is shared.tensors["w"]


def test_an_older_model_of_a_restored_fleet_is_worked_on() -> None:
    client = Client("a", ToyLearner(), FEDAVG)
    client.adopt(model(3, w=3.0))
    assert client.work(100) is not None
    client.adopt(model(2, w=2.0), restored=True)
    assert (client.version, client.waiting) == (2, False)
    assert client.weights["w"] == pytest.approx([2.0])


def test_an_older_model_is_ignored() -> None:
    client = Client("a", ToyLearner(), FEDAVG)
    client.adopt(model(3, w=3.0))
    client.adopt(model(2, w=2.0))
    assert client.version == 3
    assert client.state.local["w"] == pytest.approx([3.0])


def test_a_partial_upload_keeps_the_remainder() -> None:
    """Layers that did not trigger stay behind and travel, whole, when they do."""

    class TwoLayers(ToyLearner):
        loud = ("x",)

        def train(self, tensors, *, first_step, steps, proximal=0.0):  # type: ignore[no-untyped-def]
            trained = super().train(tensors, first_step=first_step, steps=steps)
            norms = {n: (100.0 if n in self.loud and first_step else 1.0) for n in ("x", "y")}
            return dataclasses.replace(trained, gradient_norms=norms)

    learner = TwoLayers()
    algorithm = sensing(trigger=Gradient(alpha=0.5, beta=0.1), partial=True)
    client = Client("a", learner, algorithm)
    client.adopt(GlobalModel(0, {"x.w": tensor(0.0), "y.w": tensor(0.0)}))
    assert client.work(100) is None
    update = client.work(100)
    assert update is not None
    assert update.layers == ("x",)
    assert update.delta["x.w"] == pytest.approx([4.0])
    learner.loud = ("y",)
    learner.stride = 1.0
    update = client.work(100)
    assert update is not None
    assert update.layers == ("y",)
    assert update.delta["y.w"] == pytest.approx([6.0])  # three visits of 2, none sent before


def test_what_a_codec_rounds_away_travels_later() -> None:
    """Error feedback: the sum of what was sent stays within one message's error of the truth."""
    algorithm = sensing(trigger=EveryRound(), keep_local=True, codec=codecs()["int4"])
    client = Client("a", ToyLearner(), algorithm)
    start = tensor(*np.linspace(0, 1, 50))
    learner_step = tensor(*np.linspace(-1, 1, 50) ** 3)

    class Uneven(ToyLearner):
        def train(self, tensors, *, first_step, steps, proximal=0.0):  # type: ignore[no-untyped-def]
            trained = super().train(tensors, first_step=first_step, steps=steps)
            return dataclasses.replace(trained, tensors={"w": tensors["w"] + learner_step})

    client.learner = Uneven()
    client.adopt(GlobalModel(0, {"w": start}))
    arrived = np.zeros(50)
    for visit in range(1, 9):
        update = client.work(100)
        assert update is not None
        got = decoded(encode(update), update.delta).delta["w"]
        assert np.array_equal(got, update.delta["w"]), "both ends see the same rounding"
        arrived += got
        step = np.abs(got).max() / 7
        assert np.abs(arrived - visit * learner_step).max() <= step / 2 + 1e-5
    assert np.allclose(client.state.reference["w"], start + arrived, atol=1e-5)


def test_the_reference_score_is_taken_from_the_new_model() -> None:
    """Eq 7 compares with the broadcast: the goal is at 0, so the loss of θ is |θ|."""
    client = Client("a", ToyLearner(), get_algorithm("gsfs-paper:looks=1"))
    client.adopt(model(w=10.0))
    assert client.plan(100) == Plan(2, 2)  # one pass for the reference, one after the visit
    update = client.work(100)
    assert client.state.sensing["0/reference"] == pytest.approx(12.0)  # moved by the upload
    assert update is not None
    assert update.reason == "performance"
    assert client.plan(100) == Plan(2, 1)


def test_state_survives() -> None:
    def fresh() -> Client:
        return Client("a", ToyLearner(stride=0.25), algorithms()["gsfs-tune"])

    first = fresh()
    first.adopt(model(w=1.0))
    first.work(100)
    second = fresh()
    second.restore(*first.snapshot())
    for client in (first, second):
        client.adopt(model(1, w=-3.0))
    one, two = first.work(100), second.work(100)
    assert (one is None) == (two is None)
    assert np.array_equal(first.state.local["w"], second.state.local["w"])
    assert first.snapshot()[0] == second.snapshot()[0]


def test_every_visit_needs_no_scores() -> None:
    assert not EveryRound().needs_score


# Error feedback over a kill ----------------------------------------------------------------

LOSSY = [name for name in codecs() if name != "none"]
STEP = tensor(*np.linspace(-1, 1, 60) ** 3)


class Uneven(ToyLearner):
    """Every visit moves ``w`` by ``STEP``, whose values no codec keeps exactly."""

    def train(
        self, tensors: Tensors, *, first_step: int, steps: int, proximal: float = 0.0
    ) -> Trained:
        return Trained({"w": tensors["w"] + STEP}, {"w": 1.0}, 0.0)


def reborn(client: Client) -> Client:
    """What a kill leaves of a client: text and bytes, read into a new process's client."""
    values, groups = client.snapshot()
    text = json.dumps(values)
    files = {name: codecs()["none"].pack(group) for name, group in groups.items()}
    fresh = Client(client.name, client.learner, client.algorithm)
    plain = codecs()["none"]
    read = {name: plain.unpack(file, exactly(groups[name])) for name, file in files.items()}
    fresh.restore(json.loads(text), read)
    return fresh


def test_every_lossy_codec_is_found() -> None:
    assert {"fp16", "int8", "int4", "topk"} <= set(LOSSY)


@pytest.mark.parametrize("killed_after", range(5))
@pytest.mark.parametrize("codec", LOSSY)
def test_error_feedback_survives_kill_and_resume(codec: str, killed_after: int) -> None:
    start = tensor(*np.linspace(0, 1, 60))

    def run(dies: bool) -> tuple[Client, list[bytes], np.ndarray]:
        client = Client("a", Uneven(), get_algorithm(f"fedavg:codec={codec}"))
        client.adopt(GlobalModel(0, {"w": start}))
        messages, arrived = [], np.zeros(60)
        for visit in range(5):
            if dies and visit == killed_after:
                client = reborn(client)
            update = client.work(100)
            assert update is not None
            messages.append(encode(update))
            arrived += decoded(messages[-1], update.delta).delta["w"]
        return client, messages, arrived

    whole, undisturbed, _ = run(dies=False)
    client, resumed, arrived = run(dies=True)
    assert resumed == undisturbed, "byte by byte"
    assert np.array_equal(client.state.local["w"], whole.state.local["w"])
    assert np.array_equal(client.state.reference["w"], whole.state.reference["w"])
    unsent = client.state.local["w"] - client.state.reference["w"]
    assert np.abs(unsent).max() > 1e-6, "the codec did round something away"
    assert arrived + unsent == pytest.approx(5 * STEP, abs=1e-5)


@pytest.mark.parametrize("codec", LOSSY)
def test_error_feedback_survives_a_broadcast_where_local_progress_is_kept(codec: str) -> None:
    """The cloud adds what arrived and sends it back; killed at each step, nothing is lost."""
    algorithm = get_algorithm(f"fedavg:keep_local=true:codec={codec}")
    cloud = tensor(*np.linspace(0, 1, 60))
    start, client = cloud, Client("a", Uneven(), algorithm)
    for version in range(5):
        client.adopt(GlobalModel(version, {"w": cloud}))
        client = reborn(client)
        update = client.work(100)
        assert update is not None
        cloud = cloud + decoded(encode(update), update.delta).delta["w"]
        client = reborn(client)
    unsent = client.state.local["w"] - client.state.reference["w"]
    assert (cloud - start) + unsent == pytest.approx(5 * STEP, abs=1e-5)


# Clients that send moments -----------------------------------------------------------------

GSFS = algorithms()["gsfs"]


@dataclass
class Reader(ToyLearner):
    """Keeps account of what was read: (first step, steps) of each time."""

    seen: list[tuple[int, int]] = field(default_factory=list)

    def observe(
        self, tensors: Tensors, *, first_step: int, steps: int, tolerance: float
    ) -> Observed:
        assert tolerance == GSFS.tolerance
        self.seen.append((first_step, steps))
        return super().observe(tensors, first_step=first_step, steps=steps, tolerance=tolerance)


def head(version: int = 0) -> GlobalModel:
    weight = np.zeros((2, 1), np.float32)
    return GlobalModel(version, {"score.weight": weight, "score.bias": tensor(0.0, 0.0)})


def reader(*, epochs: float = 1.0, **fields: float) -> tuple[Client, Reader]:
    learner = Reader(**fields)
    client = Client("a", learner, GSFS, local_epochs=epochs)
    client.adopt(head())
    return client, learner


def test_flows_are_read_once_and_told_once() -> None:
    client, learner = reader()
    assert client.plan(100) == Plan(2, 0)
    update = client.work(100)
    assert update is not None
    assert (update.reason, update.samples, update.sequence) == ("gradient", 10, 1)
    assert (update.codec, update.score, list(update.delta)) == ("uniform", None, [STATISTICS])
    # What the coordinator reads is what it would make of the bytes.
    assert np.array_equal(
        decoded(encode(update), update.delta).delta[STATISTICS], update.delta[STATISTICS]
    )
    moments = update.delta[STATISTICS].T @ update.delta[STATISTICS]
    truth = np.array([[0, 1, 1, 0], [1, 1, 0, 1]])
    assert moments == pytest.approx(truth.T @ truth, abs=0.25)  # the codec rounds
    for version in (1, 2):
        assert client.plan(100) == Plan(0, 0)
        assert client.work(100) is None
        client.adopt(head(version))
    assert client.plan(100) == Plan(0, 0), "a new model does not change what the flows are"
    assert learner.seen == [(0, 2)]
    assert client.steps == 2


def test_statistics_that_were_refused_were_never_told() -> None:
    client, learner = reader()
    update = client.work(100)
    assert update is not None
    client.refused(update.sequence + 1)  # another's answer changes nothing
    assert client.state.reported == 2
    client.refused(update.sequence)
    assert (client.state.reported, client.plan(100)) == (0, Plan(2))
    client.adopt(head(1))
    again = client.work(100)
    assert again is not None
    assert (again.sequence, again.samples) == (2, 10)
    assert np.array_equal(again.delta[STATISTICS], update.delta[STATISTICS])
    client.refused(update.sequence)  # reported again meanwhile: an old answer
    assert client.plan(100) == Plan(0, 0)
    assert learner.seen == [(0, 2), (0, 2)]


def test_a_refusal_outlives_a_restart() -> None:
    client, _ = reader()
    update = client.work(100)
    assert update is not None
    after = Client("a", Reader(), GSFS)
    after.restore(*client.snapshot())
    after.refused(update.sequence)
    assert after.plan(100) == Plan(2, 0)


def test_a_visit_grows_with_the_site() -> None:
    client, learner = reader()
    client.work(100)
    learner.steps_per_epoch = 5
    assert client.plan(100) == Plan(3, 0)
    client.work(100)
    assert learner.seen == [(0, 2), (2, 3)]


def test_a_site_that_reads_does_not_move_the_model() -> None:
    client, _ = reader()
    before = head().tensors
    client.work(100)
    assert before
    assert all(np.array_equal(client.state.local[name], value) for name, value in before.items())


def test_silent_below_the_floor_until_another_model_comes() -> None:
    client, learner = reader(pull=0.05)
    assert client.work(100) is None
    assert client.plan(100) == Plan(0, 0), "the same model would say the same"
    assert client.work(100) is None
    assert learner.seen == [(0, 2)]
    client.adopt(head(1))
    assert client.plan(100) == Plan(2, 0)
    assert client.work(100) is None
    learner.pull = 0.5
    assert client.plan(100) == Plan(0, 0)
    client.adopt(head(2))
    update = client.work(100)
    assert update is not None
    assert (update.samples, update.base_version, client.state.reported) == (10, 2, 2)
    client.adopt(head(3))
    assert client.plan(100) == Plan(0, 0)
    assert learner.seen == [(0, 2)] * 3


def test_less_than_an_epoch_is_read_piece_by_piece() -> None:
    client, learner = reader(epochs=0.25, steps_per_epoch=8, samples=40)
    reported = [client.work(100) for _ in range(4)]
    assert learner.seen == [(0, 2), (2, 2), (4, 2), (6, 2)]
    assert [update.samples for update in reported if update] == [10] * 4
    assert client.plan(100) == Plan(0, 0)


def test_a_silent_piece_is_told_with_the_next() -> None:
    client, learner = reader(epochs=0.25, steps_per_epoch=8, samples=40, pull=0.0)
    assert client.work(100) is None
    assert client.plan(100) == Plan(4, 0)
    learner.pull = 1.0
    update = client.work(100)
    assert update is not None
    assert update.samples == 20
    assert learner.seen == [(0, 2), (0, 4)]
    client.work(100)
    assert learner.seen[-1] == (4, 2)


def test_pieces_of_uneven_size_and_more_than_an_epoch_end_with_the_flows() -> None:
    client, learner = reader(epochs=0.6, steps_per_epoch=5)
    client.work(100)
    client.work(100)
    assert learner.seen == [(0, 3), (3, 2)]
    client, learner = reader(epochs=4.0, steps_per_epoch=5)
    assert client.plan(100) == Plan(5, 0)
    client.work(100)
    assert learner.seen == [(0, 5)]
    assert client.plan(100) == Plan(0, 0)


def test_the_budget_cuts_what_is_read() -> None:
    client, learner = reader(steps_per_epoch=4, samples=8)
    assert client.plan(1) == Plan(1, 0)
    update = client.work(1)
    assert update is not None
    assert update.samples == 2
    assert client.plan(100) == Plan(3, 0)
    client.work(100)
    assert learner.seen == [(0, 1), (1, 3)]
    with pytest.raises(ValueError, match="at least one step"):
        client.work(0)


happenings = st.one_of(
    st.tuples(st.just("adopt"), st.just(0)),
    st.tuples(st.just("work"), st.integers(1, 9)),
    st.tuples(st.just("pull"), st.sampled_from([0.0, 0.05, 1.0])),
)


@settings(max_examples=100, deadline=None)
@given(
    story=st.lists(happenings, max_size=20),
    epochs=st.sampled_from([0.2, 0.5, 1.0, 3.0]),
    steps=st.integers(1, 7),
)
def test_whatever_happens_every_step_is_told_at_most_once_and_a_kill_changes_nothing(
    story: list[tuple[str, float]], epochs: float, steps: int
) -> None:
    learner = Reader(steps_per_epoch=steps, samples=10 * steps)
    whole = Client("a", learner, GSFS, local_epochs=epochs)
    other = Client("a", learner, GSFS, local_epochs=epochs)
    for client in (whole, other):
        client.adopt(head())
    version, reported = 0, 0
    for verb, value in story:
        if verb == "adopt":
            version += 1
            whole.adopt(head(version))
            other.adopt(head(version))
        elif verb == "pull":
            learner.pull = value
        else:
            planned = whole.plan(int(value))
            before = len(learner.seen)
            update, again = whole.work(int(value)), other.work(int(value))
            assert (update and encode(update)) == (again and encode(again))
            assert planned.steps <= value
            assert len(learner.seen) - before == (2 if planned.steps else 0)
            if planned.steps:
                assert learner.seen[-1] == (reported, planned.steps), "goes on where it last spoke"
            if update is not None:
                assert update.samples == 10 * planned.steps
                reported += planned.steps
            elif planned.steps:
                assert learner.pull <= 0.1
        assert whole.reported_steps == reported <= whole.state.read <= steps
        assert whole.snapshot()[0] == other.snapshot()[0]
        values, groups = other.snapshot()
        other = Client("a", learner, GSFS, local_epochs=epochs)
        other.restore(json.loads(json.dumps(values)), groups)
    learner.pull = 1.0
    whole.adopt(head(version + 1))
    for _ in range(steps):
        whole.work(100)
    assert whole.plan(100) == Plan(0, 0), "in the end everything was reported"
    assert whole.reported_steps == steps
