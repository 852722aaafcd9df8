"""From flows to alarms, with a detector whose verdicts are written down beforehand."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from gradsense.data.flows import CONTEXT_SCHEMA, FLOW_SCHEMA, column
from gradsense.data.networks import Networks
from gradsense.detection.detector import Verdict
from gradsense.gateway.alerting.grouping import LogClock
from gradsense.gateway.judge import Judge
from gradsense.tasks.task import get_task

QUIET = Verdict("Benign", 0.99, 0.01, False, 0.0, False)
STRANGE = Verdict("Benign", 0.9, 0.1, False, 5.0, True)
ATTACK = Verdict("DDoS", 0.95, 0.97, True, 1.0, False)


def flow(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys([*FLOW_SCHEMA, *CONTEXT_SCHEMA])
    row |= {"ts": 100.0, "orig_h": "192.168.1.5", "resp_h": "203.0.113.9", "resp_p": 80, "line": 1}
    return row | changes


class Scripted:
    """Verdicts in the order given; the phrase of a flow is its port."""

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts = list(verdicts)
        self.template = SimpleNamespace(
            task=get_task(), texts=lambda phrase_ids: [str(row[0]) for row in phrase_ids]
        )

    def phrase_ids(self, flows: Any) -> np.ndarray:
        return np.array([[port] for port in column(flows, "resp_p")], dtype=np.uint16)

    def judge(self, phrase_ids: np.ndarray) -> list[Verdict]:
        taken, self.verdicts = self.verdicts[: len(phrase_ids)], self.verdicts[len(phrase_ids) :]
        return taken


class ToyBaseline:
    """A baseline to which these devices' flows are new."""

    def __init__(self, *novel: str) -> None:
        self.novel, self.learnt, self.accepted = novel, [], []

    def observe(self, devices, phrase_ids, ts, learn):
        self.learnt += [device for device, one in zip(devices, learn, strict=True) if one]
        new = np.array([device in self.novel for device in devices], dtype=bool)
        return np.zeros(len(devices), np.float32), new

    def accept(self, device, phrase_ids):
        self.accepted.append((device, phrase_ids.tolist()))


def judged(flows: Any, *verdicts: Verdict, **parts: Any):
    judge = Judge(Scripted(*verdicts), LogClock(), **parts)  # type: ignore[arg-type]
    return judge.judge("conn.log", flows, now=1000.0), judge


@pytest.mark.parametrize("shape", ["rows", "frame"])
def test_an_attack_raises_an_alert_with_all_that_an_alert_needs(shape: str) -> None:
    rows = [flow(line=1), flow(line=2, ts=101.5, duration=2.0, uid="C2", proto="tcp")]
    schema = FLOW_SCHEMA | CONTEXT_SCHEMA
    flows = rows if shape == "rows" else pl.DataFrame(rows, schema=schema)
    result, judge = judged(flows, QUIET, ATTACK)
    (alarm,) = result.alarms
    assert (alarm.device, alarm.peer, alarm.label) == ("192.168.1.5", "203.0.113.9", "DDoS")
    assert (alarm.ts, alarm.port, alarm.probability, alarm.novelty) == (101.5, 80, 0.95, 1.0)
    assert alarm.prompt == np.array([80], np.uint16).tobytes()
    example = alarm.example()
    assert (example.log, example.line, example.uid, example.proto) == ("conn.log", 2, "C2", "tcp")
    assert alarm.clock == judge.clock.value == 103.5
    assert dict(result.counts) == {
        "verdict:Benign": 1,
        "verdict:DDoS": 1,
        "alarms": 1,
        "novel": 0,
    }


def test_novel_needs_two_witnesses() -> None:
    flows = [flow(), flow(), flow(orig_h="192.168.1.6"), flow(), flow(orig_h="8.8.8.8")]
    flows[4]["resp_h"] = "1.1.1.1"  # no local end: no device's baseline
    toy = ToyBaseline("192.168.1.5", "8.8.8.8")
    result, _ = judged(flows, STRANGE, QUIET, STRANGE, ATTACK, STRANGE, baseline=toy)
    assert [(alarm.label, alarm.device) for alarm in result.alarms] == [
        ("Novel", "192.168.1.5"),
        ("DDoS", "192.168.1.5"),
    ]
    assert result.counts["novel"] == 1
    # A flow that raises an alert is not learnt.
    assert toy.learnt == ["192.168.1.5", "192.168.1.5", "192.168.1.6"]


def test_a_model_without_novelty_leaves_it_to_the_baseline() -> None:
    blind = Verdict("Benign", 0.9, 0.1, False, None, False)
    result, _ = judged([flow()], blind, baseline=ToyBaseline("192.168.1.5"))
    assert [alarm.label for alarm in result.alarms] == ["Novel"]


def test_what_an_operator_called_benign_is_silent_on_that_device_only() -> None:
    judge = Judge(Scripted(ATTACK, ATTACK, ATTACK), LogClock())  # type: ignore[arg-type]
    judge.silence(frozenset({("192.168.1.5", np.array([80], np.uint16).tobytes())}))
    flows = [flow(), flow(resp_p=81), flow(orig_h="192.168.1.6")]
    result = judge.judge("conn.log", flows, now=0.0)
    assert [(alarm.device, alarm.port) for alarm in result.alarms] == [
        ("192.168.1.5", 81),
        ("192.168.1.6", 80),
    ]
    assert (result.counts["silenced"], result.counts["alarms"]) == (1, 2)


def test_feedback_that_is_new_reaches_the_baseline_once() -> None:
    toy = ToyBaseline()
    judge = Judge(Scripted(), LogClock(), baseline=toy)  # type: ignore[arg-type]
    first, second = (("192.168.1.5", np.array([port], np.uint16).tobytes()) for port in (80, 81))
    judge.silence(frozenset({first}))
    judge.silence(frozenset({first, second}))
    assert toy.accepted == [("192.168.1.5", [80]), ("192.168.1.5", [81])]


def test_the_clock_is_not_led_astray_by_one_line() -> None:
    result, judge = judged([flow(ts=1e18), flow(ts=50.0)], ATTACK, ATTACK)
    assert judge.clock.value == 1000.0 + 86_400
    assert [alarm.clock for alarm in result.alarms] == [87_400.0, 87_400.0]


def test_a_gateway_with_hardly_a_local_flow_notices() -> None:
    strangers = [flow(orig_h="147.32.1.2") for _ in range(1000)]
    told = Networks([ip_network("147.32.0.0/16")])
    for networks, expected in ((None, True), (told, False)):
        _, judge = judged(strangers, *[QUIET] * 1000, baseline=ToyBaseline(), networks=networks)
        assert judge.hardly_local is expected


def test_own_public_addresses_read_as_private_and_are_devices() -> None:
    class Reader(Scripted):
        def phrase_ids(self, flows: Any) -> np.ndarray:
            self.seen = column(flows, "orig_h")
            return super().phrase_ids(flows)

    detector = Reader(ATTACK)
    networks = Networks([ip_network("147.32.0.0/16")])
    judge = Judge(detector, LogClock(), networks=networks)  # type: ignore[arg-type]
    row = flow(orig_h="8.8.8.8", resp_h="147.32.1.2")
    (alarm,) = judge.judge("conn.log", [row], now=0.0).alarms
    assert (alarm.device, alarm.peer) == ("147.32.1.2", "8.8.8.8")
    assert alarm.example().resp_h == "147.32.1.2", "people see the real address"
    judge.detector.verdicts = [ATTACK]  # type: ignore[attr-defined]
    judge.judge("conn.log", [flow(orig_h="147.32.1.2")], now=0.0)
    assert detector.seen == ["10.0.0.1"]


class Adviser:
    """Knows better about these ports."""

    def __init__(self, **better: Verdict) -> None:
        self.better, self.asked, self.counts = better, [], Counter[str]()

    def unsure(self, verdict: Verdict) -> bool:
        return verdict.probability < 0.95

    def ask(self, texts: list[str]) -> list[Verdict | None]:
        self.asked.append(texts)
        self.counts["asked"] += len(texts)
        return [self.better.get(f"p{text}") for text in texts]


def test_the_least_sure_are_escalated_first_and_silence_keeps_the_local_verdict() -> None:
    unsure = Verdict("Benign", 0.6, 0.4, False, 0.0, False)
    adviser = Adviser(p81=ATTACK)
    flows = [flow(resp_p=80), flow(resp_p=81), flow(resp_p=82)]
    result, _ = judged(flows, STRANGE, unsure, QUIET, escalator=adviser)
    assert adviser.asked == [["81", "80"]]
    assert result.verdicts == [STRANGE, ATTACK, QUIET]
    assert [alarm.port for alarm in result.alarms] == [81]
    assert result.counts["escalated:asked"] == 2
