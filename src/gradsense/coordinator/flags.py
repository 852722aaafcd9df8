"""Devices that a person should look at: their statistics contradict what the others agree on.

Nothing is left out for it: where sites are unlike, the one that differs may be right. It is worked
out beside the coordinator's loop, in a thread of its own that only reads the journal.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path

from gradsense.coordinator.lookup import ContributionsIn, newest_snapshot
from gradsense.errors import GradsenseError
from gradsense.federation.algorithms.gsfs import RidgeSum
from gradsense.fleet import jobs
from gradsense.learning.screening import contradictions
from gradsense.learning.statistics import HEAD_BIAS, STATISTICS
from gradsense.storage.sqlite import StorageFull

#: A score from here on is worth a look. It is no proof: many who lie together make the honest site
#: the one that contradicts (docs/benchmarks.md).
FLAGGED = 0.1
#: Seconds between two looks; a look costs one inverse of the features' matrix.
_PAUSE_S = 60.0

_log = logging.getLogger(__name__)


class Flags(threading.Thread):
    """Looks at every run of a fleet whose model is a sum, when it has a new model.

    Attributes:
        scores: run to device to contradiction, 0 to 1; replaced, never changed.
    """

    def __init__(self, fleet: Path, *, pause_s: float = _PAUSE_S) -> None:
        super().__init__(name="flags", daemon=True)
        self.scores: Mapping[str, Mapping[str, float]] = {}
        self.stopping = threading.Event()
        self._fleet, self._pause_s = fleet, pause_s
        self._seen: dict[str, int] = {}

    def run(self) -> None:
        while not self.stopping.wait(self._pause_s):
            self.look()

    def look(self) -> None:
        """One look at every run."""
        for folder in sorted((self._fleet / jobs.RUNS).glob("[!.]*")):
            try:
                rule = jobs.read(folder / jobs.START).rules.rule
                if isinstance(rule, RidgeSum):
                    self._score(folder, rule)
            except (GradsenseError, StorageFull) as error:
                _log.debug("run %s is not looked at: %s", folder.name, error)

    def _score(self, folder: Path, rule: RidgeSum) -> None:
        version, groups = newest_snapshot(folder)
        if self._seen.get(folder.name) == version:
            return
        given = ContributionsIn(folder)
        found = contradictions(
            lambda name: given[name].tensors[STATISTICS],
            rule.weights(given.records),
            len(groups["model"][HEAD_BIAS]),
            rule.regularisation,
        )
        self._seen[folder.name] = version
        self.scores = {
            **self.scores,
            folder.name: {name: round(score, 4) for name, score in sorted(found.items())},
        }
