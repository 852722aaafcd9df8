"""The published rules, by hand at their thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import polars as pl
import pytest

from gradsense.data.flows import FLOW_SCHEMA
from gradsense.data.networks import Networks
from gradsense.experiments.device_hours import RaisedAlert
from gradsense.experiments.rules.beacon_score import beacon_score
from gradsense.experiments.rules.published import PublishedRule, published
from gradsense.experiments.rules.scan_policy import scanner_is_responder
from tests.support.flow_rows import ROW

DEVICE, OTHER, OUT = "192.168.1.5", "192.168.1.6", "198.51.100.9"


def flow(ts: float, **values: Any) -> dict[str, Any]:
    """A SYN without an answer from the device."""
    return {**ROW, "ts": ts, "duration": None, "orig_h": DEVICE, "resp_h": OUT, "line": 1, **values}


def raised(name: str, flows: Sequence[dict[str, Any]]) -> list[RaisedAlert]:
    return published()[name].raised(pl.DataFrame(flows, schema=FLOW_SCHEMA), Networks())


def hosts(count: int, *, every: float = 1.0, **values: Any) -> list[dict[str, Any]]:
    """A scan for one port, of one host after the other."""
    return [flow(n * every, resp_h=f"198.18.{n // 250}.{n % 250}", **values) for n in range(count)]


# Every rule -----------------------------------------------------------------------------------


def test_they_are_found() -> None:
    assert set(published()) == {"failed-tcp", "rita-beacon", "scan-policy", "simple-scan"}
    assert all(rule.title and rule.source for rule in published().values())


@pytest.mark.parametrize("rule", published().values(), ids=lambda rule: rule.name)
def test_every_rule_depends_on_time_and_not_on_rows(rule: PublishedRule) -> None:
    flows = [*hosts(300), *(flow(3600.0 * n, resp_h=OUT) for n in range(1, 24))]
    flows = [{**one, "line": line} for line, one in enumerate(flows)]
    shuffled = flows.copy()
    Random(3).shuffle(shuffled)

    def lines(rows: list[dict[str, Any]]) -> list[tuple[float, str, list[int]]]:
        found = rule.raised(pl.DataFrame(rows, schema=FLOW_SCHEMA), Networks())
        return [
            (one.time, one.device, sorted(rows[row]["line"] for row in one.flows)) for one in found
        ]

    assert lines(flows) == lines(shuffled) != []


@pytest.mark.parametrize("rule", published().values(), ids=lambda rule: rule.name)
def test_no_rule_reads_a_label_or_needs_a_flow(rule: PublishedRule) -> None:
    flows = [*hosts(300), *(flow(3600.0 * n, resp_h=OUT) for n in range(1, 24))]
    frame = pl.DataFrame(flows, schema=FLOW_SCHEMA)
    blind = frame.with_columns(label=pl.lit(None, pl.String))
    assert rule.raised(frame, Networks()) == rule.raised(blind, Networks())
    assert rule.raised(frame.clear(), Networks()) == []


# One by one -----------------------------------------------------------------------------------


def test_failed_tcp_is_one_alert_a_device_hour() -> None:
    flows = [
        flow(10.0, duration=5.0),
        flow(20.0, conn_state="SF"),
        flow(30.0, proto="udp"),
        flow(40.0),
        flow(3700.0, conn_state="REJ", orig_h=OUT, resp_h=OTHER),
    ]
    assert raised("failed-tcp", flows) == [
        RaisedAlert(15.0, DEVICE, (0, 3)),
        RaisedAlert(3700.0, OTHER, (4,)),
    ]


def test_simple_scan_of_a_local_host_needs_250() -> None:
    assert raised("simple-scan", hosts(249)) == []
    (alert,) = raised("simple-scan", hosts(400))
    assert (alert.time, alert.device, len(alert.flows)) == (249.0, DEVICE, 250)
    # The same host and port again is no other attempt, nor is an established connection one.
    assert raised("simple-scan", [*hosts(249), *hosts(249)]) == []
    assert raised("simple-scan", hosts(400, conn_state="SF", history="ShADadFf")) == []
    assert raised("simple-scan", hosts(400, history="SR")) == []


def test_simple_scan_forgets_after_a_quarter_of_an_hour_and_repeats_after_an_hour() -> None:
    gap = [flow(1048.0 + n, resp_p=n) for n in range(101)]
    assert len(raised("simple-scan", [*hosts(149), *gap])) == 1  # 900 s later
    late = [{**one, "ts": one["ts"] + 1} for one in gap]
    assert raised("simple-scan", [*hosts(149), *late]) == []
    again = raised("simple-scan", [flow(float(n), resp_p=n) for n in range(5000)])
    assert [alert.time for alert in again] == [249.0, 249 + 3600 + 249.0]


def test_simple_scan_from_outside_needs_25_or_20_on_one_port() -> None:
    ports = [flow(float(n), orig_h=OUT, resp_h=DEVICE, resp_p=n) for n in range(25)]
    assert raised("simple-scan", ports[:24]) == []
    assert raised("simple-scan", ports) == [RaisedAlert(24.0, DEVICE, tuple(range(25)))]
    many = [flow(float(n), orig_h=OUT, resp_h=f"192.168.1.{n}") for n in range(20)]
    assert raised("simple-scan", many[:19]) == []
    assert len(raised("simple-scan", many)) == 20  # one on each host that was scanned


def test_scan_policy_within_an_epoch_of_five_minutes() -> None:
    assert raised("scan-policy", hosts(24)) == []
    (alert,) = raised("scan-policy", hosts(100))
    assert (alert.time, alert.device, len(alert.flows)) == (24.0, DEVICE, 25)
    assert raised("scan-policy", hosts(100, every=13.0)) == []  # 24 in 300 s
    ports = [flow(float(n), resp_p=n) for n in range(15)]
    assert raised("scan-policy", ports[:14]) == []
    assert raised("scan-policy", ports) == [RaisedAlert(14.0, DEVICE, tuple(range(15)))]


@pytest.mark.parametrize(
    ("state", "past", "reverse"),
    [
        ("S0", "S", False),
        ("S0", "H", True),
        ("REJ", "Sr", False),
        ("REJ", "", False),
        ("RSTO", "ShR", False),
        ("RSTO", "ShADR", None),
        ("RSTR", "sHr", True),
        ("SF", "ShADadFf", None),
    ],
)
def test_failed_connections_of_the_scan_policy(state: str, past: str, reverse: bool | None) -> None:
    assert scanner_is_responder(state, past) is reverse


def test_a_perfect_beacon_scores_one_and_noise_does_not() -> None:
    day = range(0, 86_400, 600)
    assert beacon_score(list(day), [100.0] * len(day), 0, 86_400 - 600) == 1
    rng = Random(1)
    times = sorted(rng.randrange(86_400) for _ in range(40))
    sizes = [float(rng.randrange(10_000)) for _ in times]
    score = beacon_score(times, sizes, 0, 86_400)
    assert score is not None
    assert score < 0.8  # not far below: as often in most hours, all day long


def test_a_beacon_score_by_hand() -> None:
    # Gaps 10, 10, 20, 100: quartiles 10, 15 and 60, so a skew of 0.8; MAD 5 of the median 15.
    times, sizes = [0, 10, 20, 40, 140], [0.0] * 5
    # Bins of 10 s: heights 1, 1, 1, 0, 1 and 0 but the 15th: mean 5/24, deviation above it: 0.
    # Five bars are too few for the two levels and for a duration.
    timing = (1 - 0.8 + 10 / 15) / 2
    assert beacon_score(times, sizes, 0, 240) == round((round(timing, 3) + 0.5) / 4, 3)


def test_a_beacon_needs_four_times_and_fewer_than_one_connection_a_second() -> None:
    assert beacon_score([0, 5, 10], [1.0] * 3, 0, 100) is None
    assert beacon_score([0, 0, 5, 10], [1.0] * 4, 0, 100) is None
    assert beacon_score([0, 5, 10, 15], [1.0] * 4, 0, 100) is not None
    assert beacon_score([0, 5, 10, 15], [1.0] * 4, 15, 15) is None
    assert beacon_score(list(range(86_400)), [1.0] * 86_400, 0, 86_400) is None


def test_rita_raises_one_alert_a_beacon_at_the_end_of_the_hour() -> None:
    beat = [flow(60.0 * n) for n in range(600)]
    (alert,) = raised("rita-beacon", beat)
    assert (alert.time, alert.device) == (3600.0, DEVICE)
    assert alert.flows == tuple(range(600))
    for ends in ({"resp_h": OTHER}, {"resp_h": "239.1.2.3"}, {"orig_h": OUT, "resp_h": DEVICE}):
        assert raised("rita-beacon", [{**one, **ends} for one in beat]) == []
