"""Delivery: in order, at least once, and a dead sink holds up nobody."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from gradsense.gateway.alerting.alert import Alert, Severity
from gradsense.gateway.alerting.sink import Refused, SinkError
from gradsense.gateway.delivery import Outbox
from gradsense.gateway.store import GatewayStore, StoreBatch
from tests.support.sample_alerts import sample


class Probe:
    """Takes alerts; raises what it is told to, once for each."""

    def __init__(self, name: str, *faults: Exception) -> None:
        self.name, self.faults = name, list(faults)
        self.got: list[str] = []
        self.closed = False

    def send(self, alerts: Sequence[Alert]) -> None:
        if self.faults:
            raise self.faults.pop(0)
        self.got += [alert.id for alert in alerts]

    def close(self) -> None:
        self.closed = True


def quick(event: threading.Event, seconds: float) -> bool:
    return event.wait(min(seconds, 0.005))


def outbox(journal: GatewayStore, *sinks: Probe, least: Severity = "info", mb: float = 1) -> Outbox:
    names = [sink.name for sink in sinks]
    return Outbox(
        journal,
        {sink.name: sink for sink in sinks},
        most_bytes=dict.fromkeys(names, int(mb * 2**20)),
        least=dict.fromkeys(names, least),
        wait=quick,
    )


def alerts(count: int, **changes: object) -> list[Alert]:
    return [sample(id=f"{number:016x}", **changes) for number in range(count)]


@pytest.fixture
def journal(tmp_path: Path) -> GatewayStore:
    return GatewayStore(tmp_path)


def test_all_arrive_in_order_at_every_sink(journal: GatewayStore) -> None:
    one, two = Probe("one"), Probe("two")
    box = outbox(journal, one, two)
    box.start()
    for start in range(0, 250, 50):
        journal.commit(StoreBatch(messages=alerts(250)[start : start + 50]))
        box.wake()
    assert box.flush(5)
    box.close()
    assert one.got == two.got == [alert.id for alert in alerts(250)]
    assert one.closed
    assert two.closed


@pytest.mark.parametrize("fault", [SinkError("down"), ValueError("a surprise")])
def test_a_failing_sink_gets_everything_later(journal: GatewayStore, fault: Exception) -> None:
    bad, good = Probe("bad", fault, fault), Probe("good")
    box = outbox(journal, bad, good)
    journal.commit(StoreBatch(messages=alerts(3)))
    box.start()
    assert box.flush(5)
    box.close()
    assert bad.got == good.got == [alert.id for alert in alerts(3)]
    assert journal.backlogs()["bad"].delivered == 3


def test_what_is_refused_is_given_up_and_counted(journal: GatewayStore) -> None:
    sink = Probe("s", Refused("400 what is this", 1))
    box = outbox(journal, sink)
    journal.commit(StoreBatch(messages=alerts(3)))
    box.start()
    assert box.flush(5)
    box.close()
    queue = journal.backlogs()["s"]
    assert (queue.waiting, queue.delivered, queue.dropped) == (0, 2, 1)


def test_severities_below_the_least_are_not_sent(journal: GatewayStore) -> None:
    sink = Probe("s")
    box = outbox(journal, sink, least="high")
    journal.commit(StoreBatch(messages=[*alerts(2, severity="low"), sample(severity="critical")]))
    box.start()
    assert box.flush(5)
    box.close()
    assert sink.got == [sample().id]


def test_a_dead_sink_costs_its_oldest_messages_only(journal: GatewayStore) -> None:
    dead = Probe("dead", *[SinkError("no")] * 10_000)
    box = outbox(journal, dead, mb=0.003)
    journal.commit(StoreBatch(messages=alerts(20)))
    box.start()
    assert box.trim() > 0
    assert not box.flush(0.1)
    box.close()
    queue = journal.backlogs()["dead"]
    assert queue.waiting + queue.dropped == 20
    assert queue.waiting > 0
    assert box.errors == {"dead": "no"}


def test_a_restart_goes_on_where_delivery_stopped(tmp_path: Path) -> None:
    journal = GatewayStore(tmp_path)
    down = outbox(journal, Probe("s", *[SinkError("no")] * 1000))
    journal.commit(StoreBatch(messages=alerts(3)))
    down.start()
    down.close()
    journal.close()
    again, sink = GatewayStore(tmp_path), Probe("s")
    box = outbox(again, sink)
    box.start()
    assert box.flush(5)
    box.close()
    assert sink.got == [alert.id for alert in alerts(3)]
