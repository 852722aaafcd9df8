"""What keeps the training agent alive beside detection."""

from __future__ import annotations

import logging
import threading

import pytest

from gradsense.agent.supervisor import Supervisor
from tests.support.live_coordinator import eventually


def test_an_agent_that_refuses_its_input_is_reported_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gradsense.agent.supervisor._LOOK_S", 0.01)
    now, stop, counted = [0.0], threading.Event(), list[int]()
    agent = Supervisor(
        ["-c", "raise SystemExit(2)"], timer=lambda: now[0], on_refusal=lambda: counted.append(1)
    )
    keeper = threading.Thread(target=agent.keep, args=(stop,))
    keeper.start()
    with caplog.at_level(logging.ERROR):
        eventually(lambda: agent.refusals == 1)
        now[0] = 61.0
        eventually(lambda: agent.refusals == 2)
    assert not stop.is_set(), "detection goes on"
    stop.set()
    keeper.join()
    assert len(counted) == len(caplog.records) == 2
