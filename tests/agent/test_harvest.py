"""Every labelled flow of a site is gathered once: from logs, by rules, by operators' words."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_network
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.agent import labelling as module
from gradsense.agent.label_rules import LabelRule, LabelRules
from gradsense.agent.labelling import BatchBuilder, Gathered, Harvest, find_logs
from gradsense.data.datasets.captures import Dataset, in_context, load
from gradsense.data.flows import ContextWindow, class_numbers
from gradsense.data.networks import Networks
from gradsense.data.sources.lines import Tally
from gradsense.data.sources.stream import read_log
from gradsense.data.synthetic.traffic import write_fleet, write_sample
from gradsense.errors import InputError
from gradsense.gateway.alerting.alert import Alert
from gradsense.gateway.alerting.grouping import Group
from gradsense.gateway.store import GatewayStore, StoreBatch
from gradsense.prompts.templates import get_template
from tests.support.sample_alerts import sample

TEMPLATE = get_template("context")
WIDTH = len(TEMPLATE.fields)

Rows = Counter[tuple[bytes, int]]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fleet")
    write_fleet(root, sites=2, flows=300, seed=0)
    for capture in load(root, cap=0, seed=0).captures:  # as Zeek would have written it: an agent
        whole = pl.concat(list(in_context(capture, tally=Tally())))  # reads a log as it grows
        order = {uid: place for place, uid in enumerate(whole["uid"])}
        lines = capture.path.read_text().splitlines(keepends=True)
        rows = sorted(
            (line for line in lines if not line.startswith("#")),
            key=lambda line, order=order: order[line.split("\t")[1]],
        )
        head = [line for line in lines[:-1] if line.startswith("#")]
        capture.path.write_text("".join([*head, *rows, lines[-1]]))
    return root


@pytest.fixture(scope="module")
def dataset(fleet: Path) -> Dataset:
    return load(fleet, cap=0, seed=0)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log without labels."""
    path = tmp_path_factory.mktemp("plain") / "conn.log"
    write_sample(path, flows=300)
    return path


def drain(harvest: Harvest, *, final: bool = True) -> list[Gathered]:
    steps = []
    while (gathered := harvest.step(final=final)) is not None:
        steps.append(gathered)
    return steps


def together(steps: list[Gathered]) -> Gathered:
    whole = steps[0]
    for step in steps[1:]:
        whole = whole.then(step)
    return whole


def rows(gathered: Gathered) -> Rows:
    """(prompt, label) to its flows; each stands there once."""
    keys = [
        (pick.tobytes(), label)
        for pick, label in zip(gathered.phrase_ids, gathered.labels.tolist(), strict=True)
    ]
    assert len(set(keys)) == len(keys)
    return Counter(dict(zip(keys, gathered.weights.tolist(), strict=True)))


def in_data_set(dataset: Dataset) -> Rows:
    numbers = class_numbers(dataset.flows, dataset.classes).tolist()
    phrase_ids = TEMPLATE.indices(dataset.flows)
    return Counter((pick.tobytes(), label) for pick, label in zip(phrase_ids, numbers, strict=True))


def flows_of(log: Path) -> pl.DataFrame:
    return ContextWindow().add(pl.concat(list(read_log(log, tally=Tally()))))


# Logs -----------------------------------------------------------------------------------------


def test_labelled_logs_give_what_the_data_set_holds(fleet: Path, dataset: Dataset) -> None:
    whole = together(drain(Harvest(TEMPLATE, dataset.classes, logs=[fleet])))
    assert rows(whole) == in_data_set(dataset)
    assert whole.phrase_ids.dtype == np.uint16
    assert whole.counts == {"flows": dataset.flows.height, "labelled:log": dataset.flows.height}
    assert set(whole.places) == {str(capture.path) for capture in dataset.captures}


@pytest.mark.parametrize("seed", range(5))
def test_every_flow_is_read_once_whatever_is_killed(
    fleet: Path, dataset: Dataset, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 3000)
    rng = np.random.default_rng(seed)
    places: dict[str, Any] = {}
    stored: Rows = Counter()
    read, lives = 0, 0
    while read < dataset.flows.height:
        lives += 1
        assert lives < 500
        harvest = Harvest(TEMPLATE, dataset.classes, logs=[fleet], places=places)
        batcher = BatchBuilder(most_rows=40, settle_s=1e9)
        for _ in range(rng.integers(1, 12)):  # and then it is killed, with what it holds
            gathered = harvest.step(final=True)
            if gathered is not None:
                batcher.add(gathered, 0.0)
            batch = batcher.take(inf if gathered is None else 0.0)
            if batch is not None:
                places.update(batch.places)
                stored += rows(batch)
                read += batch.counts["flows"]
    assert lives > 2
    assert stored == in_data_set(dataset)
    assert drain(Harvest(TEMPLATE, dataset.classes, logs=[fleet], places=places)) == []


def test_a_log_that_grows_is_read_as_it_grows(
    fleet: Path, dataset: Dataset, tmp_path: Path
) -> None:
    written = dataset.captures[0].path.read_bytes().splitlines(keepends=True)
    log = tmp_path / "conn.log"
    harvest = Harvest(TEMPLATE, dataset.classes, logs=[tmp_path])
    assert harvest.step() is None, "it is not there yet"
    steps = []
    for start in range(0, len(written), 17):
        with log.open("ab") as file:
            file.writelines(written[start : start + 17])
        steps += drain(harvest, final=False)
    first = dataset.flows.filter(pl.col("capture") == dataset.captures[0].name)
    phrase_ids, numbers = TEMPLATE.indices(first), class_numbers(first, dataset.classes).tolist()
    assert rows(together(steps)) == Counter(
        (pick.tobytes(), label) for pick, label in zip(phrase_ids, numbers, strict=True)
    )


def test_classes_that_the_model_does_not_know_are_counted(fleet: Path, dataset: Dataset) -> None:
    whole = together(drain(Harvest(TEMPLATE, ("Benign", "DDoS"), logs=[fleet])))
    known = dict(dataset.flows["class"].value_counts().iter_rows())
    expected = {f"unknown-class:{name}": count for name, count in known.items()}
    benign, ddos = expected.pop("unknown-class:Benign"), expected.pop("unknown-class:DDoS", 0)
    assert expected
    assert {name: n for name, n in whole.counts.items() if "unknown" in name} == expected
    assert whole.counts["labelled:log"] == whole.weights.sum() == benign + ddos


def test_a_class_of_the_runs_own_is_learnt_from_a_log_and_from_a_rule(tmp_path: Path) -> None:
    head = "#fields\tts\tid.orig_h\tid.resp_h\tid.resp_p\tproto\tconn_state\tlabel\n"
    flows = [("23", "PortScan"), ("23", "-"), ("80", "Flood"), ("80", "Benign")]
    lines = [f"1.5\t10.0.0.1\t10.0.0.2\t{port}\ttcp\tS0\t{label}\n" for port, label in flows]
    log = tmp_path / "conn.log.labeled"
    log.write_text(head + "".join(lines))
    rules = LabelRules((LabelRule(label="PortScan", resp_p=23),))
    labels = ("Benign", "DDoS", "PortScan")
    whole = together(drain(Harvest(TEMPLATE, labels, logs=[log], rules=rules)))
    assert sorted(zip(whole.labels.tolist(), whole.weights.tolist(), strict=True)) == [
        (0, 1),
        (2, 1),
        (2, 1),
    ]
    assert whole.counts == {
        "flows": 4,
        "labelled:log": 2,
        "labelled:rules": 1,
        "unknown-class:Flood": 1,
    }


def test_a_binary_model_takes_every_attack_as_one_class(fleet: Path, dataset: Dataset) -> None:
    whole = together(drain(Harvest(TEMPLATE, ("Benign", "Malicious"), logs=[fleet])))
    benign = dataset.flows.filter(pl.col("class") == "Benign").height
    assert whole.weights[whole.labels == 0].sum() == benign
    assert whole.weights[whole.labels == 1].sum() == dataset.flows.height - benign


def test_broken_lines_are_counted_by_reason(fleet: Path, dataset: Dataset, tmp_path: Path) -> None:
    log = tmp_path / "conn.log.labeled"
    log.write_bytes(dataset.captures[0].path.read_bytes() + b"1700000000.0\tbroken\n")
    whole = together(drain(Harvest(TEMPLATE, dataset.classes, logs=[log])))
    dropped = {name: n for name, n in whole.counts.items() if name.startswith("dropped:")}
    assert list(dropped.values()) == [1]


def test_a_damaged_place_is_refused(fleet: Path, dataset: Dataset) -> None:
    log = dataset.captures[0].path
    with pytest.raises(InputError, match="place is damaged"):
        Harvest(TEMPLATE, dataset.classes, logs=[log], places={str(log): {}})


def test_logs_are_found(fleet: Path, dataset: Dataset, tmp_path: Path) -> None:
    logs = [capture.path for capture in dataset.captures]
    assert find_logs([fleet]) == logs
    assert find_logs([logs[1], fleet]) == [logs[1], logs[0]], "each once"
    assert find_logs([tmp_path]) == [tmp_path / "conn.log"], "Zeek will write it"
    assert find_logs([tmp_path / "later.log"]) == [tmp_path / "later.log"]


# Rules ----------------------------------------------------------------------------------------


def test_rules_label_what_the_log_does_not(plain: Path) -> None:
    rules = LabelRules((LabelRule(label="Benign", proto="udp"), LabelRule(label="Gone", resp_p=80)))
    whole = together(drain(Harvest(TEMPLATE, ("DDoS", "Benign"), logs=[plain], rules=rules)))
    flows = flows_of(plain)
    udp = flows.filter(pl.col("proto") == "udp")
    gone = flows.filter((pl.col("proto") != "udp") & (pl.col("resp_p") == 80)).height
    assert rows(whole) == Counter((pick.tobytes(), 1) for pick in TEMPLATE.indices(udp))
    assert gone > 0
    assert whole.counts == {
        "flows": flows.height,
        "labelled:rules": udp.height,
        "unknown-class:Gone": gone,
        "unlabelled": flows.height - udp.height - gone,
    }


def test_the_label_of_the_log_goes_before_a_rule(fleet: Path, dataset: Dataset) -> None:
    rules = LabelRules((LabelRule(label="Benign"),))
    whole = together(drain(Harvest(TEMPLATE, dataset.classes, logs=[fleet], rules=rules)))
    assert rows(whole) == in_data_set(dataset)


def test_without_labels_only_the_place_moves_on(plain: Path) -> None:
    whole = together(drain(Harvest(TEMPLATE, ("Benign",), logs=[plain])))
    assert len(whole) == 0
    assert whole.phrase_ids.shape == (0, WIDTH)
    assert list(whole.places) == [str(plain)]


def test_prompts_are_those_that_the_watch_sees_and_rules_see_the_addresses(plain: Path) -> None:
    flows = flows_of(plain)
    far = next(end for end in flows["resp_h"] if end.startswith("198.51.100."))
    networks = Networks([ip_network("198.51.100.0/24")])
    rules = LabelRules((LabelRule(label="Benign", resp_h=far),))
    harvest = Harvest(TEMPLATE, ("Benign",), logs=[plain], rules=rules, networks=networks)
    chosen = flows.filter(pl.col("resp_h") == far)
    masked = networks.mask(chosen)
    assert isinstance(masked, pl.DataFrame)
    expected = Counter((pick.tobytes(), 0) for pick in TEMPLATE.indices(masked))
    assert rows(together(drain(harvest))) == expected
    assert expected != Counter((pick.tobytes(), 0) for pick in TEMPLATE.indices(chosen))


# Feedback -------------------------------------------------------------------------------------


def prompt(number: int) -> bytes:
    return np.array([number % 2] * WIDTH, np.uint16).tobytes()


def ring(journal: GatewayStore, name: str, prompts: dict[bytes, int]) -> Alert:
    """An alert with these prompts, and how many flows read so."""
    alert = sample(id=name, state="closed")
    group = Group(
        id=name, device=alert.device, label=alert.label, opened=0.0, first_ts=0.0, last_ts=0.0,
        seen=0.0, reported=0.0, why=(), example=alert.example,
        prompts={body.hex(): flows for body, flows in prompts.items()},
    )  # fmt: skip
    journal.commit(StoreBatch(messages=[alert], groups=[group]))
    return alert


def by_feedback(folder: Path, taken: bytes = b"", **options: Any) -> Harvest:
    return Harvest(
        TEMPLATE, ("Benign", "DDoS"), logs=[], journal_folder=folder, taken=taken, **options
    )


def test_a_word_is_taken_once(tmp_path: Path) -> None:
    harvest = by_feedback(tmp_path / "watch")
    assert harvest.step() is None, "nobody watches yet"
    assert not (tmp_path / "watch").exists()
    journal = GatewayStore(tmp_path / "watch")  # exclusively, as the watch has it
    alert = ring(journal, "a1", {prompt(0): 3, prompt(1): 2})
    assert harvest.step() is None
    journal.record_feedback(alert, "DDoS", 1.0)
    taken = harvest.step()
    assert taken is not None
    assert rows(taken) == {(prompt(0), 1): 3, (prompt(1), 1): 2}
    assert taken.counts == {"feedback": 1, "labelled:feedback": 5}
    assert taken.places == {}
    assert harvest.step() is None
    assert by_feedback(tmp_path / "watch", taken.taken).step() is None
    again = by_feedback(tmp_path / "watch").step()
    assert again is not None, "what was not stored is taken again"
    assert rows(again) == rows(taken)


def test_a_word_that_changes_after_it_was_taken_is_only_counted(tmp_path: Path) -> None:
    journal = GatewayStore(tmp_path)
    alert = ring(journal, "a1", {prompt(0): 3})
    harvest = by_feedback(tmp_path)
    for at, word in enumerate(["DDoS", "DDoS", "Malicious", "Benign"]):
        journal.record_feedback(alert, word, float(at))
        steps = drain(harvest)
        if at == 0:
            assert len(steps[0]) == 1
        elif word == "DDoS":
            assert steps == [], "the same word again is no change"
        else:
            assert len(steps[0]) == 0
            assert steps[0].counts == {"corrected": 1}
        harvest = by_feedback(tmp_path, steps[0].taken if steps else harvest._feedback.taken)


def test_a_word_that_could_not_be_used_may_be_mended(tmp_path: Path) -> None:
    journal = GatewayStore(tmp_path)
    alert = ring(journal, "a1", {prompt(0): 3})
    journal.record_feedback(alert, "Malicious", 1.0)
    harvest = by_feedback(tmp_path)
    (unused,) = drain(harvest)
    assert unused.counts == {"feedback": 1, "unknown-class:Malicious": 3}
    journal.record_feedback(alert, "DDoS", 2.0)
    (mended,) = drain(by_feedback(tmp_path, unused.taken))
    assert rows(mended) == {(prompt(0), 1): 3}


def test_prompts_of_another_template_are_counted(tmp_path: Path) -> None:
    journal = GatewayStore(tmp_path)
    beyond = np.full(WIDTH, 60_000, np.uint16).tobytes()
    alert = ring(journal, "a1", {b"\0\0": 1, b"\0": 4, beyond: 2, prompt(1): 5})
    journal.record_feedback(alert, "Benign", 1.0)
    (found,) = drain(by_feedback(tmp_path))
    assert rows(found) == {(prompt(1), 0): 5}
    assert found.counts == {"feedback": 1, "other-template": 7, "labelled:feedback": 5}


def test_words_come_in_steps_and_logs_have_their_turn(tmp_path: Path, plain: Path) -> None:
    journal = GatewayStore(tmp_path)
    for number in range(3):
        alert = ring(journal, f"a{number}", {prompt(number): 1})
        journal.record_feedback(alert, "Benign", float(number))
    rules = LabelRules((LabelRule(label="Benign"),))
    harvest = Harvest(
        TEMPLATE, ("Benign",), logs=[plain], rules=rules, journal_folder=tmp_path, most_rows=2
    )
    steps = drain(harvest)
    assert [step.counts["feedback"] for step in steps] == [0, 2, 1]


def test_a_damaged_memory_of_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="damaged"):
        by_feedback(tmp_path, b"[1]")


# Batches --------------------------------------------------------------------------------------


def gathered(*numbers: int, place: int = 0, label: int = 0) -> Gathered:
    """A step with prompts of one field each."""
    return Gathered(
        np.array([[number] for number in numbers], np.uint16).reshape(-1, 1),
        np.full(len(numbers), label),
        np.ones(len(numbers), np.int64),
        {"log": place},
        f"{place}".encode(),
        Counter(flows=len(numbers) or 1),
    )


def test_a_batch_is_due_when_it_is_large_or_old() -> None:
    batcher = BatchBuilder(most_rows=3, settle_s=60)
    assert batcher.take(0) is None
    batcher.add(gathered(5, 4, place=1), 10.0)
    assert batcher.take(69.9) is None
    batcher.add(gathered(5, place=2), 69.0)
    old = batcher.take(70.0)
    assert old is not None
    assert old.phrase_ids.tolist() == [[4], [5]]
    assert old.weights.tolist() == [1, 2]
    assert (old.places, old.taken, old.counts) == ({"log": 2}, b"2", {"flows": 3})
    assert batcher.take(1000.0) is None, "it was given out"
    batcher.add(gathered(1, 2), 1000.0)
    batcher.add(gathered(1, label=1), 1000.0)
    large = batcher.take(1000.0)
    assert large is not None
    assert list(zip(large.phrase_ids[:, 0].tolist(), large.labels.tolist(), strict=True)) == [
        (1, 0), (1, 1), (2, 0),
    ]  # fmt: skip


def test_a_place_moves_on_though_nothing_was_labelled() -> None:
    batcher = BatchBuilder()
    batcher.add(gathered(place=7), 0.0)
    batch = batcher.take(inf)
    assert batch is not None
    assert len(batch) == 0
    assert batch.places == {"log": 7}


def test_without_settling_every_step_is_a_batch() -> None:
    batcher = BatchBuilder(settle_s=0)
    batcher.add(gathered(1), 5.0)
    assert batcher.take(5.0) is not None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), unique=True), max_size=8), st.integers(1, 6))
def test_batching_loses_and_doubles_nothing(steps: list[list[int]], most_rows: int) -> None:
    batcher = BatchBuilder(most_rows=most_rows, settle_s=3)
    out: Counter[int] = Counter()
    for now, step in enumerate(steps):
        batcher.add(gathered(*step), float(now))
        batch = batcher.take(inf if now == len(steps) - 1 else float(now))
        if batch is not None:
            pairs = zip(batch.phrase_ids[:, 0].tolist(), batch.weights.tolist(), strict=True)
            out.update(dict(pairs))
    assert out == Counter(number for step in steps for number in step)
