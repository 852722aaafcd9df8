from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch

from gradsense.config import settings
from gradsense.data.flows import class_numbers
from gradsense.data.synthetic.traffic import write_fleet
from gradsense.errors import InputError
from gradsense.experiments.bench import set_up
from gradsense.experiments.compare import check
from gradsense.experiments.corpus import Corpus, by_client, examples, load_corpus


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("captures")
    write_fleet(root, sites=3, flows=120, seed=0)
    return root


@pytest.fixture(scope="module")
def corpus(captures: Path) -> Corpus:
    return load_corpus(settings(data=captures, cap=40))


def whole(corpus: Corpus) -> pl.DataFrame:
    parts = corpus.parts
    return pl.concat([parts.train, parts.test, parts.validation])


def test_one_client_a_capture_and_no_text_in_two_parts(corpus: Corpus) -> None:
    assert len(corpus.clients) == 3
    assert (corpus.parts.train["client"] == corpus.parts.train["capture"]).all()
    texts = [set(frame["text"]) for frame in vars(corpus.parts).values()]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert corpus.synthetic
    assert set(corpus.classes) == set(whole(corpus)["class"].unique())


def test_cap_holds_in_every_cell(corpus: Corpus) -> None:
    cells = whole(corpus).group_by("capture", "class").len()
    assert cells["len"].max() == 40


def test_settings_reach_the_data(captures: Path) -> None:
    binary = load_corpus(settings(data=captures, cap=40, view="binary"))
    assert binary.classes == ("Benign", "Malicious")
    dealt = load_corpus(settings(data=captures, cap=40, partition="iid", clients=5))
    assert sorted(dealt.clients) == [f"client-000{i}" for i in range(1, 6)]
    other = load_corpus(settings(data=captures, cap=40, seed=1))
    assert not other.parts.train["text"].equals(dealt.parts.train["text"])


def test_contradictions_are_told_and_settled(captures: Path) -> None:
    kept = load_corpus(settings(data=captures, view="classes", template="plain"))
    settled = load_corpus(settings(data=captures, contradictions="majority", template="plain"))
    note = next(note for note in kept.notes if "another label" in note)
    assert "--contradictions keep" in note
    labels = settled.parts.train.group_by("text").agg(pl.col("class").n_unique())
    assert labels["class"].max() == 1
    assert kept.parts.train.height == settled.parts.train.height


def test_site_without_a_training_flow_is_noted(captures: Path) -> None:
    # With one flow of each class a site, its few flows may all go to the test.
    drawn = [load_corpus(settings(data=captures, cap=1, seed=seed)) for seed in range(12)]
    silent = [corpus for corpus in drawn if len(corpus.clients) < 3]
    assert silent
    for corpus in silent:
        (note,) = (note for note in corpus.notes if "tested only" in note)
        assert not any(client in note for client in corpus.clients)
    told = [corpus for corpus in drawn if any("tested only" in note for note in corpus.notes)]
    assert len(told) == len(silent)


def test_examples_hold_each_prompt_once(corpus: Corpus, captures: Path) -> None:
    bench = set_up(settings(data=captures, cap=40), corpus)
    frame = corpus.parts.train
    assert len(bench.train) == frame.height
    assert len(bench.train.encoded) == frame["text"].n_unique()
    again = examples(frame, corpus, bench.trainer.classifier)
    ids = bench.trainer.classifier.encode(frame["text"].to_list()).input_ids
    assert torch.equal(again.encoded.input_ids[again.index], ids)
    named = [corpus.classes[number] for number in class_numbers(frame, corpus.classes)]
    assert named == frame["class"].to_list()


def test_clients_together_hold_everything_once(corpus: Corpus, captures: Path) -> None:
    bench = set_up(settings(data=captures, cap=40), corpus)
    parts = by_client(corpus.parts.train, bench.train)
    assert list(parts) == corpus.clients == list(bench.learners)
    assert sum(map(len, parts.values())) == len(bench.train)
    for client, own in parts.items():
        frame = corpus.parts.train.filter(pl.col("client") == client)
        assert own.labels.tolist() == class_numbers(frame, corpus.classes).tolist()
    assert [learner.stream for learner in bench.learners.values()] == [0, 1, 2]


def test_every_file_is_announced(captures: Path) -> None:
    told: list[tuple[str, int, int]] = []
    load_corpus(settings(data=captures, cap=5), lambda *news: told.append(news))
    assert [(number, total) for _, number, total in told] == [(0, 3), (1, 3), (2, 3)]


def test_too_little_to_test_on_is_an_error(captures: Path, tmp_path: Path) -> None:
    log = next(captures.rglob("conn.log.labeled"))
    lines = log.read_text().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    (tmp_path / "conn.log").write_text("".join(lines[: place + 1]))
    with pytest.raises(InputError, match="no flows left to test on"):
        load_corpus(settings(data=tmp_path))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"algorithm": "nope"}, "'nope'"),
        ({"template": "nope"}, "'nope'"),
        ({"devices": "nope"}, "'nope'"),
        ({"data": "/nope"}, "/nope"),
    ],
)
def test_preflight_finds_names_that_do_not_exist(values: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check(settings(**values))


def test_preflight_passes_what_exists(captures: Path) -> None:
    check(settings(data=captures))
    check(settings(algorithm="forest"), reference=True)


def test_labels_without_the_normal_class_are_refused(captures: Path) -> None:
    with pytest.raises(InputError, match="'Benign' is missing"):
        load_corpus(settings(data=captures, labels=("DDoS", "C&C"), unknown_labels="drop"))


def test_rows_in_blocks_by_class_are_noted_where_prompts_read_what_came_before(
    captures: Path, tmp_path: Path
) -> None:
    log = next(captures.rglob("conn.log.labeled"))
    lines = log.read_text().splitlines(keepends=True)
    rows = sorted((one for one in lines if one[0] != "#"), key=lambda row: row.split("   ")[-1])
    head = [one for one in lines if one[0] == "#" and not one.startswith("#close")]
    (tmp_path / "conn.log").write_text("".join([*head, *rows]))
    notes = load_corpus(settings(data=tmp_path, split="random")).notes
    assert any(note.startswith("rows not in time order: ") for note in notes)
    alone = load_corpus(settings(data=tmp_path, split="random", template="compact")).notes
    assert not any("time order" in note for note in alone)


def test_classes_that_only_the_test_has_are_noted(tmp_path: Path) -> None:
    fields = "ts id.orig_h id.resp_h id.resp_p proto conn_state label detailedlabel"
    rows = [(n, "Benign", "-") if n < 80 else (n, "Malicious", "DDoS") for n in range(100)]
    lines = [f"{n}.5 10.0.0.1 10.0.0.2 80 tcp S0 {label} {detail}" for n, label, detail in rows]
    text = "\n".join([f"#fields {fields}", *lines, ""]).replace(" ", "\t")
    (tmp_path / "conn.log").write_text(text)
    notes = load_corpus(settings(data=tmp_path, split="time")).notes
    assert "classes without a training flow, tested only: DDoS" in notes


def test_a_log_beside_the_one_that_is_read_is_noted(tmp_path: Path) -> None:
    write_fleet(tmp_path, sites=2, flows=120, seed=0)
    log = next(tmp_path.rglob("conn.log.labeled"))
    (log.parent / "eve.json").touch()
    notes = load_corpus(settings(data=tmp_path)).notes
    assert any("eve.json beside it is not" in note for note in notes)


def test_flows_of_one_class_are_refused(captures: Path, tmp_path: Path) -> None:
    log = next(captures.rglob("conn.log.labeled"))
    lines = log.read_text().splitlines(keepends=True)
    kept = (line for line in lines if line.startswith("#") or "Benign" in line)
    (tmp_path / "conn.log").write_text("".join(kept))
    with pytest.raises(InputError, match="every flow is of the class 'Benign'"):
        load_corpus(settings(data=tmp_path))
