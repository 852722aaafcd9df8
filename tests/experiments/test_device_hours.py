"""The operator's measure, by hand on a few made-up flows."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsense.data.flows import FLOW_SCHEMA
from gradsense.experiments.device_hours import (
    DAY_S,
    HOUR_S,
    DeviceHours,
    RaisedAlert,
    by_group,
    group_of,
    mean_over,
    measure,
    networks_of,
    pooled,
)
from tests.support.flow_rows import ROW

CAMERA, LAMP, OUT = "192.168.1.5", "192.168.1.6", "198.51.100.9"
BAD, GOOD, NONE = "Malicious", "Benign", "-"


def frame(*flows: tuple[float, str, str, str]) -> pl.DataFrame:
    """(hours since the epoch, originator, responder, label) a flow."""
    rows: list[dict[str, Any]] = [
        {
            **ROW,
            "ts": hours * HOUR_S,
            "orig_h": orig_h,
            "resp_h": resp_h,
            "label": label,
            "detail": "-",
            "line": line,
        }
        for line, (hours, orig_h, resp_h, label) in enumerate(flows)
    ]
    return pl.DataFrame(rows, schema=FLOW_SCHEMA)


#: The camera is benign in hour 0, attacked in hour 1 and attacks in hour 2; the lamp is benign.
FLOWS = frame(
    (0.5, CAMERA, OUT, GOOD),
    (1.25, OUT, CAMERA, BAD),
    (1.5, CAMERA, OUT, GOOD),
    (2.5, CAMERA, OUT, BAD),
    (0.5, LAMP, OUT, GOOD),
    (3.5, LAMP, OUT, NONE),
)


def measured(*alerts: tuple[float, str, tuple[int, ...]]) -> DeviceHours:
    raised = [RaisedAlert(hours * HOUR_S, device, rows) for hours, device, rows in alerts]
    return measure(FLOWS, raised, networks_of(FLOWS))


def test_without_an_alert_nothing_is_found() -> None:
    assert measured() == DeviceHours(malicious_hours=2, benign_hours=2, device_days=2, attacked=1)
    assert (measured().found, measured().false_a_day, measured().median_minutes) == (0, 0, None)


def test_an_alert_for_a_wrong_reason_finds_the_hour_and_is_not_right() -> None:
    found = measured((1.5, CAMERA, (2,)))
    assert (found.found, found.right, found.false_alerts) == (0.5, 0, 0)
    assert found.minutes == (15,)


def test_the_example_must_be_malicious_and_so_must_most_flows() -> None:
    assert measured((2.5, CAMERA, (1, 3))).right == 1
    assert measured((2.5, CAMERA, (2, 1, 3))).right == 0  # its example is benign
    assert measured((2.5, CAMERA, (1, 2))).right == 0  # half of its flows are
    assert measured((2.5, CAMERA, (1, 2, 3))).right_hours == 2


def test_false_alerts_are_of_benign_flows_alone() -> None:
    found = measured((0.6, CAMERA, (0,)), (0.7, CAMERA, (0,)), (0.6, LAMP, (4, 5)), (4, LAMP, (5,)))
    assert (found.alerts, found.false_alerts, found.unjudged_alerts) == (4, 3, 1)
    # Two alerts cover the same hour of the camera, and in the lamp's second nothing is labelled.
    assert (found.false_hours, found.benign_hours, found.device_days) == (2, 2, 2)
    assert (found.false_share, found.false_a_day) == (1, 1.5)


def test_an_alert_on_another_device_finds_nothing() -> None:
    found = measured((1.3, LAMP, (1,)))
    assert (found.found, found.false_alerts) == (0, 0)


def test_the_minutes_run_to_the_first_alert_that_is_not_over_before() -> None:
    assert measured((0.6, CAMERA, (0,)), (2.75, CAMERA, (3,))).minutes == (90,)
    assert measured((0.6, CAMERA, (0, 1))).minutes == (0,)


def test_only_local_addresses_are_devices() -> None:
    flows = frame((0, CAMERA, OUT, GOOD), (0, CAMERA, LAMP, BAD), (0, "0.0.0.0", OUT, BAD))
    found = measure(flows, [RaisedAlert(0, "0.0.0.0", (2,))], networks_of(flows))
    # Of a flow between two devices the originator is the device.
    assert (found.malicious_hours, found.device_days, found.attacked) == (1, 1, 1)
    assert (found.found, found.false_alerts) == (0, 0)


def test_a_server_with_a_public_address_is_the_device_of_its_capture() -> None:
    server = "203.0.113.7"
    flows = frame(*((hour, f"198.51.100.{hour}", server, BAD) for hour in range(4)))
    networks = networks_of(flows)
    assert [str(one) for one in networks.own] == [f"{server}/32"]
    assert measure(flows, [], networks).malicious_hours == 4
    home = frame((0, CAMERA, server, GOOD), (1, CAMERA, LAMP, GOOD), (2, OUT, server, GOOD))
    assert networks_of(home).own == ()
    assert networks_of(frame()).own == ()
    # Neither the server that it is steered from, nor an address of no host.
    steered = frame(*((0, server, OUT, BAD),) * 9, (0, server, "198.51.100.1", BAD))
    assert [str(one) for one in networks_of(steered).own] == [f"{server}/32"]
    asking = frame(*((0, "0.0.0.0", "255.255.255.255", GOOD),) * 3, (0, CAMERA, OUT, GOOD))
    assert networks_of(asking).own == ()


def test_days_and_hours_are_those_of_utc() -> None:
    flows = frame((23.9, CAMERA, OUT, BAD), (24.1, CAMERA, OUT, BAD), (24.2, CAMERA, OUT, BAD))
    found = measure(flows, [], networks_of(flows))
    assert (found.malicious_hours, found.device_days) == (2, 2)
    assert DAY_S == 24 * HOUR_S


def test_groups_are_pooled_and_the_mean_is_over_those_that_have_a_rate() -> None:
    captures = {
        "lab__a": DeviceHours(malicious_hours=1, found_hours=1, device_days=1, minutes=(1,)),
        "lab__b": DeviceHours(malicious_hours=3, device_days=1, false_alerts=4, minutes=(5,)),
        "CTU-Honeypot-Capture-4-1": DeviceHours(device_days=2),
        "CTU-IoT-Malware-Capture-1-1": DeviceHours(malicious_hours=2, found_hours=1, minutes=(9,)),
        "home": DeviceHours(device_days=1),
    }
    groups = by_group(captures)
    assert list(groups) == ["home", "iot23", "lab"]
    assert (groups["lab"].found, groups["lab"].false_a_day) == (0.25, 2)
    mean = mean_over(groups)
    assert (mean["found"], mean["groups"]) == (0.375, 2)
    assert mean["false_a_day"] == pytest.approx(2 / 3)
    assert mean["minutes"] == 5
    assert mean_over({})["found"] is None
    assert group_of("nmap-lab__a__b") == "nmap-lab"


def test_json_has_the_rates_and_their_counts() -> None:
    whole = measured((1.5, CAMERA, (1,))).to_json()
    assert (whole["found"], whole["found_hours"], whole["malicious_hours"]) == (0.5, 1, 2)
    assert (whole["minutes"], whole["alerted"], whole["attacked"]) == (15, 1, 1)


_alerts = st.lists(
    st.builds(
        RaisedAlert,
        st.floats(0, 10 * HOUR_S),
        st.sampled_from([CAMERA, LAMP, OUT]),
        st.lists(st.integers(0, FLOWS.height - 1), min_size=1, max_size=8, unique=True).map(tuple),
    ),
    max_size=8,
)


@given(_alerts, _alerts)
def test_more_alerts_find_no_less_and_are_no_less_false(
    some: list[RaisedAlert], more: list[RaisedAlert]
) -> None:
    networks = networks_of(FLOWS)
    few, all_ = measure(FLOWS, some, networks), measure(FLOWS, some + more, networks)
    assert few.right_hours <= few.found_hours <= all_.found_hours <= all_.malicious_hours
    assert few.false_alerts <= all_.false_alerts
    assert few.false_hours <= all_.false_hours
    assert all_.false_alerts + all_.unjudged_alerts <= all_.alerts
    assert all_ == measure(FLOWS, more + some, networks)


@given(st.lists(st.sampled_from([DeviceHours(1, 1, minutes=(2.0,)), DeviceHours(2)]), max_size=6))
def test_pooling_is_a_sum(parts: list[DeviceHours]) -> None:
    half = len(parts) // 2
    assert pooled([pooled(parts[:half]), pooled(parts[half:])]) == pooled(parts)
