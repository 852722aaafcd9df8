"""Builds a watch from its bundle, logs, state and settings, and connects its parts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from gradsense.data.networks import Networks
from gradsense.data.sources.following import STDIN, LiveLog
from gradsense.detection.detector import CACHE_SIZE, Detector
from gradsense.errors import InputError
from gradsense.gateway.adapt.baseline import DeviceBaseline
from gradsense.gateway.adapt.drift import Drift
from gradsense.gateway.alerting.grouping import Grouper, LogClock
from gradsense.gateway.alerting.sink import Sink, SinkContext
from gradsense.gateway.delivery import Outbox
from gradsense.gateway.judge import Judge
from gradsense.gateway.settings import Settings
from gradsense.gateway.store import GatewayStore, VerdictLog
from gradsense.gateway.watch import Successor, Watch


@dataclass(frozen=True)
class WatchPlan:
    """What a watch is built from.

    Args:
        logs: paths; ``-`` is standard input.
        model: folder of the bundle; a new bundle in its place is loaded while the watch runs.
        state: folder of the journal.
        once: read the logs to their ends and stop.
        verdicts: file for every verdict.
        threads: of the model.
        cache: verdicts that are cached; 0 for none.
    """

    logs: Sequence[Path]
    model: Path
    state: Path
    settings: Settings = field(default_factory=Settings)
    once: bool = False
    verdicts: Path | None = None
    threads: int = 2
    cache: int = CACHE_SIZE


def open_watch(
    plan: WatchPlan,
    *,
    extra: Mapping[str, Sink] | None = None,
    clock: Callable[[], float] = time.time,
) -> Watch:
    """A watch that is ready to run.

    Args:
        extra: further sinks by name, such as the terminal.
        clock: seconds since the epoch.

    Raises:
        InputError: the bundle, the state, a setting or a log's path cannot be used.
    """
    settings = plan.settings
    if plan.once:
        for log in plan.logs:
            _check_readable(log)
    load = partial(Detector.load, plan.model, threads=plan.threads, cache=plan.cache)
    # A log read once is judged by one model.
    successor = None if plan.once else Successor(plan.model, load)
    detector = load() if successor is None else successor.current
    journal = GatewayStore(plan.state)
    places = journal.places()
    sources = [LiveLog(log, places.get(str(log)), archive=settings.archive) for log in plan.logs]
    escalator, observer = None, None
    if settings.escalate is not None:
        from gradsense.gateway.escalation.escalate import Escalator  # noqa: PLC0415

        escalator = Escalator(settings.escalate, detector.template)
    judge = Judge(
        detector,
        LogClock(),
        networks=Networks(settings.networks),
        # One reading of a log is not enough to learn what is normal.
        baseline=None if plan.once else DeviceBaseline(detector.template, settings.baseline),
        drift=Drift(detector.template, detector.manifest.reference),
        escalator=escalator,
    )
    grouper = Grouper(
        settings.sensor,
        detector.manifest.id,
        window_s=settings.window_s,
        max_s=settings.max_s,
        explain=judge.explain,
    )
    if any(setting.needs_metrics for setting in settings.sink):
        from prometheus_client import CollectorRegistry  # noqa: PLC0415

        from gradsense.gateway.instruments import Metrics, Observer  # noqa: PLC0415

        observer = Observer(Metrics(CollectorRegistry()), judge, grouper, journal)
    context = SinkContext(
        settings.sensor,
        metrics=None if observer is None else observer.metrics,
        open_alerts=journal.open_alerts(),
    )
    receivers = dict(extra or {})
    receivers |= {setting.name: setting.open(context) for setting in settings.sink}
    outbox = Outbox(
        journal,
        receivers,
        most_bytes={one.name: int(one.queue_mb * (1 << 20)) for one in settings.sink},
        least={one.name: one.min_severity for one in settings.sink},
    )
    return Watch(
        sources,
        judge,
        grouper,
        journal,
        outbox,
        verdicts=None if plan.verdicts is None else VerdictLog(plan.verdicts),
        clock=clock,
        observer=observer,
        successor=successor,
    )


def _check_readable(log: Path) -> None:
    """A log that is read once must be readable now."""
    if log != STDIN and not os.access(log, os.R_OK):
        if os.path.lexists(log):
            raise InputError("may not be read", hint="check its permissions", file=log)
        raise InputError("no such file", hint="check the path", file=log)
