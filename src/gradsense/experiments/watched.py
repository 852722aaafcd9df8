"""The alerts that ``gradsense watch`` raises on a stored log, with the flows of each."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from gradsense.data.networks import Networks
from gradsense.experiments.device_hours import RaisedAlert
from gradsense.gateway.alerting.alert import Alert
from gradsense.gateway.alerting.grouping import Alarm, Grouper
from gradsense.gateway.settings import Settings
from gradsense.gateway.watch import Watch
from gradsense.gateway.wiring import WatchPlan, open_watch


class RecordingGrouper(Grouper):
    """The watch's own grouper, which also keeps the flows of every alert that it opens."""

    def __init__(self, watch: Watch) -> None:
        own = watch.grouper
        super().__init__(
            own.sensor,
            own.model,
            window_s=own.window_s,
            max_s=own.max_s,
            explain=watch.judge.explain,
        )
        #: Of each alert in the order of opening: log time then, device, lines of its flows.
        self.recorded: list[tuple[float, str, list[int]]] = []
        self._latest: dict[tuple[str, str], list[int]] = {}

    def add(self, alarms: Iterable[Alarm]) -> list[Alert]:
        """As ``Grouper.add``."""
        messages: list[Alert] = []
        for alarm in alarms:
            due = super().add([alarm])
            if any(message.state == "open" for message in due):
                self.recorded.append((alarm.clock, alarm.device, []))
                self._latest[alarm.device, alarm.label] = self.recorded[-1][2]
            self._latest[alarm.device, alarm.label].append(alarm.example().line)
            messages += due
        return messages


def watched(
    log: Path, bundle: Path, networks: Networks, rows: dict[int, int], *, threads: int = 1
) -> list[RaisedAlert]:
    """The alerts of a watch that follows the log from its first line to its end.

    It is the watch of ``gradsense watch``, with its default settings and with device baselines,
    which a live watch has and ``--once`` has not. It reads in large chunks; time is the log's.

    Args:
        log: of any record source.
        bundle: a folder that ``gradsense export`` wrote.
        networks: of the log's devices.
        rows: from the number of a line to the row of its flow.
        threads: of the model.

    Raises:
        InputError: the bundle cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="gradsense-") as state:
        plan = WatchPlan(
            logs=[log],
            model=bundle,
            state=Path(state),
            settings=Settings(sensor="evaluate", networks=networks.own),
            threads=threads,
        )
        watch = open_watch(plan)
        try:
            watch.grouper = grouper = RecordingGrouper(watch)
            for final in (False, True):
                while watch.step(watch.sources[0], final=final):
                    pass
            watch.finish(close_alerts=True)
        finally:
            watch.journal.close()
    return [
        RaisedAlert(time, device, tuple(rows[line] for line in lines))
        for time, device, lines in grouper.recorded
    ]
