"""The coordinator's metrics, from a status that is read by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradsense.coordinator.exporter import StatusCollector

RUN = {
    "version": 3,
    "pooled": 1,
    "online": 2,
    "current": 1,
    "journal_bytes": 10,
    "waiting_bytes": 0,
    "updates": 4,
    "duplicates": 1,
    "aggregations": 2,
    "bytes_in": 99,
    "refused": {"replay": 2, "too-often": 5},
}
STATUS: dict[str, Any] = {
    "connected": True,
    "counts": {},
    "unreadable": {"gone": "it is damaged"},
    "shut_out": {"cam": 3.0, "hall": 1.5},
    "turned_away": {"cam": {"qos-0": 3, "flood": 1}},
    "contradictions": {"porch": {"cam": 0.25}},
    "runs": {"porch": RUN, "shed": {**RUN, "version": 8, "refused": {}}},
}


def samples(status: dict[str, Any]) -> dict[tuple[str, ...], float]:
    return {
        (sample.name.removeprefix("gradsense_coordinator_"), *sample.labels.values()): sample.value
        for family in StatusCollector(lambda: status).collect()
        for sample in family.samples
    }


def test_every_part_of_a_status_is_a_metric() -> None:
    found = samples(STATUS)
    alone = {("connected",): 1, ("stalls_total",): 0, ("unreadable_runs",): 1}
    assert found.items() >= {**alone, ("shut_out_devices",): 2}.items()
    assert found["turned_away_total", "cam", "qos-0"] == 3
    assert found["turned_away_total", "cam", "flood"] == 1
    assert found["contradiction", "porch", "cam"] == 0.25
    assert (found["version", "porch"], found["version", "shed"]) == (3, 8)
    assert {key[2]: value for key, value in found.items() if key[0] == "refused_total"} == {
        "replay": 2,
        "too-often": 5,
    }
    for name, value in (("pooled_updates", 1), ("update_bytes_total", 99), ("devices_online", 2)):
        assert found[name, "shed"] == value
    assert len(found) == 4 + 2 + 1 + 2 * 10 + 2


def test_a_fleet_without_runs_has_none_of_theirs() -> None:
    empty = {"counts": {"stalls": 7}, "runs": {}, "contradictions": {}, "turned_away": {}}
    found = samples({**STATUS, **empty})
    assert set(found) == {
        *(("connected",), ("stalls_total",), ("unreadable_runs",), ("shut_out_devices",)),
    }
    assert found["stalls_total",] == 7


def test_every_metric_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
    for name, *_ in samples(STATUS):
        assert f"`{name}" in page, name
