"""The watch: a loop that reads new log lines, judges their flows, commits and delivers."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from gradsense.data.sources.live import LiveLog
from gradsense.data.tally import Tally
from gradsense.detection.detector import Verdict
from gradsense.errors import GradsenseError
from gradsense.gateway.alerting.grouping import Grouper
from gradsense.gateway.delivery import Outbox
from gradsense.gateway.judge import Judge
from gradsense.gateway.reload import Successor
from gradsense.gateway.store import GatewayStore, StoreBatch
from gradsense.gateway.verdicts import VerdictLog
from gradsense.storage.files import StorageFull

if TYPE_CHECKING:  # it needs a library that not every gateway has
    from gradsense.gateway.instruments import Observer

#: Bytes of one log judged at once, about a thousand flows: more are a little faster and take
#: memory that a gateway may not have. A log that grows line by line is judged line by line.
CHUNK_BYTES = 1 << 17
#: Seconds between polls of logs that do not grow, between retries on a full disk, and between
#: rounds of the work that is not done with every batch.
POLL_S, RETRY_S, ROUND_S = 0.1, 1.0, 10.0

_log = logging.getLogger(__name__)


class Watch:
    """Follows logs and judges each of their flows once.

    Each step reads a chunk of each log, judges it, and commits the place in the log, counts,
    alerts and messages in one transaction, so a crash loses nothing that is older than a chunk.
    While the disk is full, reading stops and the transaction is retried: the log is the buffer.

    Args:
        sources: the logs.
        judge, grouper, journal: see there. Open alerts and device baselines are restored from
            the journal.
        outbox: delivers messages; None if there are no sinks.
        verdicts: the file of all verdicts, or None.
        clock: seconds since the epoch.
        timer: monotonic seconds, to measure durations.
        wait: sleeps for seconds or until the event is set.
        observer: updates metrics with each batch that was committed, and once a round.
        successor: finds a new bundle; None to keep the judge's detector.
    """

    def __init__(
        self,
        sources: Sequence[LiveLog],
        judge: Judge,
        grouper: Grouper,
        journal: GatewayStore,
        *,
        outbox: Outbox | None = None,
        verdicts: VerdictLog | None = None,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.perf_counter,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
        observer: Observer | None = None,
        successor: Successor | None = None,
    ) -> None:
        self.sources, self.judge, self.grouper, self.journal = sources, judge, grouper, journal
        self.outbox, self.verdicts = outbox, verdicts
        self._clock, self._timer, self._wait, self._observer = clock, timer, wait, observer
        self._successor = successor
        self.tally = Tally()
        self.counts: Counter[str] = Counter()
        self.stop = threading.Event()
        self._next_round, self._warned = 0.0, False
        if verdicts is not None and (size := journal.places().get(_verdicts_key(verdicts))):
            verdicts.cut(size)  # lines that were written and never committed
        grouper.restore(journal.open_groups())
        if judge.baseline is not None:
            judge.baseline.restore(journal.blobs("baseline"))
        if judge.drift is not None and (state := journal.blobs("drift").get("state")):
            judge.drift.restore(state)
        for learnt in (judge.baseline, judge.drift):
            if learnt is not None and learnt.dropped:
                kind = type(learnt).__name__
                _log.warning("%s: %d saved states do not fit; learnt anew", kind, learnt.dropped)

    def run(self, *, once: bool) -> None:
        """Watch until ``stop`` is set; with ``once`` until the logs are read to their ends.

        Raises:
            GradsenseError: stopped while the disk was full. The next run continues after the
                last commit.
        """
        if self.outbox is not None:
            self.outbox.start()
        while not self.stop.is_set():
            moved = [self.step(source, final=once) for source in self.sources]
            self.round(once=once)
            if not any(moved):
                if once or all(source.ended for source in self.sources):
                    break
                self._wait(self.stop, POLL_S)
        self.finish(close_alerts=once and not self.stop.is_set())

    def step(self, source: LiveLog, *, final: bool = False) -> bool:
        """Judge one chunk of a log; False if there was none."""
        tally = Tally()
        flows = source.read(CHUNK_BYTES, tally, final=final)
        if flows is None:
            return False
        batch = StoreBatch()
        verdicts: list[Verdict] = []
        began = self._timer()
        if len(flows):
            judged = self.judge.judge(str(source.log), flows, now=self._clock())
            verdicts = judged.verdicts
            batch.counts.update(judged.counts)
            batch.messages = self.grouper.add(judged.alarms)
            if not final:
                batch.messages += self.grouper.tick(self.judge.clock.value)
        seconds = self._timer() - began
        batch.groups = self.grouper.changed()
        batch.counts["flows"] = len(verdicts)
        batch.counts["alerts"] = sum(alert.state == "open" for alert in batch.messages)
        for reason, drop in tally.dropped.items():
            batch.counts[f"dropped:{reason}"] = drop.count
        place = source.place()
        if place is not None:
            batch.places[str(source.log)] = place
        self.tally.merge(tally)
        if self.verdicts is None:
            self._commit(batch, seconds)
        else:
            self._commit(
                batch, seconds, partial(self.verdicts.add, str(source.log), flows, verdicts)
            )
        return True

    def round(self, *, once: bool = False) -> None:
        """Periodic work: a new model, quiet alerts, feedback, baselines, drift, queues."""
        now = self._timer()  # not the clock, which may jump
        self._take_over(now)
        if now < self._next_round:
            return
        self._next_round = now + ROUND_S
        batch = StoreBatch()
        if not once:
            batch.messages = self.grouper.tick(self.judge.clock.run_on(now))
            batch.groups = self.grouper.changed()
        self.judge.silence(self.journal.silenced())
        self._save_learnt(batch)
        self._check_drift(batch, self._clock())
        self._commit(batch)
        if self.judge.hardly_local and not self._warned:
            self._warned = True
            _log.warning(
                "hardly any flow has a local address at either end; name your own networks: "
                'networks = ["203.0.113.0/24"] in the settings file'
            )
        if self.outbox is not None:
            self.outbox.trim()
        if self._observer is not None:
            self._observer.round()

    def _take_over(self, now: float) -> None:
        """Use the new bundle from now on, if there is one.

        This happens between two steps, so each flow is judged by one model only.
        """
        if self._successor is None:
            return
        try:
            fresh = self._successor.look(now)
            if fresh is None:
                return
            self.judge.adopt(fresh)
        except GradsenseError as error:
            _log.warning("%s; the previous model stays in use", error)
            self._commit(StoreBatch(counts={"models_refused": 1}))
            return
        self.grouper.model = fresh.manifest.id
        batch = StoreBatch(counts={"models_adopted": 1})
        self._save_learnt(batch)
        self._commit(batch)
        _log.info("model %s is in use now", fresh.manifest.id)

    def finish(self, *, close_alerts: bool) -> None:
        """Commit the rest, and deliver what can be delivered within seconds."""
        batch = StoreBatch()
        if close_alerts:
            batch.messages = self.grouper.close_all()
        batch.groups = self.grouper.changed()
        self._save_learnt(batch)
        self._commit(batch)
        if self.outbox is not None:
            self.outbox.flush(5.0)
            self.outbox.close()
        if self.verdicts is not None:
            self.verdicts.close()
        if self._successor is not None:
            self._successor.close()

    def summary(self) -> dict[str, Any]:
        """The result of this run as JSON values: ``flows, alarms, alerts, verdicts, dropped,
        dropped_lines, inferred, stalls, counts, sinks, logs``."""
        prefix = "verdict:"
        return {
            "flows": self.counts["flows"],
            "alarms": self.counts["alarms"],
            "alerts": self.counts["alerts"],
            "verdicts": {
                name.removeprefix(prefix): number
                for name, number in self.counts.most_common()
                if name.startswith(prefix)
            },
            "dropped": self.tally.to_json()["dropped"],
            "dropped_lines": self.tally.lines(),
            "inferred": self.judge.detector.inferred,
            "stalls": self.counts["stalls"],
            "counts": dict(sorted(self.counts.items())),
            "sinks": {name: vars(queue) for name, queue in self.journal.backlogs().items()},
            "logs": {str(source.log): source.follower.counts.to_json() for source in self.sources},
        }

    def _save_learnt(self, batch: StoreBatch) -> None:
        """Put the baselines that changed and the state of drift into the batch."""
        if self.judge.baseline is not None:
            for device, body in self.judge.baseline.dirty().items():
                batch.blobs["baseline", device] = body
        if self.judge.drift is not None:
            batch.blobs["drift", "state"] = self.judge.drift.state().model_dump_json().encode()

    def _check_drift(self, batch: StoreBatch, now: float) -> None:
        if self.judge.drift is None:
            return
        found = self.judge.drift.recommend(now)
        if found is not None:
            batch.blobs["retraining", f"{found.at:.3f}"] = found.model_dump_json().encode()
            batch.counts["retraining_recommendations"] = 1
            _log.warning(
                "this network no longer looks like the model's training data (PSI %.2f, worst: "
                "%s); retraining is recommended",
                found.report.largest,
                ", ".join(found.report.worst),
            )

    def _commit(
        self, batch: StoreBatch, seconds: float = 0.0, write: Callable[[], None] | None = None
    ) -> None:
        """Commit the batch, retrying while the disk is full; then count it."""
        warned = False
        while True:
            size = 0 if self.verdicts is None else self.verdicts.size
            try:
                if write is not None and self.verdicts is not None:
                    write()
                    batch.places[_verdicts_key(self.verdicts)] = self.verdicts.size
                self.journal.commit(batch)
                break
            except (StorageFull, OSError) as error:
                if self.verdicts is not None:
                    self.verdicts.cut(size)
                if not warned:
                    warned = True
                    self.counts["stalls"] += 1
                    _log.warning("%s; reading stops until it can be written", error)
                if self.stop.is_set():
                    raise GradsenseError(
                        f"stopped while the state could not be written ({error}); "
                        "nothing is lost, the next run continues after the last commit"
                    ) from error
                self._wait(self.stop, RETRY_S)
        self.counts.update(batch.counts)
        if self._observer is not None:
            self._observer.committed(batch, seconds)
        if batch.messages and self.outbox is not None:
            self.outbox.wake()


def _verdicts_key(verdicts: VerdictLog) -> str:
    return f"verdicts:{verdicts.path}"
