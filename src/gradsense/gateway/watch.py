"""The watch: a loop that reads new log lines, judges their flows, commits and delivers.

A new bundle on disk is detected and loaded in the background, and judges from then on.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsense.data.sources.following import LiveLog
from gradsense.data.sources.lines import Tally
from gradsense.detection.bundle import GRAPH_FILE, HEAD_FILE, MANIFEST_FILE, TOKENIZER_FILE
from gradsense.detection.detector import Detector, Verdict
from gradsense.errors import GradsenseError
from gradsense.gateway.alerting.grouping import Grouper
from gradsense.gateway.delivery import Outbox
from gradsense.gateway.judge import Judge
from gradsense.gateway.store import GatewayStore, StoreBatch, VerdictLog
from gradsense.storage.sqlite import StorageFull

if TYPE_CHECKING:  # it needs a library that not every gateway has
    from gradsense.gateway.instruments import Observer

#: Bytes of one log judged at once, about a thousand flows: more are a little faster and take
#: memory that a gateway may not have. A log that grows line by line is judged line by line.
CHUNK_BYTES = 1 << 17
#: Seconds between polls of logs that do not grow, between retries on a full disk, and between
#: rounds of the work that is not done with every batch.
POLL_S, RETRY_S, ROUND_S = 0.1, 1.0, 10.0
#: Seconds between two checks of the folder; a check is four calls of ``stat``.
LOOK_S = 1.0

#: Inode, size and modification time of every file of a bundle. A folder that replaces another has
#: other inodes, even if its times are the same.
_Stamp = tuple[tuple[int, int, int], ...]

_log = logging.getLogger(__name__)


class Successor:
    """Finds the detector that succeeds the current one.

    Args:
        path: the bundle's folder, which other processes may replace at any moment.
        load: opens the bundle there.

    Attributes:
        current: the last detector that could be used.
    """

    def __init__(self, path: Path, load: Callable[[], Detector]) -> None:
        self.path, self._load = path, load
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="bundle")
        self._coming: tuple[_Stamp, Future[Detector]] | None = None
        self._next_look = 0.0
        self._seen = self._stamp()  # before the load, so that a change during it is detected
        self.current = load()

    def look(self, now: float) -> Detector | None:
        """The detector of a new bundle once it is loaded, else None at once.

        Args:
            now: monotonic seconds.

        Raises:
            GradsenseError: a new bundle cannot be used: it is damaged, or of another template,
                which baselines and feedback would not fit. Raised once; the bundle is tried again
                when one of its files changes.
        """
        if self._coming is not None:
            return self._arrived(*self._coming) if self._coming[1].done() else None
        if now < self._next_look:
            return None
        self._next_look = now + LOOK_S
        stamp = self._stamp()
        if stamp and stamp != self._seen:
            self._coming = stamp, self._pool.submit(self._load)
        return None

    def close(self) -> None:
        """Load nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _arrived(self, stamp: _Stamp, loaded: Future[Detector]) -> Detector | None:
        self._coming = None
        if self._stamp() != stamp:
            return None  # replaced while it was read; the parts may be of two bundles
        self._seen = stamp
        try:
            fresh = loaded.result()
        except GradsenseError:
            raise
        except Exception as error:  # memory, say: the old one stays in use whatever it was
            raise GradsenseError(
                f"{self.path}: the new bundle cannot be opened: {error}"
            ) from error
        own, other = self.current.template, fresh.template
        if (own.name, own.version) != (other.name, other.version):
            raise GradsenseError(
                f"{self.path}: the new bundle's template is '{other.name}' version "
                f"{other.version}, not '{own.name}' version {own.version}; restart to change it"
            )
        if fresh.manifest.id == self.current.manifest.id:
            return None
        self.current = fresh
        return fresh

    def _stamp(self) -> _Stamp:
        """The stamp of the bundle as it is now; empty while there is none."""
        found = []
        for name in (MANIFEST_FILE, GRAPH_FILE, TOKENIZER_FILE, HEAD_FILE):
            try:
                status = (self.path / name).stat()
            except OSError:
                if name == MANIFEST_FILE:
                    return ()
            else:
                found.append((status.st_ino, status.st_size, status.st_mtime_ns))
        return tuple(found)


class Watch:
    """Follows logs and judges each of their flows once.

    Each step reads a chunk of each log, judges it, and commits the place in the log, counts,
    alerts and messages in one transaction, so a crash loses nothing that is older than a chunk.
    While the disk is full, reading stops and the transaction is retried: the log is the buffer.

    Args:
        journal: open alerts and device baselines are restored from it.
        clock: seconds since the epoch.
        verdicts, observer, successor: None for no file of all verdicts, no metrics, and the
            judge's detector for good.
    """

    def __init__(
        self,
        sources: Sequence[LiveLog],
        judge: Judge,
        grouper: Grouper,
        journal: GatewayStore,
        outbox: Outbox,
        *,
        verdicts: VerdictLog | None = None,
        clock: Callable[[], float] = time.time,
        observer: Observer | None = None,
        successor: Successor | None = None,
    ) -> None:
        self.sources, self.judge, self.grouper, self.journal = sources, judge, grouper, journal
        self.outbox, self.verdicts = outbox, verdicts
        self._observer, self._successor = observer, successor
        self._clock, self._timer = clock, time.perf_counter
        self.tally = Tally()
        self.counts: Counter[str] = Counter()
        self.stop = threading.Event()
        self._next_round, self._warned = 0.0, False
        if verdicts is not None and (size := journal.places().get(verdicts.key)):
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
        self.outbox.start()
        while not self.stop.is_set():
            moved = [self.step(source, final=once) for source in self.sources]
            self.round(once=once)
            if not any(moved):
                if once or all(source.ended for source in self.sources):
                    break
                self.stop.wait(POLL_S)
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
        log, file = str(source.log), self.verdicts
        if (place := source.place()) is not None:
            batch.places[log] = place
        self.tally.merge(tally)
        write = None if file is None else partial(file.add, log, flows, verdicts)
        self._commit(batch, seconds, write)
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
        self.outbox.trim()
        if self._observer is not None:
            self._observer.round()

    def _take_over(self, now: float) -> None:
        """Use the new bundle from now on; between two steps, so one model judges each flow."""
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
        self.outbox.flush(5.0)
        self.outbox.close()
        for part in (self.verdicts, self._successor):
            if part is not None:
                part.close()

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
        """Put the baselines that changed, the state of drift and the classes into the batch."""
        batch.blobs["model", "labels"] = json.dumps(self.judge.detector.manifest.labels).encode()
        if self.judge.baseline is not None:
            for device, body in self.judge.baseline.dirty().items():
                batch.blobs["baseline", device] = body
        if self.judge.drift is not None:
            batch.blobs["drift", "state"] = self.judge.drift.state().model_dump_json().encode()

    def _check_drift(self, batch: StoreBatch, now: float) -> None:
        found = None if self.judge.drift is None else self.judge.drift.recommend(now)
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
                    batch.places[self.verdicts.key] = self.verdicts.size
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
                self.stop.wait(RETRY_S)
        self.counts.update(batch.counts)
        if self._observer is not None:
            self._observer.committed(batch, seconds)
        if batch.messages:
            self.outbox.wake()
