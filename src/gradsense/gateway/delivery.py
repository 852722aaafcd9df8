"""Delivers messages from the journal to the sinks, each in a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from gradsense.errors import GradsenseError
from gradsense.gateway.alerting.alert import SEVERITIES, Severity
from gradsense.gateway.alerting.sink import Refused, Sink
from gradsense.gateway.store import GatewayStore
from gradsense.storage.sqlite import StorageFull

#: Messages of one batch.
BATCH = 100
#: Seconds until the retry after a failure: doubled each time, up to the second figure.
FIRST_WAIT, LAST_WAIT = 1.0, 60.0
_QUEUE_BYTES = 64 << 20

_log = logging.getLogger(__name__)


class Outbox:
    """Delivers the journal's messages to each sink, in order, at least once.

    A sink that is down delays no other sink.

    Args:
        sinks: receivers by their unique names.
        most_bytes: of a sink's queue on disk, 64 MiB where it is not named; beyond it the oldest
            messages are dropped.
        least: the lowest severity that a sink is sent; everything where it is not named.
        wait: sleeps for seconds or until the event is set; for tests.
    """

    def __init__(
        self,
        journal: GatewayStore,
        sinks: Mapping[str, Sink],
        *,
        most_bytes: dict[str, int],
        least: Mapping[str, Severity],
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        self._journal, self._sinks, self._wait = journal, sinks, wait
        self._most_bytes, self._least = most_bytes, least
        self._stop = threading.Event()
        self._news = {name: threading.Event() for name in sinks}
        self.errors: dict[str, str] = {}
        journal.register(sinks)
        self._threads = [
            threading.Thread(target=self._deliver, args=(name,), name=f"sink-{name}", daemon=True)
            for name in sinks
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Deliver new messages now."""
        for event in self._news.values():
            event.set()

    def trim(self) -> int:
        """Cut every queue to its bound; returns how many messages were dropped."""
        try:
            return sum(
                self._journal.trim(name, self._most_bytes.get(name, _QUEUE_BYTES))
                for name in self._sinks
            )
        except StorageFull:
            return 0  # the disk is full anyway; the next round trims

    def flush(self, seconds: float) -> bool:
        """Wait until everything is delivered, at most ``seconds``; returns whether it is."""
        step = 0.05
        for _ in range(max(1, round(seconds / step))):
            self.wake()
            if not any(queue.waiting for queue in self._journal.backlogs().values()):
                return True
            self._wait(threading.Event(), step)
        return False

    def close(self, seconds: float = 5.0) -> None:
        """Stop the threads; what is not delivered stays in the journal."""
        self._stop.set()
        self.wake()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(seconds)

    def _deliver(self, name: str) -> None:
        sink, news = self._sinks[name], self._news[name]
        pause = FIRST_WAIT
        while not self._stop.is_set():
            news.clear()
            try:
                while self._send_some(name, sink):
                    pause = FIRST_WAIT
                    if self._stop.is_set():
                        break
                self.errors.pop(name, None)
                self._wait(news, LAST_WAIT)
            # An unexpected error must not end the thread, or this sink would get nothing more.
            except Exception as error:
                if name not in self.errors:  # once for each time that it goes down
                    _log.warning("sink %s: %s; it is retried", name, _text(error))
                self.errors[name] = _text(error)
                self._wait(self._stop, pause)
                pause = min(2 * pause, LAST_WAIT)
        sink.close()

    def _send_some(self, name: str, sink: Sink) -> bool:
        """Deliver one batch; False if none was waiting."""
        waiting = self._journal.waiting(name, BATCH)
        if not waiting:
            return False
        least = SEVERITIES.index(self._least.get(name, "info"))
        wanted = [alert for _, alert in waiting if SEVERITIES.index(alert.severity) >= least]
        refused = 0
        try:
            if wanted:
                sink.send(wanted)
        except Refused as error:
            refused = error.count
            _log.warning("sink %s: %s; dropped", name, error)
        taken = len(wanted) - refused
        self._journal.delivered(name, waiting[-1][0], count=taken, refused=refused)
        return True


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, GradsenseError) else f"{type(error).__name__}: {error}"
