"""How a fleet comes through faults of its network: real processes, real TLS, packets that are lost.

    python -m benchmarks.fleet.network [--seconds 120] [--only cut,lossy] [--out FILE.json]

Broker and coordinator run here, three devices in network namespaces at the end of cables that
``tests/support/fleet_lines.py`` makes; so it needs Linux, root and Mosquitto. Every device learns
from a synthetic labelled log that grows all the time and, with floor 0, reports every flow of it.
After each fault the logs stand still until all is reported, so each row's books are closed:

- *noticed*: from the fault until the coordinator knows that the devices are gone.
- *online*, *newest*, *reported*: from healing until each device is online again, until all hold
  the newest model, and until every flow that was played is pooled and acknowledged.
- *lost*: acknowledged updates that the journal lacks; *twice*: counted
  more than once.

The last row cuts the line of one device when 90 % of a large update is sent. Shares of its body:
``arrived`` had been taken in by then, ``sent_after`` left the device afterwards, with TCP's own
bytes, and ``received`` is what the coordinator took in altogether; more than 1 was sent twice.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gradsense.agent.store import FILE as MEMORY
from tests.support.fleet_lines import Cables, Line, why_no_cables
from tests.support.fleet_rig import Audit, Presence, Rig, query

DEVICES = 3
#: A log grows by so many flows every so many seconds.
FLOWS, EVERY_S = 20, 4.0
#: The longest that devices may take to come back; what takes longer is shown as missing.
PATIENCE_S = 120.0
DELAY_S, LOSS = 0.3, 0.05
STOPPED_S, BROKER_DOWN_S, PLAIN_S, LOSSY_S = 30.0, 2.0, 20.0, 45.0
#: The large update, some 40 chunks: moments as they are, neither rounded nor cut to what matters.
LARGE = {"size": "micro", "algorithm": "gsfs:floor=0.0:codec=none:tolerance=0.0"}
#: Its flows at most, KiB a second upwards, what is sent before the cut, and how long that lasts.
LARGE_FLOWS, UPLINK, SHARE, LARGE_CUT_S = 1500, 512, 0.9, 30.0


@dataclass
class Row:
    """One fault. Seconds are None where it did not happen in ``PATIENCE_S``."""

    fault: str
    fault_s: float = 0.0
    noticed_s: float | None = None
    online_s: float | None = None
    newest_s: float | None = None
    reported_s: float | None = None
    played: int = 0
    pooled: int = 0
    updates: int = 0
    acknowledged: int = 0
    lost: int = 0
    twice: int = 0
    refused: int = 0
    connections: int = 0
    more: dict[str, float] = field(default_factory=dict)


class Trial:
    """Faults on one running fleet, one after the other."""

    def __init__(self, rig: Rig, lines: Sequence[Line]) -> None:
        self.rig, self.lines = rig, lines
        self.names = [site.name for site in rig.sites]
        self._fed = 0.0

    # Faults ---------------------------------------------------------------------------------

    def undisturbed(self, seconds: float) -> Row:
        """Nothing happens."""
        with self._row("undisturbed", PLAIN_S) as row:
            self._tend(PLAIN_S)
            self._recover(row, self.names, None)
        return row

    def cut(self, seconds: float) -> Row:
        """All but one device: no packet passes any more, and no connection is closed."""
        return self._apart("cut, half open", seconds, self._silence)

    def unplugged(self, seconds: float) -> Row:
        """All but one device: the interface is down."""
        return self._apart("interface down", seconds, self._unplug)

    def lossy(self, seconds: float) -> Row:
        """All devices start and work with loss and delay: online counts from their start."""
        title = f"{LOSS:.0%} loss, {1000 * DELAY_S:.0f} ms"
        with self._row(title, LOSSY_S) as row:
            self._stop_devices()
            for line in self.lines:
                line.delay_s, line.loss = DELAY_S, LOSS
            before = self.rig.presence()
            for site in self.rig.sites:
                self.rig.start_device(site)
            row.online_s = self.rig.wait(
                lambda: self.rig.presence().online(self.names, before), PATIENCE_S
            )
            self._tend(LOSSY_S)
            self._recover(row, self.names, None)
            for line in self.lines:
                line.heal()
        return row

    def broker_restarted(self, seconds: float) -> Row:
        """SIGTERM with updates in flight, and a start."""
        return self._broker(signal.SIGTERM)

    def broker_killed(self, seconds: float) -> Row:
        """SIGKILL with updates in flight, and a start."""
        return self._broker(signal.SIGKILL)

    def coordinator_stopped(self, seconds: float) -> Row:
        """SIGSTOP, and SIGCONT after half a minute."""
        coordinator = self.rig.process("coordinator")
        with self._row("coordinator SIGSTOP", STOPPED_S) as row:
            coordinator.send_signal(signal.SIGSTOP)
            self._tend(STOPPED_S)
            before = self.rig.presence()
            coordinator.send_signal(signal.SIGCONT)
            self._recover(row, self.names, before)
        return row

    def _apart(self, title: str, seconds: float, fault: Callable[[Line, bool], None]) -> Row:
        gone, lines = self.names[:-1], self.lines[:-1]
        with self._row(title, seconds) as row:
            for line in lines:
                fault(line, True)
            began = time.monotonic()
            while (passed := time.monotonic() - began) < seconds:
                self._feed()
                if row.noticed_s is None and self.rig.presence().offline(gone):
                    row.noticed_s = passed
                time.sleep(0.1)
            before = self.rig.presence()
            for line in lines:
                fault(line, False)
            self._recover(row, gone, before)
        return row

    @staticmethod
    def _silence(line: Line, begins: bool) -> None:
        line.cut = begins

    @staticmethod
    def _unplug(line: Line, begins: bool) -> None:
        line.plug(not begins)

    def _broker(self, number: signal.Signals) -> Row:
        broker = self.rig.process("broker")
        with self._row(f"broker {number.name}", BROKER_DOWN_S) as row:
            for site in self.rig.sites:
                self.rig.feed(site, FLOWS)
            self.rig.wait(lambda: any(self.rig.audit().waiting.values()), PATIENCE_S)
            broker.send_signal(number)
            broker.wait()
            row.more["in_flight"] = sum(self.rig.audit().waiting.values())
            before = self.rig.presence()
            self._tend(BROKER_DOWN_S)
            self.rig.start_broker()
            self._recover(row, self.names, before)
        return row

    def _stop_devices(self) -> None:
        processes = [self.rig.process(name) for name in self.names]
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)

    # What all do ----------------------------------------------------------------------------

    def _feed(self) -> None:
        if time.monotonic() - self._fed >= EVERY_S:
            self._fed = time.monotonic()
            for site in self.rig.sites:
                self.rig.feed(site, FLOWS)

    def _tend(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._feed()
            time.sleep(0.1)

    @contextmanager
    def _row(self, title: str, seconds: float) -> Iterator[Row]:
        row = Row(title, seconds)
        before, ports = self.rig.audit(), [len(line.ports) for line in self.lines]
        yield row
        _close(row, before, self.rig.audit())
        row.connections = sum(len(line.ports) for line in self.lines) - sum(ports)

    def _recover(self, row: Row, gone: Sequence[str], before: Presence | None) -> None:
        """Fill in when what was there again."""
        rig, began = self.rig, time.monotonic()
        while (passed := time.monotonic() - began) < PATIENCE_S:
            there = rig.presence()
            if row.online_s is None and there.online(gone, before):
                row.online_s = passed
            if row.newest_s is None and row.online_s is not None and there.current(self.names):
                row.newest_s = passed
            if row.reported_s is None and rig.audit().told:
                row.reported_s = passed
            if None not in (row.online_s, row.newest_s, row.reported_s):
                return
            if ended := rig.ended():
                raise RuntimeError(f"ended by themselves: {ended}; see {rig.out}")
            time.sleep(0.05)


FAULTS = (
    "undisturbed",
    "cut",
    "unplugged",
    "lossy",
    "broker_restarted",
    "broker_killed",
    "coordinator_stopped",
)
UPLOAD = "upload"


def _close(row: Row, before: Audit, after: Audit) -> None:
    """Balance the books of one fault."""
    row.played = sum(after.played.values()) - sum(before.played.values())
    row.pooled = sum(after.samples.values()) - sum(before.samples.values())
    row.updates = sum(after.pooled_of.values()) - sum(before.pooled_of.values())
    row.acknowledged = sum(after.acknowledged.values()) - sum(before.acknowledged.values())
    row.lost, row.twice = after.lost, after.twice
    row.refused = after.refused - before.refused


def upload_cut(out: Path) -> Row:
    """A large update, cut at ``SHARE`` of its bytes: how much of it travels again."""
    row = Row(f"upload cut at {SHARE:.0%}", LARGE_CUT_S)
    with (
        Cables(1, random.Random(0)) as cables,
        Rig(
            out,
            1,
            flows=LARGE_FLOWS,
            host=cables.address,
            options=("--uplink", str(UPLINK)),
            **LARGE,
        ) as rig,
    ):
        rig.prepare()
        (site,), (line,) = rig.sites, cables.lines
        rig.within[site.name] = line
        rig.start()
        names, before = [site.name], rig.audit()
        rig.wait(lambda: rig.presence().online(names) and rig.presence().current(names), 60)
        rig.feed(site, LARGE_FLOWS)
        memory = site.folder / "state" / MEMORY
        rig.wait(lambda: any(rig.audit().waiting.values()), PATIENCE_S)
        ((size,),) = query(memory, "SELECT length(body) FROM outbox")
        limit = line.up + SHARE * size
        while line.up < limit:
            time.sleep(0.005)
        line.cut = True
        time.sleep(LARGE_CUT_S)
        ((there,),) = query(rig.journal, "SELECT coalesce(sum(length(piece)), 0) FROM pieces")
        earlier, up = rig.presence(), line.up
        line.heal()
        began = time.monotonic()
        row.online_s = rig.wait(lambda: rig.presence().online(names, earlier), PATIENCE_S)
        if rig.wait(lambda: rig.audit().told, PATIENCE_S) is not None:
            row.reported_s = time.monotonic() - began
        row.more |= {"bytes": size, "arrived": there / size, "sent_after": (line.up - up) / size}
        if rig.wait(lambda: rig.presence().current(names), PATIENCE_S) is not None:
            row.newest_s = time.monotonic() - began
        ((total,),) = query(rig.journal, "SELECT sum(bytes) FROM devices")
        row.more["received"] = total / size
        _close(row, before, rig.audit())
        row.connections = len(line.ports)
    return row


# Telling ----------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> Table:
    """All rows; seconds with one decimal."""
    made = Table("fault", title=f"{DEVICES} devices, seconds from healing")
    heads = (
        "lasted",
        "noticed",
        "online",
        "newest",
        "reported",
        "flows played",
        "pooled",
        "updates",
    )
    for head in (*heads, "acknowledged", "lost", "twice", "connections"):
        made.add_column(head, justify="right")
    for row in rows:
        times = (row.noticed_s, row.online_s, row.newest_s, row.reported_s)
        counts = (row.played, row.pooled, row.updates, row.acknowledged, row.lost, row.twice)
        made.add_row(
            row.fault,
            f"{row.fault_s:.0f}",
            *("" if value is None else f"{value:.1f}" for value in times),
            *(f"{count:,}" for count in (*counts, row.connections)),
        )
    return made


def note(row: Row) -> str:
    """What the table has no column for."""
    return ", ".join(f"{name} {value:.3f}".replace(".000", "") for name, value in row.more.items())


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--seconds", type=float, default=120.0, help="of the long cuts")
    arguments.add_argument("--only", help=f"of {','.join((*FAULTS, UPLOAD))}")
    arguments.add_argument("--out", type=Path, help="JSON file")
    given = arguments.parse_args()
    chosen = tuple(given.only.split(",")) if given.only else (*FAULTS, UPLOAD)
    if unknown := set(chosen) - {*FAULTS, UPLOAD}:
        arguments.error(f"no such fault: {', '.join(sorted(unknown))}")
    if reason := why_no_cables():
        sys.exit(reason)
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that all is taken down
        signal.signal(number, lambda *_: sys.exit(1))
    console, began = Console(stderr=True), time.monotonic()
    if not console.is_terminal:
        console.width = 150  # of the table
    rows: list[Row] = []

    def report(row: Row) -> None:
        rows.append(row)
        console.print(f"[{time.monotonic() - began:5.0f} s] {row.fault}", markup=False)
        if given.out is not None:  # what is there if somebody stops it
            given.out.write_text(json.dumps(_json(rows, given.seconds), indent=1) + "\n")

    with tempfile.TemporaryDirectory(prefix="gradsense-") as folder:
        faults = [name for name in FAULTS if name in chosen]
        if faults:
            run_faults(Path(folder, "fleet"), faults, given.seconds, report)
        if UPLOAD in chosen:
            report(upload_cut(Path(folder, "large")))
    console.print(table(rows))
    for row in rows:
        if row.more:
            console.print(f"{row.fault}: {note(row)}", markup=False, highlight=False)
    if any(_failed(row) for row in rows):
        sys.exit("not everything came back")


def run_faults(
    out: Path, faults: Sequence[str], seconds: float, report: Callable[[Row], None]
) -> None:
    """Start a fleet, and go through these faults."""
    # Twice what is needed, as some synthetic sites have fewer than they may.
    flows = round(2 * FLOWS * (2 * seconds + 300) / EVERY_S)
    with ExitStack() as stack:
        cables = stack.enter_context(Cables(DEVICES, random.Random(0)))
        rig = stack.enter_context(Rig(out, DEVICES, flows=flows, host=cables.address))
        rig.prepare()
        for site, line in zip(rig.sites, cables.lines, strict=True):
            rig.within[site.name] = line
        rig.start()
        trial = Trial(rig, cables.lines)
        rig.wait(lambda: rig.presence().online(trial.names), PATIENCE_S)
        for name in faults:
            report(getattr(trial, name)(seconds))


def _failed(row: Row) -> bool:
    return (
        None in (row.online_s, row.newest_s, row.reported_s)
        or row.played != row.pooled
        or row.acknowledged != row.updates
        or bool(row.lost or row.twice or row.refused)
    )


def _json(rows: Sequence[Row], seconds: float) -> dict[str, Any]:
    return {
        "devices": DEVICES,
        "seconds": seconds,
        "delay_s": DELAY_S,
        "loss": LOSS,
        "rows": [asdict(row) for row in rows],
    }


if __name__ == "__main__":
    main()
