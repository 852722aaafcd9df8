"""A watch over labelled captures: the alerts that it raises, measured beside the rules."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from gradsense.cli import evaluate as command
from gradsense.data.networks import Networks
from gradsense.data.sources.lines import Tally
from gradsense.data.sources.stream import read_log
from gradsense.data.synthetic.traffic import write_fleet
from gradsense.errors import InputError
from gradsense.experiments.evaluate_alerts import bundle_of, evaluate_alerts
from gradsense.experiments.watched import watched
from gradsense.gateway.settings import Settings
from gradsense.gateway.wiring import WatchPlan, open_watch
from tests.cli.conftest import in_process
from tests.support.sample_alerts import Ear


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("watched") / "captures"
    write_fleet(path, sites=2, flows=300, seed=7)
    return path


@pytest.fixture(scope="module")
def result(edge_bundle: Path, captures: Path) -> dict[str, Any]:
    return evaluate_alerts(edge_bundle, captures)


def test_the_alerts_are_those_that_a_watch_reports(
    edge_bundle: Path, captures: Path, tmp_path: Path
) -> None:
    log = next(captures.rglob("conn.log*"))
    flows = pl.concat(read_log(log, tally=Tally()))
    rows = {line: row for row, line in enumerate(flows["line"])}
    found = watched(log, edge_bundle, Networks(), rows)
    ear = Ear()
    settings = Settings(sensor="evaluate")
    watch = open_watch(WatchPlan([log], edge_bundle, tmp_path, settings), extra={"ear": ear})
    watch.outbox.start()
    for final in (False, True):
        while watch.step(watch.sources[0], final=final):
            pass
    watch.finish(close_alerts=True)
    watch.journal.close()
    opened = [alert for alert in ear.heard if alert.state == "open"]
    sizes = {alert.id: alert.flows for alert in ear.heard if alert.state == "closed"}
    assert len(found) == len(opened) > 0
    for one, alert in zip(found, opened, strict=True):
        assert one.device == alert.device
        assert flows["line"][one.flows[0]] == alert.example.line
        assert len(one.flows) == sizes[alert.id]
        assert one.time >= alert.first_ts


def test_the_model_stands_beside_every_rule(result: dict[str, Any], captures: Path) -> None:
    assert [row["name"] for row in result["rows"]] == [
        *("model", "rita-beacon", "scan-policy", "simple-scan", "together", "failed-tcp"),
    ]
    assert (result["captures"], result["synthetic"], result["networks"]) == (2, True, {})
    for row in result["rows"]:
        assert set(row["captures"]) == {path.name for path in captures.iterdir()}
        parts = row["captures"].values()
        assert sum(part["malicious_hours"] for part in parts) > 0
        assert all(part["right_hours"] <= part["found_hours"] for part in parts)
        # Every row is measured on the same hours and days.
        for name, part in row["captures"].items():
            same = result["rows"][0]["captures"][name]
            assert part["malicious_hours"] == same["malicious_hours"]
            assert part["device_days"] == same["device_days"]
    model = result["rows"][0]["mean"]
    assert model["found"] > 0.5
    assert model["right"] > 0.5
    json.dumps(result, allow_nan=False)


def test_the_table_has_every_detector(result: dict[str, Any]) -> None:
    out = io.StringIO()
    command.show_alerts(result, Console(file=out, width=200))
    assert all(row["title"] in out.getvalue() for row in result["rows"])
    assert "right reason" in out.getvalue()


def test_a_model_folder_is_exported_and_a_bundle_is_not(edge_bundle: Path, tmp_path: Path) -> None:
    with bundle_of(edge_bundle) as same:
        assert same == edge_bundle
    with pytest.raises(InputError), bundle_of(tmp_path):
        pass
    with bundle_of(edge_bundle.parent / "run" / "model") as made:
        assert any(made.iterdir())
    assert not made.exists()


def test_an_unlabelled_log_is_refused(edge_bundle: Path, edge_log: Path) -> None:
    with pytest.raises(InputError, match="no labelled flow"):
        evaluate_alerts(edge_bundle, edge_log)


def test_from_the_command_line(edge_bundle: Path, captures: Path, result: dict[str, Any]) -> None:
    arguments = ("evaluate", "--alerts", "--model", edge_bundle, "--data", captures)
    done = in_process(*arguments, "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == result
    assert "Mean over groups" in in_process(*arguments).out
    in_process(*arguments, "--cap", 5).complaint("--alerts", "--cap")
