"""What an operator orders: a device is taken back, a run returns to an earlier model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from gradsense.coordinator.lookup import kept_versions, touched_by
from gradsense.coordinator.run import Run
from gradsense.federation.update import Update
from gradsense.fleet.registry import Enrolment, Order, Registry
from gradsense.learning.statistics import STATISTICS
from gradsense.transport.messages import Message
from tests.support.toy_fleet import acks, models, new_run, open_run, same, sent, status
from tests.support.toys import factor_of, tensor, update

HEAD = {"score.weight": np.zeros((2, 1), np.float32), "score.bias": np.zeros(2, np.float32)}
SUM, ALONE = "gsfs:share=0.3", "fedbuff:updates=1"
REVOKED = Order(1, 0.0, "revoke", "bad")


def speak(run: Run, messages: Iterable[Message], now: float = 0.0) -> list[Message]:
    return run.take(list(messages), now=now, wall=0.0)


def read(device: str, sequence: int) -> Update:
    """Statistics of eight records, other ones for each update."""
    delta = {STATISTICS: factor_of(1000 * ord(device[0]) + sequence, 8)}
    return update(device, sequence=sequence, samples=8, delta=delta, codec="uniform")


def story(folder: Path, devices: str | list[str], *, algorithm: str = SUM) -> Run:
    """A run in which these devices upload one after the other, thrice each."""
    run = new_run(folder, HEAD, algorithm=algorithm)
    speak(run, [status(device) for device in devices])
    base = run.newest.hash
    for sequence in (1, 2, 3):
        for device in devices:
            heard = speak(run, sent(read(device, sequence), base))
            assert acks(heard) == {(device, sequence): ""}
    return run


def test_the_model_after_a_revocation_is_that_of_a_fleet_in_which_it_never_spoke(
    tmp_path: Path,
) -> None:
    run = story(tmp_path / "with", ["a", "bad", "c"])
    other = story(tmp_path / "without", ["a", "c"])
    before = run.status()
    assert before.devices["bad"].records == pytest.approx(24, rel=0.1)
    (model,) = models(run.obey([REVOKED], now=1.0))
    after = run.status()
    assert (model.version, after.version) == (before.version + 1, before.version + 1)
    assert after.hash == other.status().hash != before.hash
    assert after.devices["bad"].records == 0
    assert "bad" not in run._remember().coordinator.connected
    assert run.obey([REVOKED], now=2.0) == [], "once"
    run.close()
    again = open_run(tmp_path / "with")
    assert again.status().hash == after.hash
    assert again.obey([REVOKED], now=3.0) == [], "once, also after a restart"
    for one in (again, other):  # and they go on alike
        speak(one, sent(read("a", 4), one.newest.hash), now=4.0)
    assert again.status().hash == other.status().hash


def test_what_waits_of_a_revoked_device_is_dropped(tmp_path: Path) -> None:
    run = new_run(tmp_path, {"w": tensor(0.0)}, algorithm="fedavg")
    speak(run, [status("good"), status("bad")])
    base = run.newest.hash
    speak(run, sent(update("bad", delta={"w": tensor(9.0)}), base))
    run.obey([REVOKED], now=1.0)
    assert run.status().pooled == 0
    run.close()
    run = open_run(tmp_path)  # before the next model: the order is played again
    (model,) = models(speak(run, sent(update("good", delta={"w": tensor(1.0)}), base), now=2.0))
    assert model.tensors["w"].tolist() == [1.0]


def weights_story(folder: Path) -> Run:
    run = new_run(folder, {"w": tensor(1.0)}, algorithm=ALONE)
    speak(run, [status("good"), status("bad")])
    for sequence, device in enumerate(["good", "bad", "good"], 1):
        moved = update(
            device,
            sequence=sequence,
            base_version=run.newest.version,
            delta={"w": tensor(0.5 * sequence)},
        )
        speak(run, sent(moved, run.newest.hash))
    return run


def test_a_run_returns_to_an_earlier_model(tmp_path: Path) -> None:
    run = weights_story(tmp_path)
    assert touched_by(tmp_path, "bad") == [2]
    assert kept_versions(tmp_path) == [0, 1, 2, 3]
    before = run.newest.hash
    other = Order(1, 0.0, "rollback", run="another", version=1)
    order = Order(2, 0.0, "rollback", run="porch", version=1)
    (model,) = models(run.obey([other, order], now=1.0))
    assert (model.version, model.tensors["w"].tolist()) == (4, [1.5])
    for stale in (2, 3):  # trained on what was dropped
        moved = update("good", sequence=9, base_version=stale, delta={"w": tensor(1.0)})
        known = run._remember().hashes[stale]
        heard = speak(run, sent(moved, known), now=2.0)
        assert acks(heard) == {("good", 9): "unknown-base"}
    run.close()
    again = open_run(tmp_path)
    assert same(dict(again._remember().coordinator.model.tensors), {"w": tensor(1.5)})
    assert again.newest.hash != before
    fresh = update("good", sequence=10, base_version=4, delta={"w": tensor(1.0)})
    assert models(speak(again, sent(fresh, again.newest.hash), now=3.0))[0].version == 5


@pytest.mark.parametrize(
    ("algorithm", "version"), [(SUM, 1), (ALONE, 77)], ids=["a sum", "no such model"]
)
def test_an_order_that_cannot_be_carried_out_stops_nothing(
    tmp_path: Path, algorithm: str, version: int, caplog: pytest.LogCaptureFixture
) -> None:
    run = story(tmp_path, "a") if algorithm == SUM else weights_story(tmp_path)
    before = run.newest
    assert run.obey([Order(1, 0.0, "rollback", run="porch", version=version)], now=1.0) == []
    assert run.newest == before
    assert "no return to model" in caplog.text


def test_orders_are_numbered_in_the_registry(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry.sqlite3", make=True)
    registry.order_rollback("porch", 3, 7.0)
    registry.order_rollback("porch", 2, 7.0)
    assert registry.orders(7000) == [Order(7001, 7.0, "rollback", "", "porch", 2)]
    registry.close()


def test_an_order_in_a_registry_that_was_restored_is_carried_out(tmp_path: Path) -> None:
    """Its backup has none of the orders whose numbers the journals know."""
    run = story(tmp_path / "run", ["a", "bad", "c"])
    for place, device, at in (("lost", "a", 50.0), ("restored", "bad", 60.0)):
        registry = Registry(tmp_path / place, make=True)
        registry.add(Enrolment(device, "device", 1, 0.0, 100.0, None, bytes(32)))
        registry.revoke(device, at)
        run.obey(registry.orders(), now=at)
        registry.close()
    assert [run.status().devices[device].records for device in ("a", "bad")] == [0, 0]


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "fleet #1? 100%"
    run = story(folder, ["a"])
    version = run.newest.version
    run.close()
    assert open_run(folder).newest.version == version
    assert [path.name for path in tmp_path.iterdir()] == [folder.name], "and nothing beside it"
