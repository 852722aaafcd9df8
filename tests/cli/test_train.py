"""``gradsense train`` through the real command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from gradsense.config import RunSettings

ROW = {
    "algorithm",
    "seed",
    "rounds",
    "central",
    "clients",
    "central_latency_s",
    "client_latency_s",
    "requests_per_min",
    "energy_j",
    "uplink_bytes",
    "downlink_bytes",
    "uploads",
    "aggregations",
    "virtual_s",
    "wall_s",
    "curve",
}
SCORES = {"accuracy", "precision", "recall", "f1_weighted", "f1_macro"}
POINT = {"aggregation", "virtual_s", "uplink_bytes", "accuracy", "f1_macro", "loss"}


def row_of(out: Path) -> dict[str, Any]:
    """The only row of a run, without what the clock says."""
    (row,) = json.loads((out / "results.json").read_text())
    row.pop("wall_s")
    return row


def test_results_hold_what_the_contract_says(trained: Any) -> None:
    (row,) = json.loads((trained.out / "results.json").read_text())
    assert row.keys() >= ROW
    assert row["central"].keys() >= SCORES
    assert row["clients"].keys() >= SCORES
    assert [point.keys() >= POINT for point in row["curve"]] == [True] * len(row["curve"])
    assert [point["aggregation"] for point in row["curve"]] == list(range(row["aggregations"] + 1))
    assert (row["algorithm"], row["seed"], row["rounds"]) == ("gsfs", 3, 4)
    assert row["synthetic"] is True
    assert row["leakage"].keys() == {"text", "compact", "host", "capture"}
    assert row["leakage"]["text"] == row["leakage"]["compact"] == 0, "a grouped split"
    assert row["leakage"]["capture"] == 1
    assert "training saw the text of 0.0 %" in (trained.out / "report.html").read_text()
    assert row["uploads"] == len(row["uploads_log"]) == sum(row["triggers"].values())
    assert row["uplink_bytes"] == sum(mark["bytes"] for mark in row["uploads_log"])
    assert row["requests_per_min"] == pytest.approx(60 / row["central_latency_s"])
    assert row["central_latency_s"] == pytest.approx(row["virtual_s"] / row["aggregations"])


def test_json_alone_is_on_stdout_and_nothing_on_stderr(trained: Any) -> None:
    (row,) = json.loads((trained.out / "results.json").read_text())
    assert json.loads(trained.outcome.out) == row
    assert trained.outcome.err == ""


def test_run_leaves_its_results_and_no_scraps(trained: Any) -> None:
    names = {path.name for path in trained.out.iterdir()}
    assert names == {"model", "report.html", "results.json", "settings.json"}
    report = (trained.out / "report.html").read_text()
    assert "gsfs" in report
    assert "http://" not in report.replace("http://www.w3.org", "")


def test_transformers_opens_the_model_folder(trained: Any) -> None:
    model = AutoModel.from_pretrained(trained.model)
    tokenizer = AutoTokenizer.from_pretrained(trained.model)
    card = json.loads((trained.model / "gradsense.json").read_text())
    assert model.config.num_labels == len(card["labels"])
    assert tokenizer.pad_token is not None
    assert card["readout"] == {"kind": "tokens", "length": 19}
    head = load_file(trained.model / "head.safetensors")
    assert head["weight"].shape == (len(card["labels"]), 19 * model.config.hidden_size)
    assert head["weight"].any(), "the cloud solved for it"
    told = {"algorithm": "gsfs", "seed": 3, "synthetic": True}
    assert told.items() <= card["extra"].items()
    assert 0.5 <= card["extra"]["alarm_threshold"] < 1
    assert {"accuracy", "f1_macro", "data_sha256"} <= card["extra"].keys()
    assert card["calibration"]["temperature"] > 0
    assert card["template"]["name"] == RunSettings().template


@pytest.mark.slow
def test_strategy_that_tunes_leaves_a_classifier_that_transformers_opens(
    fleet: Path, gradsense: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    common = ("train", "--data", fleet, "--cap", 30, "--rounds", 1, "--batch-size", 16)
    done = gradsense(*common, "--algorithm", "gsfs-tune", "--out", out)
    assert done.code == 0, done.err
    model = AutoModelForSequenceClassification.from_pretrained(out / "model")
    card = json.loads((out / "model" / "gradsense.json").read_text())
    assert model.config.num_labels == len(card["labels"])
    assert card["readout"] is None
    assert not (out / "model" / "head.safetensors").exists()
    trained = load_file(out / "model" / "model.safetensors")
    assert any(name.startswith("score") for name in trained)


@pytest.mark.slow
def test_one_seed_gives_one_result_and_another_seed_another(
    trained: Any, gradsense: Callable[..., Any], tmp_path: Path
) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    assert gradsense(*trained.args, "--out", again).code == 0
    assert gradsense(*trained.args, "--out", other, "--seed", 4).code == 0
    bases, heads = (
        [(out / "model" / name).read_bytes() for out in (trained.out, again, other)]
        for name in ("model.safetensors", "head.safetensors")
    )
    assert bases[0] == bases[1] == bases[2], "the base of the package stays as it is"
    assert heads[0] == heads[1] != heads[2]
    assert row_of(trained.out) == row_of(again) != row_of(other)


@pytest.mark.slow
def test_table_is_legible_in_a_file(trained: Any, gradsense: Callable[..., Any]) -> None:
    shown = gradsense(*trained.args, "--out", trained.out, "--resume")
    assert shown.code == 0
    assert "Table III" in shown.out
    assert "SYNTHETIC" in shown.out
    assert max(map(len, shown.out.splitlines())) > 100, "wider than rich's 80 columns"
    assert "algorithm" in shown.out
    assert str(trained.out / "report.html") in shown.out
    assert shown.err == ""


@pytest.mark.slow
def test_adapters_and_head_of_a_hugging_face_folder_train_and_travel(
    fleet: Path,
    pretrained: Path,
    gradsense: Callable[..., Any],
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    common = ("train", "--data", fleet, "--cap", 40, "--rounds", 1, "--template", "plain")
    done = gradsense(
        *common, "--model", pretrained, "--lora-rank", 2, "--algorithm", "fedavg", "--out", out
    )
    assert done.code == 0, done.err
    assert done.err == ""
    row, trained = row_of(out), load_file(out / "model" / "model.safetensors")
    # Per layer rank 2: four 16×16 attention maps, 16→32 and 32→16. Then a head of 16 a class.
    adapters = 2 * 2 * (4 * (16 + 16) + (16 + 32) + (32 + 16))
    floats = adapters + 16 * len(row["classes"])
    sent = row["uplink_bytes"] / row["uploads"]
    assert 4 * floats < sent < 4 * floats + 6000, "the rest is names and shapes"
    whole = sum(tensor.nbytes for tensor in trained.values())
    assert 4 * floats < whole / 2
    before = load_file(pretrained / "model.safetensors")
    moved = [
        name for name, value in before.items() if name in trained and (trained[name] != value).any()
    ]
    assert moved
    assert all("embed" not in name and "norm" not in name for name in moved)
    scored = gradsense("evaluate", "--model", out / "model", "--data", fleet, "--json", "--cap", 5)
    assert scored.code == 0, scored.err
    assert json.loads(scored.out)["template"] == "plain"


def test_interrupted_run_says_how_to_go_on(
    trained: Any, gradsense: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gradsense.experiments.corpus.load_corpus", interrupted)
    done = gradsense(*trained.args, "--out", tmp_path / "run")
    assert (done.code, done.out) == (130, "")
    assert done.err.count("\n") == 1
    assert "--resume" in done.err
