"""Bad input through the real command line: one line that names the fault, exit code 2."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from gradsense.models.build import build
from gradsense.models.folder import save
from gradsense.prompts.templates import get_template

Damage = Callable[[list[str]], bytes]


def first_flow(lines: list[str]) -> int:
    return next(i for i, line in enumerate(lines) if not line.startswith("#"))


def with_cell(lines: list[str], column: str, value: str) -> bytes:
    """The log with another value in the first flow's ``column``."""
    header = next(line for line in lines if line.startswith("#fields")).rstrip("\n")
    place, number = header.split("\t").index(column) - 1, first_flow(lines)
    cells = lines[number].rstrip("\n").split("\t")
    cells[place] = value
    return text([*lines[:number], "\t".join(cells) + "\n", *lines[number + 1 :]])


def text(lines: list[str]) -> bytes:
    return "".join(lines).encode()


def unlabelled_as(lines: list[str], label: str) -> bytes:
    number = first_flow(lines)
    cells = lines[number].rstrip("\n").split("\t")
    cells[-1] = f"-   {label}"
    return text([*lines[:number], "\t".join(cells) + "\n", *lines[number + 1 :]])


#: Faults of a whole file, and what the line must say.
FILES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "empty": (lambda lines: b"", ("empty",)),
    "blank": (lambda lines: b"\n\n", ("empty",)),
    "binary": (lambda lines: bytes(range(256)) * 40, ("binary",)),
    "cut gzip": (lambda lines: gzip.compress(text(lines))[:-900], ("gzip", "again")),
    "no fields": (
        lambda lines: text([line for line in lines if not line.startswith("#fields")]),
        ("#fields",),
    ),
    "missing column": (
        lambda lines: text([line.replace("\tproto\t", "\tprotocol\t") for line in lines]),
        ("proto", "column"),
    ),
}


@pytest.fixture
def damaged(fleet: Path, tmp_path: Path) -> Callable[[Damage], tuple[Path, Path]]:
    """A fleet whose first log is damaged: the folder and the log."""

    def make(damage: Damage) -> tuple[Path, Path]:
        root = shutil.copytree(fleet, tmp_path / "captures")
        log = min(root.rglob("conn.log.labeled"))
        log.write_bytes(damage(log.read_text().splitlines(keepends=True)))
        return root, log

    return make


@pytest.mark.parametrize("fault", FILES)
def test_faulty_file(
    fault: str,
    damaged: Callable[[Damage], tuple[Path, Path]],
    trained: Any,
    gradsense: Callable[..., Any],
    tmp_path: Path,
) -> None:
    damage, said = FILES[fault]
    root, log = damaged(damage)
    out, verdicts = tmp_path / "run", tmp_path / "verdicts.jsonl"
    evaluate = ("evaluate", "--model", trained.model, "--out", verdicts, "--data")
    gradsense("data", "inspect", log, "--json").complaint(str(log), *said)
    gradsense(*evaluate, log).complaint(str(log), *said)
    gradsense(*evaluate, root).complaint(str(log), *said)
    gradsense("train", "--data", root, "--out", out).complaint(str(log), *said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captures"]


def test_log_without_flows(
    damaged: Callable[[Damage], tuple[Path, Path]],
    trained: Any,
    gradsense: Callable[..., Any],
    tmp_path: Path,
) -> None:
    _, log = damaged(lambda lines: text([line for line in lines if line.startswith("#")]))
    assert json.loads(gradsense("data", "inspect", log, "--json").out)["rows"] == 0
    gradsense("evaluate", "--model", trained.model, "--data", log).complaint(str(log), "no flows")
    train = ("train", "--data", log, "--out", tmp_path / "run")
    gradsense(*train).complaint(str(log), "no flows")
    assert not (tmp_path / "run").exists()


def test_unknown_label(
    damaged: Callable[[Damage], tuple[Path, Path]], gradsense: Callable[..., Any], tmp_path: Path
) -> None:
    root, log = damaged(lambda lines: unlabelled_as(lines, "Suspicious   Odd"))
    train = ("train", "--data", root, "--rounds", 1, "--cap", 20, "--out", tmp_path / "run")
    gradsense(*train).complaint(f"{log}:", "'label'", "Suspicious Odd", "--unknown-labels drop")
    assert not (tmp_path / "run").exists()
    done = gradsense(*train, "--unknown-labels", "drop")
    assert done.code == 0
    assert "unknown label" in done.out


@pytest.mark.parametrize(
    ("column", "value"),
    [("ts", "nan"), ("duration", "NaN"), ("orig_bytes", "nan"), ("id.resp_p", "99999999")],
)
def test_number_that_is_none_is_counted_and_strict_stops_at_it(
    column: str,
    value: str,
    damaged: Callable[[Damage], tuple[Path, Path]],
    gradsense: Callable[..., Any],
) -> None:
    _, log = damaged(lambda lines: with_cell(lines, column, value))
    counted = gradsense("data", "inspect", log, "--json")
    assert counted.code == 0, counted.err
    (drop,) = json.loads(counted.out)["tally"]["dropped"].values()
    assert (drop["count"], drop["field"]) == (1, column)
    shown = gradsense("data", "inspect", log)
    assert "dropped" in shown.out
    assert column in shown.out
    strict = gradsense("data", "inspect", log, "--strict")
    strict.complaint(f"{log}:{drop['line']}", f"'{column}'")


def test_bytes_that_are_no_text_are_counted_and_strict_stops_at_them(
    damaged: Callable[[Damage], tuple[Path, Path]], gradsense: Callable[..., Any], tmp_path: Path
) -> None:
    root, log = damaged(lambda lines: text(lines).replace(b"\tudp\t", b"\t\xff\xfe\t", 1))
    train = ("train", "--data", root, "--rounds", 1, "--cap", 20, "--out", tmp_path / "run")
    gradsense(*train, "--strict").complaint(f"{log}:", "bytes")
    assert not (tmp_path / "run").exists()
    done = gradsense(*train)
    assert done.code == 0, done.err
    assert "undecodable" in done.out


@pytest.mark.parametrize("command", ["inspect", "evaluate", "train", "compare"])
def test_data_that_is_not_there(
    command: str, trained: Any, gradsense: Callable[..., Any], tmp_path: Path
) -> None:
    empty, missing, out = tmp_path / "empty", tmp_path / "missing", tmp_path / "out"
    empty.mkdir()
    (empty / "notes.txt").write_text("nothing here")
    start: tuple[object, ...] = {
        "inspect": ("data", "inspect"),
        "evaluate": ("evaluate", "--model", trained.model, "--data"),
        "train": ("train", "--out", out, "--data"),
        "compare": ("compare", "--out", out, "--seeds", 1, "--jobs", 1, "--data"),
    }[command]
    gradsense(*start, missing).complaint(str(missing), "no such file or folder", "path")
    gradsense(*start, empty).complaint(str(empty), "no captures")
    assert not out.exists()


@pytest.mark.parametrize("command", ["train", "compare", "evaluate", "synth", "demo"])
def test_unwritable_output(
    command: str, fleet: Path, trained: Any, gradsense: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    out = file / "below"  # nobody can write there, not even root
    start: tuple[object, ...] = {
        "train": ("train", "--data", fleet, "--out", out),
        "compare": ("compare", "--data", fleet, "--out", out),
        "evaluate": ("evaluate", "--model", trained.model, "--data", fleet, "--out", out),
        "synth": ("data", "synth", out),
        "demo": ("demo", "--out", out),
    }[command]
    gradsense(*start).complaint(str(out))
    assert file.read_text() == "mine"


def test_verdicts_into_a_folder(
    fleet: Path, trained: Any, gradsense: Callable[..., Any], tmp_path: Path
) -> None:
    done = gradsense("evaluate", "--model", trained.model, "--data", fleet, "--out", tmp_path)
    done.complaint(str(tmp_path), "folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["results.json", "model", "report.html"])
def test_folder_with_something_else_of_that_name(
    name: str, fleet: Path, gradsense: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / name).write_text("mine")
    for more in ((), ("--resume",)):
        gradsense("train", "--data", fleet, "--out", tmp_path, *more).complaint(str(tmp_path), name)
    gradsense("compare", "--data", fleet, "--out", tmp_path).complaint(str(tmp_path), name)
    assert (tmp_path / name).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--algorithm", "fedsgd"), ("'fedsgd'", "gsfs-paper")),
        (("--algorithm", "gsfs:share"), ("'share'",)),
        (("--algorithm", "gsfs:colour=red"), ("'colour'",)),
        (("--algorithm", "gsfs-tune:keep_local=3"), ("'keep_local'",)),
        (("--model", "giant"), ("'giant'", "nano")),
        (("--model", "."), ("config.json",)),
        (("--template", "poem"), ("'poem'", "compact")),
        (("--devices", "abacus"), ("'abacus'", "pi4")),
        (("--rounds", "0"), ("'--rounds'",)),
        (("--lr", "-1"), ("'--lr'",)),
        (("--lr", "nan"), ("'--lr'",)),
        (("--alpha", "0"), ("'--alpha'",)),
        (("--dropout", "1"), ("'--dropout'",)),
        (("--participation", "1.5"), ("'--participation'",)),
        (("--seed", "-1"), ("'--seed'",)),
        (("--lora-rank", "-2"), ("'--lora-rank'",)),
        (("--algorithm", "gsfs", "--lora-rank", "4"), ("'--lora-rank'", "gsfs-tune")),
        (("--algorithm", "fedavg:frozen=true", "--lora-rank", "4"), ("'--lora-rank'",)),
        (("--algorithm", "fedavg:readout=tokens", "--lora-rank", "4"), ("'--lora-rank'",)),
        (("--algorithm", "gsfs:frozen=false"), ("'gsfs'", "'frozen'")),
        (("--algorithm", "gsfs:payload=deltas"), ("'payload'",)),
        (("--algorithm", "gsfs:readout=all"), ("'readout'", "'last', 'pooled' or 'tokens'")),
        (("--algorithm", "gsfs:tolerance=1"), ("'tolerance'",)),
        (("--algorithm", "gsfs:regularisation=0"), ("'regularisation'",)),
        (("--partition", "iid"), ("clients",)),
        (("--partition", "iid", "--clients", "99999"), ("99999", "fewer clients")),
        (("--clients", "2"), ("3 captures",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_setting_that_does_not_fit(
    *,
    options: tuple[str, ...],
    said: tuple[str, ...],
    fleet: Path,
    gradsense: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    gradsense("train", "--data", fleet, "--cap", 20, "--out", out, *options).complaint(*said)
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--split", "thirds", "--out", "x"),
        ("train", "--rounds", "many", "--out", "x"),
        ("train",),
        ("train", "--out", "x", "--no-such-option"),
        ("compare", "--seeds", "0", "--out", "x"),
        ("evaluate", "--model", "x"),
        ("data", "inspect"),
        ("no-such-command",),
    ],
    ids=" ".join,
)
def test_usage_error(
    arguments: tuple[str, ...],
    gradsense: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = gradsense(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("algorithms", ["fedavg,fedsgd", ",", "fedopt:lr=red"])
def test_comparison_of_what_is_not_there_starts_nothing(
    algorithms: str, fleet: Path, gradsense: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    compare = ("compare", "--data", fleet, "--no-references", "--out", out)
    gradsense(*compare, "--algorithms", algorithms).complaint("algorithm")
    assert not out.exists()


# Model folders ------------------------------------------------------------------------------


def edit_card(folder: Path, **changes: object) -> None:
    card = json.loads((folder / "gradsense.json").read_text())
    (folder / "gradsense.json").write_text(json.dumps(card | changes))


def drop_tensor(folder: Path, name: str, file: str = "model.safetensors") -> None:
    tensors = load_file(folder / file)
    tensors.pop(name)
    save_file(tensors, folder / file, {"format": "pt"})


def cut(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])


DAMAGES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "card is no JSON": (lambda f: (f / "gradsense.json").write_text("{"), ("gradsense.json",)),
    "card lacks labels": (
        lambda f: (f / "gradsense.json").write_text('{"format": 1}'),
        ("gradsense.json", "'labels'"),
    ),
    "card of the future": (lambda f: edit_card(f, format=2), ("gradsense.json", "'format'")),
    "no two labels": (lambda f: edit_card(f, labels=["a"]), ("gradsense.json", "'labels'")),
    "too few labels": (lambda f: edit_card(f, labels=["a", "b"]), ("gradsense.json", "2 labels")),
    "other template version": (
        lambda f: edit_card(f, template={"name": "compact", "version": 99}),
        ("version 99", "train the model again"),
    ),
    "unknown template": (
        lambda f: edit_card(f, template={"name": "poem", "version": 1}),
        ("'poem'",),
    ),
    "no card": (lambda f: (f / "gradsense.json").unlink(), ("gradsense.json",)),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ("model.safetensors",)),
    "cut weights": (lambda f: cut(f, "model.safetensors"), ("cannot open the model",)),
    "a tensor less": (
        lambda f: drop_tensor(f, "decoder.embed_tokens.weight"),
        ("model.safetensors", "embed_tokens.weight"),
    ),
    "no head": (lambda f: (f / "head.safetensors").unlink(), ("head.safetensors",)),
    "cut head": (lambda f: cut(f, "head.safetensors"), ("head.safetensors", "cannot be read")),
    "half a head": (
        lambda f: drop_tensor(f, "bias", "head.safetensors"),
        ("head.safetensors", "cannot be read"),
    ),
    "card forgets the head": (lambda f: edit_card(f, readout=None), ("score.weight",)),
    "no config": (lambda f: (f / "config.json").unlink(), ("config.json",)),
    "cut config": (lambda f: cut(f, "config.json"), ("cannot open the model",)),
    "cut tokenizer": (lambda f: cut(f, "tokenizer.json"), ("cannot open the model",)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_model_folder(
    damage: str, trained: Any, sample: Path, gradsense: Callable[..., Any], tmp_path: Path
) -> None:
    model, out = shutil.copytree(trained.model, tmp_path / "model"), tmp_path / "verdicts.jsonl"
    hurt, said = DAMAGES[damage]
    hurt(model)
    done = gradsense("evaluate", "--model", model, "--data", sample, "--out", out)
    done.complaint(str(model), *said)
    assert not out.exists()


def test_labels_that_the_papers_head_does_not_answer(
    sample: Path, gradsense: Callable[..., Any], tmp_path: Path
) -> None:
    classifier = build(
        "nano", template=get_template("compact"), labels=("a", "b", "c"), seed=0, pretrained=False
    )
    save(classifier, tmp_path / "model")
    edit_card(tmp_path / "model", labels=["a", "b"])
    done = gradsense("evaluate", "--model", tmp_path / "model", "--data", sample)
    done.complaint("gradsense.json", "'labels'", "2 labels, but the model answers 3")
    save(classifier, tmp_path / "model")
    drop_tensor(tmp_path / "model", "score.weight")
    done = gradsense("evaluate", "--model", tmp_path / "model", "--data", sample)
    done.complaint("model.safetensors", "score.weight")


def test_model_folder_that_is_none(
    trained: Any, sample: Path, gradsense: Callable[..., Any], tmp_path: Path
) -> None:
    for model in (tmp_path / "missing", trained.out, sample):
        gradsense("evaluate", "--model", model, "--data", sample).complaint(str(model))
