from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from gradsense.cli import evaluate as command
from gradsense.data.sources.stream import read_log
from gradsense.errors import InputError
from gradsense.experiments.evaluate import evaluate
from gradsense.models import folder
from gradsense.models.build import build
from gradsense.models.classifier import TextClassifier
from gradsense.prompts.templates import get_template

FIELDS = (
    "ts uid id.orig_h id.orig_p id.resp_h id.resp_p proto service duration orig_bytes resp_bytes "
    "conn_state history orig_pkts orig_ip_bytes resp_pkts resp_ip_bytes label detailedlabel"
)
LABELS = ("Benign", "DDoS", "PartOfAHorizontalPortScan")


def _line(number: int, port: int, label: str, detail: str) -> str:
    state = "SF" if port == 53 else "S0"
    return (
        f"{1000 + number}.5 C{number} 192.168.1.2 40000 8.8.8.8 {port} tcp - 0.1 10 10 {state} "
        f"Sd 1 50 1 50 {label} {detail}"
    )


def _log(path: Path, rows: list[tuple[int, str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [_line(number, *row) for number, row in enumerate(rows)]
    text = "\n".join([f"#fields {FIELDS}", *lines]).replace(" ", "\t")
    path.write_text("#separator \\x09\n" + text + "\n")
    return path


ROWS = [
    *[(53, "Benign", "-")] * 3,
    *[(23, "Malicious", "PartOfAHorizontalPortScan")] * 2,
    (23, "Malicious", "Okiru"),
    (23, "Malicious", "Nova"),
    (23, "-", "-"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model: what counts here is the counting."""
    path = tmp_path_factory.mktemp("evaluate") / "model"
    folder.save(build("nano", template=get_template("compact"), labels=LABELS, seed=0), path)
    return path


@pytest.fixture
def by_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that calls port 53 Benign and all else a scan, with probability 0.75."""

    def probabilities(self: TextClassifier, texts: list[str], batch_size: int = 512) -> Any:
        table = np.full((len(texts), 3), 0.125, dtype=np.float32)
        for row, text in enumerate(texts):
            table[row, 0 if "dp:53" in text.split() else 2] = 0.75
        return table

    monkeypatch.setattr(TextClassifier, "probabilities", probabilities)


@pytest.mark.usefixtures("by_port")
def test_by_hand(model: Path, tmp_path: Path) -> None:
    result = evaluate(model, _log(tmp_path / "conn.log.labeled", ROWS))
    assert (result["flows"], result["labelled"], result["unlabelled"]) == (8, 7, 1)
    assert result["verdicts"] == {"Benign": 3, "DDoS": 0, "PartOfAHorizontalPortScan": 5}
    assert result["unknown_classes"] == {"Okiru": 1, "Malicious Nova": 1}
    scores = result["scores"]
    assert scores["classes"] == (*LABELS, "Nova", "Okiru")
    assert scores["accuracy"] == pytest.approx(5 / 7)
    # Precision 1, 0, 2/4, 0, 0 and recall 1, 0, 1, 0, 0 with supports 3, 0, 2, 1, 1.
    assert scores["precision"] == pytest.approx((3 * 1 + 2 * 0.5) / 7)
    assert scores["f1_macro"] == pytest.approx((1 + 2 / 3 + 0 + 0) / 4)
    assert (scores["detection_rate"], scores["false_alarm_rate"]) == (1, 0)
    latency = result["latency"]
    assert latency["requests_per_min"] == pytest.approx(60_000 / latency["mean_ms"])
    assert latency["flows"] == 8
    json.dumps(result, allow_nan=False)


@pytest.mark.usefixtures("by_port")
def test_verdicts_of_an_unlabelled_log(model: Path, tmp_path: Path) -> None:
    log = _log(tmp_path / "conn.log", [(53, "-", "-"), (23, "-", "-")])
    out = tmp_path / "verdicts.jsonl"
    result = evaluate(model, log, out=out)
    assert result["scores"] is None
    assert result["verdicts"] == {"Benign": 1, "DDoS": 0, "PartOfAHorizontalPortScan": 1}
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert first == {
        "file": str(log),
        "line": 3,
        "ts": 1000.5,
        "orig_h": "192.168.1.2",
        "resp_h": "8.8.8.8",
        "resp_p": 53,
        "verdict": "Benign",
        "score": 0.75,
    }
    assert second["verdict"] == "PartOfAHorizontalPortScan"


def test_blocks_do_not_change_the_result(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = _log(tmp_path / "conn.log.labeled", ROWS * 20)
    whole = evaluate(model, log, cap=7)
    assert read_log.__kwdefaults__ is not None
    monkeypatch.setitem(read_log.__kwdefaults__, "block_bytes", 500)
    blocks = evaluate(model, log, cap=7)
    clocks = ("latency", "flows_per_s")
    assert {k: v for k, v in whole.items() if k not in clocks} == {
        k: v for k, v in blocks.items() if k not in clocks
    }
    # Benign, scan, Okiru, the strange label and the unlabelled flows: seven of each.
    assert (whole["flows"], whole["capped"]) == (35, 125)


@pytest.mark.usefixtures("by_port")
def test_a_folder_of_captures_and_the_binary_view(tmp_path: Path) -> None:
    binary = build(
        "nano", template=get_template("compact"), labels=("Benign", "X", "Malicious"), seed=0
    )
    folder.save(binary, tmp_path / "model")
    for name in ("one", "two"):
        _log(tmp_path / "captures" / name / "bro" / "conn.log.labeled", ROWS[:5])
    seen: list[tuple[str, int, int]] = []
    result = evaluate(
        tmp_path / "model", tmp_path / "captures", on_file=lambda *where: seen.append(where)
    )
    assert seen == [("one", 0, 2), ("two", 1, 2)]
    assert result["scores"]["accuracy"] == 1


def test_logs_without_flows(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no flows"):
        evaluate(model, _log(tmp_path / "conn.log", []))


@pytest.mark.parametrize("step", ["polars.DataFrame.write_ndjson", "os.fdopen", "os.rename"])
def test_a_disk_that_fills_at_any_step_leaves_what_was_there(
    step: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, out = _log(tmp_path / "conn.log", ROWS), tmp_path / "verdicts.jsonl"
    out.write_text("mine")

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(step, full)
    with pytest.raises(InputError, match=r"verdicts.jsonl: .*No space left.*; free some space"):
        evaluate(model, log, out=out)
    assert out.read_text() == "mine"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["conn.log", "verdicts.jsonl"]


def test_an_unwritable_output(model: Path, tmp_path: Path) -> None:
    log = _log(tmp_path / "conn.log", ROWS)
    with pytest.raises(InputError, match="cannot be written"):
        evaluate(model, log, out=tmp_path / "nowhere" / "verdicts.jsonl")


def test_a_failure_leaves_no_half_output(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "verdicts.jsonl"
    out.parent.mkdir()
    with pytest.raises(InputError, match="no flows"):
        evaluate(model, _log(tmp_path / "conn.log", []), out=out)
    assert not any(out.parent.iterdir())


def test_a_negative_cap(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cap"):
        evaluate(model, tmp_path, cap=-1)


@pytest.mark.usefixtures("by_port")
def test_the_command(model: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command.evaluate)
    log = str(_log(tmp_path / "conn.log.labeled", ROWS))
    plain = CliRunner().invoke(app, ["--model", str(model), "--data", log])
    assert plain.exit_code == 0
    assert "macro-F1" in plain.stdout
    assert "requests a minute" in plain.stdout
    as_json = CliRunner().invoke(app, ["--model", str(model), "--data", log, "--json"])
    assert json.loads(as_json.stdout)["flows"] == 8
    assert as_json.stderr == ""


@pytest.mark.usefixtures("by_port")
def test_people_see_what_the_model_does_not_know(model: Path, tmp_path: Path) -> None:
    result = evaluate(model, _log(tmp_path / "conn.log.labeled", ROWS))
    text = io.StringIO()
    command.show(result, Console(file=text, width=160))
    assert "1 flows of class 'Okiru', which the model does not know" in text.getvalue()


def test_a_log_out_of_order_is_told_where_the_model_reads_what_came_before(
    model: Path, tmp_path: Path
) -> None:
    path = _log(tmp_path / "conn.log", [(53, "Benign", "-")] * 1000)
    head, *rows = path.read_text().split("\n1")
    blocks = [head, *rows[500:], *(row.rstrip("\n") for row in rows[:500])]
    path.write_text("\n1".join(row.rstrip("\n") for row in blocks) + "\n")
    assert evaluate(model, path)["warnings"] == [], "its template reads a flow alone"
    reader = tmp_path / "model"
    folder.save(build("nano", template=get_template("context"), labels=LABELS, seed=0), reader)
    result = evaluate(reader, path)
    assert result["flows"] == 1000
    (said,) = result["warnings"]
    assert said.startswith("rows not in time order: conn.log")
    console = Console(file=io.StringIO(), width=200)
    command.show(result, console)
    assert isinstance(console.file, io.StringIO)
    assert "warning: rows not in time order" in console.file.getvalue()
