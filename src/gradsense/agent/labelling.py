"""Labelled flows of the device's own site, gathered for training, each of them once.

They come from the logs, where the log itself or a rule says what a flow is, and from operators'
feedback on alerts. What was read and what it came to are one value, stored in one transaction: a
process killed at any instant reads nothing twice and leaves nothing out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from gradsense.agent.label_rules import LabelRules
from gradsense.agent.reader import distinct_rows
from gradsense.data.datasets.captures import discover
from gradsense.data.networks import Networks
from gradsense.data.sources.following import LiveLog
from gradsense.data.sources.lines import Tally
from gradsense.errors import InputError
from gradsense.gateway.store import FILE, GatewayStore
from gradsense.prompts.templates import Template

#: Bytes of one log read at once, about a thousand flows.
CHUNK_BYTES = 1 << 17
#: Distinct rows of a batch, by default. A batch goes beyond it by what its last step
#: brought: a step is never split, as its place in the log is not.
MOST_ROWS = 512


@dataclass(frozen=True)
class Gathered:
    """What some steps of gathering came to.

    Args:
        phrase_ids: phrases of each distinct (prompt, label), uint16 [n, fields].
        labels: its class number, int64 [n].
        weights: the flows that read so, int64 [n]. Rows are sorted, so neither the order of the
            flows nor the cuts between steps change anything.
        places: log to where it is read up to, JSON values.
        taken: the feedback taken so far; opaque.
        counts: what is added to the counters, in flows unless noted: ``flows`` read,
            ``labelled:log|rules|feedback``, ``unlabelled``, ``unknown-class:NAME``,
            ``other-template``, ``dropped:REASON`` (lines), ``feedback`` and ``corrected`` (alerts).
    """

    phrase_ids: NDArray[np.uint16]
    labels: NDArray[np.int64]
    weights: NDArray[np.int64]
    places: Mapping[str, Any]
    taken: bytes
    counts: Counter[str]

    def __len__(self) -> int:
        return len(self.labels)

    def then(self, later: Gathered) -> Gathered:
        """This and what was gathered after it."""
        rows = (np.concatenate(pair) for pair in zip(self._rows(), later._rows(), strict=True))
        return Gathered(
            *distinct_rows(*rows),
            places={**self.places, **later.places},
            taken=later.taken,
            counts=self.counts + later.counts,
        )

    def _rows(self) -> tuple[NDArray[Any], ...]:
        return self.phrase_ids, self.labels, self.weights


class BatchBuilder:
    """Makes batches of what is gathered: large where there is much, soon where there is little.

    A batch carries the places of all that is in it. They are to be stored with it and not before.

    Args:
        most_rows: so many distinct rows are enough.
        settle_s: so many seconds after its first flow a batch is given out however small.
    """

    def __init__(self, *, most_rows: int = MOST_ROWS, settle_s: float = 60.0) -> None:
        self.most_rows, self.settle_s = most_rows, settle_s
        self._held: Gathered | None = None
        self._since = 0.0

    def add(self, gathered: Gathered, now: float) -> None:
        """Take in a step. ``now``: monotonic seconds."""
        if self._held is None:
            self._held, self._since = gathered, now
        else:
            self._held = self._held.then(gathered)

    def take(self, now: float) -> Gathered | None:
        """What is held if it is due; it may be without rows.

        It is then no longer held: if it cannot be stored, it is for the caller to try again.
        """
        held = self._held
        if held is None:
            return None
        if len(held) < self.most_rows and now < self._since + self.settle_s:
            return None
        self._held = None
        return held


class Harvest:
    """Reads what is new, a chunk of a log or some feedback at a step, and labels it.

    Every source has its turn, so a log that is far behind holds up neither another log nor the
    feedback. A flow that its log labels has that label; else the first rule that matches
    decides; else it is not trained on.

    Args:
        template, labels: of the model; prompts are what the template makes of flows.
        logs: files, or folders of captures; see ``find_logs``.
        rules: None labels no flow.
        journal_folder: of the watch at this site; None or not there yet: nobody gives feedback.
        networks: the operator's own, as the watch has them.
        places, taken: from the last batch that was stored.
        most_rows: no further feedback is taken at a step that has so many rows.

    Raises:
        InputError: a place or ``taken`` is damaged.
    """

    def __init__(
        self,
        template: Template,
        labels: tuple[str, ...],
        *,
        logs: Sequence[Path],
        rules: LabelRules | None = None,
        journal_folder: Path | None = None,
        networks: Networks | None = None,
        places: Mapping[str, Any] | None = None,
        taken: bytes = b"",
        most_rows: int = MOST_ROWS,
    ) -> None:
        self._template, self._rules = template, rules
        self._networks = networks or Networks()
        self._classes = {name: number for number, name in enumerate(labels)}
        known = places or {}
        self.sources = [LiveLog(log, known.get(str(log))) for log in find_logs(logs)]
        self._feedback = _Feedback(template, self._classes, journal_folder, taken, most_rows)
        self._turn = 0

    def step(self, *, final: bool = False) -> Gathered | None:
        """The next of what is new, maybe without rows; None where nothing is new now.

        Args:
            final: the end of a log is its end, even in the middle of a line.
        """
        for _ in range(len(self.sources) + 1):
            turn = self._turn
            self._turn = (turn + 1) % (len(self.sources) + 1)
            at_end = turn == len(self.sources)
            gathered = self._feedback.news() if at_end else self._chunk(self.sources[turn], final)
            if gathered is not None:
                return gathered
        return None

    def _chunk(self, source: LiveLog, final: bool) -> Gathered | None:
        tally = Tally()
        flows = source.read(CHUNK_BYTES, tally, final=final)
        if flows is None:
            return None
        place = source.place()
        places = {} if place is None else {str(source.log): place}
        if not isinstance(flows, pl.DataFrame):  # few; a frame too, as training is in no hurry
            task = self._template.task
            flows = pl.DataFrame(flows, schema={**task.schema, **task.history}, orient="row")
        phrase_ids, numbers, counts = self._labelled(flows)
        counts.update({f"dropped:{name}": drop.count for name, drop in tally.dropped.items()})
        rows = distinct_rows(phrase_ids, numbers, np.ones(len(numbers), np.int64))
        return Gathered(*rows, places, self._feedback.taken, counts)

    def _labelled(
        self, flows: pl.DataFrame
    ) -> tuple[NDArray[np.uint16], NDArray[np.int64], Counter[str]]:
        """PhraseIds and class numbers of the flows that have a class which the model knows."""
        own = self._template.task.classed(flows, list(self._classes))["class"]
        label = own
        if self._rules is not None:
            label = pl.select(pl.coalesce(own, self._rules.labels(flows))).to_series()
        number = label.replace_strict(self._classes, default=None, return_dtype=pl.Int64)
        known = number.is_not_null()
        counts = Counter(
            {
                "flows": flows.height,
                "unlabelled": label.null_count(),
                "labelled:log": int((known & own.is_not_null()).sum()),
                "labelled:rules": int((known & own.is_null()).sum()),
            }
        )
        for name, times in Counter(label.filter(~known).drop_nulls().to_list()).items():
            counts[f"unknown-class:{name}"] = times
        chosen = self._networks.mask(flows.filter(known))
        assert isinstance(chosen, pl.DataFrame)
        return self._template.indices(chosen), number.drop_nulls().to_numpy(), +counts


def find_logs(paths: Sequence[Path]) -> list[Path]:
    """The logs at these paths, each once: a file itself, there or not yet; a folder's captures.

    A folder in which there is none yet will get its ``conn.log``. Rotated files are no logs of
    their own: the reader of a log finds them.
    """
    found: dict[Path, None] = {}
    for path in paths:
        logs = [path]
        if path.is_dir():
            try:
                logs = [capture.path for capture in discover(path)]
            except InputError:
                logs = [path / "conn.log"]
        found.update(dict.fromkeys(logs))
    return list(found)


class _Taken(NamedTuple):
    """The last feedback on an alert, and whether flows were ever taken for it."""

    label: str
    trained: bool


_TAKEN = TypeAdapter(dict[str, _Taken])


class _Feedback:
    """Feedback that was not taken yet.

    Feedback is taken once, with the prompts that its alert has by then. One that changes afterwards
    is counted only: what was sent cannot be unsent.
    """

    def __init__(
        self,
        template: Template,
        classes: Mapping[str, int],
        folder: Path | None,
        taken: bytes,
        most_rows: int,
    ) -> None:
        self.taken = taken
        self._classes, self._folder, self._most_rows = classes, folder, most_rows
        self._sizes = np.array([len(field.phrases) for field in template.fields])
        self._journal: GatewayStore | None = None
        try:
            self._known = _TAKEN.validate_json(taken) if taken else {}
        except ValidationError as error:
            raise InputError(
                "the state of the feedback is damaged", hint="begin with a fresh state of the agent"
            ) from error

    def news(self) -> Gathered | None:
        """The next feedback, maybe without rows; None without any."""
        journal = self._opened()
        if journal is None:
            return None
        news = {
            given.alert: given.label
            for given in journal.feedback()
            if given.alert not in self._known or self._known[given.alert].label != given.label
        }
        if not news:
            return None
        prompts: dict[str, list[tuple[bytes, int]]] = {alert: [] for alert in news}
        for given, prompt, flows in journal.examples():
            if given.alert in prompts:
                prompts[given.alert].append((prompt, flows))
        rows: list[tuple[NDArray[np.uint16], int, int]] = []
        counts: Counter[str] = Counter()
        for alert, label in news.items():
            if len(rows) >= self._most_rows:
                break
            before = self._known.get(alert)
            if before is not None and before.trained:
                counts["corrected"] += 1
                self._known[alert] = _Taken(label, trained=True)
                continue
            mine = self._rows(label, prompts[alert], counts)
            counts["feedback"] += 1
            rows += mine
            self._known[alert] = _Taken(label, trained=bool(mine))
        self.taken = _TAKEN.dump_json(self._known)
        phrase_ids = np.array([row[0] for row in rows], np.uint16).reshape(-1, len(self._sizes))
        numbers = np.array([row[1:] for row in rows], np.int64).reshape(-1, 2)
        distinct = distinct_rows(phrase_ids, numbers[:, 0], numbers[:, 1])
        return Gathered(*distinct, {}, self.taken, counts)

    def _opened(self) -> GatewayStore | None:
        """The watch's journal, which it makes itself."""
        if self._journal is None and self._folder is not None and (self._folder / FILE).is_file():
            self._journal = GatewayStore(self._folder, exclusive=False)
        return self._journal

    def _rows(
        self, label: str, prompts: Sequence[tuple[bytes, int]], counts: Counter[str]
    ) -> list[tuple[NDArray[np.uint16], int, int]]:
        """The rows of one alert: none if the model does not know its class, or not its prompts."""
        rows = []
        for prompt, flows in prompts:
            phrase_ids = self._phrase_ids(prompt)
            if label not in self._classes:
                counts[f"unknown-class:{label}"] += flows
            elif phrase_ids is None:
                counts["other-template"] += flows
            else:
                counts["labelled:feedback"] += flows
                rows.append((phrase_ids, self._classes[label], flows))
        return rows

    def _phrase_ids(self, prompt: bytes) -> NDArray[np.uint16] | None:
        """The phrases of a prompt, or None where the template has no such."""
        if len(prompt) != 2 * len(self._sizes):
            return None
        phrase_ids = np.frombuffer(prompt, np.uint16)
        return phrase_ids if (phrase_ids < self._sizes).all() else None
