"""Faults of the network between real processes: devices come back by themselves, nothing is lost.

Site 1 is reached by a cable that loses packets, which needs root; site 2 by a TCP relay, which
always runs. Long cuts and times are in ``benchmarks/network.py``.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from gradsense.errors import InputError
from tests.support.fleet_lines import Cables, Line, Proxy, why_no_cables
from tests.support.fleet_rig import Rig

pytestmark = [pytest.mark.broker, pytest.mark.slow]

#: Flows of a feed, and the longest that anything may take on a busy machine.
FLOWS, WAIT_S = 40, 90.0


@dataclass
class Net:
    """A fleet of two that runs; ``line`` is None where namespaces are not permitted."""

    rig: Rig
    proxy: Proxy
    line: Line | None

    @property
    def names(self) -> list[str]:
        return [site.name for site in self.rig.sites]

    def feed(self) -> None:
        for site in self.rig.sites:
            self.rig.feed(site, FLOWS)

    def settle(self) -> None:
        """Everybody is there again and has told all, once."""
        rig = self.rig
        for done in (
            lambda: rig.audit().told,
            lambda: rig.presence().online(self.names),
            lambda: rig.presence().current(self.names),
        ):
            assert rig.wait(done, WAIT_S) is not None, (vars(rig.audit()), rig.status())
        audit = rig.audit()
        assert (audit.lost, audit.twice, audit.refused) == (0, 0, 0)
        assert audit.samples == {site.name: site.played for site in rig.sites}


@pytest.fixture(scope="module")
def no_cables() -> str:
    return why_no_cables()


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory, no_cables: str) -> Iterator[Net]:
    with ExitStack() as stack:
        cables = None if no_cables else stack.enter_context(Cables(1, random.Random(0)))
        host = None if cables is None else cables.address
        out = tmp_path_factory.mktemp("network") / "fleet"
        try:
            rig = stack.enter_context(Rig(out, 2, flows=1000, host=host))
        except InputError as missing:
            pytest.skip(str(missing))
        rig.prepare()
        first, second = rig.sites
        if cables is not None:
            rig.within[first.name] = cables.lines[0]
        proxy = stack.enter_context(Proxy(host or "localhost", rig.port))
        rig.through(second, proxy)
        rig.start()
        net = Net(rig, proxy, None if cables is None else cables.lines[0])
        net.feed()
        net.settle()
        yield net


def test_half_open_connections(net: Net) -> None:
    """Nothing passes and nobody is told; what is read meanwhile follows once it does."""
    net.proxy.stall()
    if net.line is not None:
        net.line.cut = True
    before = net.rig.audit().pooled
    net.feed()
    gone = net.names if net.line is not None else net.names[1:]
    made = net.rig.wait(lambda: all(net.rig.audit().waiting[name] for name in gone), WAIT_S)
    assert made is not None
    time.sleep(2)
    during = net.rig.audit().pooled
    assert not {device for device, _ in during - before} & set(gone)
    net.proxy.heal()
    if net.line is not None:
        net.line.heal()
    net.settle()


def test_reset_connections(net: Net) -> None:
    """The second site is thrown out, and turned away for a while."""
    net.proxy.cut()
    net.feed()
    name = net.names[1]
    assert net.rig.wait(lambda: not net.rig.presence().online([name]), WAIT_S) is not None
    net.proxy.heal()
    net.settle()


def test_lost_and_late_packets(net: Net, no_cables: str) -> None:
    """5 % of the packets lost and 300 ms for the others, each way."""
    if net.line is None:
        pytest.skip(no_cables)
    lost = net.line.lost
    net.line.delay_s, net.line.loss = 0.3, 0.05
    for _ in range(2):
        net.feed()
        net.settle()
    assert net.line.lost > lost
    net.line.heal()


def test_broker_killed_with_updates_in_flight(net: Net) -> None:
    rig = net.rig
    net.feed()
    assert rig.wait(lambda: any(rig.audit().waiting.values()), WAIT_S) is not None
    before = rig.presence()
    rig.process("broker").send_signal(signal.SIGKILL)
    rig.process("broker").wait()
    net.feed()
    rig.start_broker()
    assert rig.wait(lambda: rig.presence().online(net.names, before), WAIT_S) is not None
    net.settle()
