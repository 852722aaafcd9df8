"""Evaluate a trained model on logs: its scores where they are labelled, and its speed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from gradsense.data.datasets.captures import Capture, discover, in_context
from gradsense.data.datasets.order import TimeOrder, warnings
from gradsense.data.sources.lines import Tally
from gradsense.data.sources.stream import is_synthetic
from gradsense.errors import InputError, input_errors
from gradsense.learning.metrics import score
from gradsense.models import folder
from gradsense.models.classifier import TextClassifier
from gradsense.storage import files
from gradsense.tasks.task import Task

#: Latency is the mean over at most so many flows, after some that only warm the caches.
_TIMED_FLOWS, _WARM_UP_FLOWS = 200, 10

#: What the latency spans, in words for the result; the paper leaves it open.
LATENCY_SPAN = "one prompt to one verdict: tokenizer, model, softmax; batch 1; no reading of logs"

_VERDICT_COLUMNS = ("file", "line", "ts", "orig_h", "resp_h", "resp_p", "verdict", "score")

OnFile = Callable[[str, int, int], None]


def evaluate(
    model_dir: Path,
    data: Path,
    *,
    out: Path | None = None,
    cap: int = 0,
    strict: bool = False,
    threads: int = 1,
    on_file: OnFile | None = None,
) -> dict[str, Any]:
    """Classify all flows of a log or of a folder of captures, in time order, block by block.

    A flow whose class the model was not trained on counts as wrong and is listed under
    ``unknown_classes``. A flow without a label gets a verdict and no part in ``scores``.

    Args:
        model_dir: a folder that ``models.folder.save`` wrote.
        data: a log of any record source, or a folder of captures.
        out: a JSON lines file that takes one verdict a flow.
        cap: at most so many flows per (capture, class), the first in time; 0 takes all.
        strict: a malformed line is an error instead of being counted.
        threads: of torch; one is best for a small model, and what an edge device has to spare.
        on_file: called with ``(capture name, index from 0, number of captures)`` before each file.

    Returns:
        JSON values: ``model, data, template, captures, synthetic, flows, labelled, unlabelled,
        capped, dropped, verdicts, unknown_classes, warnings, scores`` (None without
        labels), ``latency {mean_ms, p95_ms, requests_per_min, flows, spans}, flows_per_s`` (from
        file to verdict, in batches).

    Raises:
        InputError: a broken model folder, an unreadable log, no flows, an unwritable ``out``.
    """
    if cap < 0:
        raise InputError(f"cap is {cap}", hint="give 0 for no cap, or more", field="cap")
    torch.set_num_threads(threads)
    classifier = folder.load(model_dir)
    captures = discover(data)
    counts = _Counts(classifier.labels, classifier.template.task)
    began = time.perf_counter()
    with _verdict_file(out) as write:
        for index, capture in enumerate(captures):
            if on_file is not None:
                on_file(capture.name, index, len(captures))
            for flows in _read(capture, classifier, counts, cap=cap, strict=strict):
                judged = _judge(flows, classifier)
                counts.add(judged)
                write(judged.select(pl.lit(str(capture.path)).alias("file"), *_VERDICT_COLUMNS[1:]))
        wall = time.perf_counter() - began
        if not counts.flows:
            raise InputError("the logs hold no flows", hint="give logs with flows", file=data)
    return {
        "model": str(model_dir),
        "data": str(data),
        "template": classifier.template.name,
        "captures": len(captures),
        "synthetic": any(is_synthetic(capture.path) for capture in captures),
        **counts.to_json(),
        "warnings": list(warnings(counts.orders)) if classifier.template.needs_context else [],
        "latency": latency(classifier, counts.sample),
        "flows_per_s": counts.flows / wall,
    }


def latency(classifier: TextClassifier, texts: list[str]) -> dict[str, Any]:
    """Time of one inference at batch 1, and the paper's requests a minute, 60,000 / mean ms."""
    for text in texts[:_WARM_UP_FLOWS]:
        classifier.probabilities([text])
    times = []
    for text in texts[:_TIMED_FLOWS]:
        began = time.perf_counter()
        classifier.probabilities([text])
        times.append(1000 * (time.perf_counter() - began))
    mean = float(np.mean(times))
    return {
        "mean_ms": mean,
        "p95_ms": float(np.percentile(times, 95)),
        "requests_per_min": 60_000 / mean,
        "flows": len(times),
        "spans": LATENCY_SPAN,
    }


@dataclass
class _Counts:
    """Everything that is counted over the blocks; its size does not grow with the logs."""

    labels: tuple[str, ...]
    task: Task
    tally: Tally = field(default_factory=Tally)
    flows: int = 0
    capped: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)  # (truth, verdict)
    unknown: Counter[str] = field(default_factory=Counter)
    sample: list[str] = field(default_factory=list)
    orders: dict[str, TimeOrder] = field(default_factory=dict)

    def add(self, judged: pl.DataFrame) -> None:
        self.flows += judged.height
        self.verdicts.update(judged["verdict"])
        labelled = judged.filter(pl.col("class").is_not_null())
        self.pairs.update(labelled.select("class", "verdict").iter_rows())
        strange = labelled.filter(~pl.col("class").is_in(self.labels)).select(
            # A label that is no known class at all is listed as it is written.
            pl.when(pl.col("class").is_in(self.task.classes))
            .then("class")
            .otherwise(pl.concat_str("label", "detail", separator=" ", ignore_nulls=True))
            .alias("class")
        )
        self.unknown.update(strange["class"])
        if len(self.sample) < _TIMED_FLOWS:
            self.sample += judged["text"].head(_TIMED_FLOWS - len(self.sample)).to_list()

    def to_json(self) -> dict[str, Any]:
        labelled = self.pairs.total()
        return {
            "flows": self.flows,
            "labelled": labelled,
            "unlabelled": self.flows - labelled,
            "capped": self.capped,
            "dropped": self.tally.to_json()["dropped"],
            "verdicts": {label: self.verdicts[label] for label in self.labels},
            "unknown_classes": dict(self.unknown.most_common()),
            "scores": self._scores() if labelled else None,
        }

    def _scores(self) -> dict[str, Any]:
        strange = sorted({truth for truth, _ in self.pairs} - set(self.labels))
        classes = (*self.labels, *strange)
        places = {name: place for place, name in enumerate(classes)}
        found = score(
            np.array([places[truth] for truth, _ in self.pairs]),
            np.array([places[verdict] for _, verdict in self.pairs]),
            classes,
            counts=np.array(list(self.pairs.values())),
            normal=self.task.normal,
        )
        return asdict(found)


def _read(
    capture: Capture, classifier: TextClassifier, counts: _Counts, *, cap: int, strict: bool
) -> Iterator[pl.DataFrame]:
    """Blocks of flows with context, class and text, at most ``cap`` flows of a class."""
    taken: Counter[str | None] = Counter()
    order = counts.orders[capture.name] = TimeOrder()
    # The context sees every flow of the log, also those that the cap removes.
    for flows in in_context(capture, tally=counts.tally, strict=strict, order=order):
        frame = classifier.template.task.classed(flows, classifier.labels)
        if cap:
            before = pl.Series("before", [taken[name] for name in frame["class"]])
            kept = frame.filter(pl.int_range(pl.len()).over("class") + before < cap)
            taken.update(frame["class"])
            counts.capped += frame.height - kept.height
            frame = kept
        if frame.height:
            yield frame.with_columns(classifier.template.render(frame).alias("text"))


def _judge(flows: pl.DataFrame, classifier: TextClassifier) -> pl.DataFrame:
    """``flows`` with ``verdict`` and ``score``, the verdict's probability."""
    table = classifier.probabilities(flows["text"].to_list())
    verdicts = table.argmax(axis=1)
    return flows.with_columns(
        pl.Series("verdict", [classifier.labels[place] for place in verdicts], dtype=pl.String),
        pl.Series("score", table[np.arange(len(table)), verdicts].astype(np.float64).round(6)),
    )


@contextmanager
def _verdict_file(path: Path | None) -> Iterator[Callable[[pl.DataFrame], object]]:
    """What takes the verdicts. The file appears whole at the end or not at all."""
    if path is None:
        yield lambda verdicts: None
        return
    if path.exists() and not path.is_file():  # a device's node would be replaced
        raise InputError("is a folder or a device", hint="give a file as --out", file=path)
    hint = "free some space, or give a writable --out"
    writable = partial(input_errors, "cannot be written", hint=hint, file=path)
    with ExitStack() as stack:
        with writable():
            sink = stack.enter_context(files.fresh(path, sync=False, mode=0o666))

        def write(verdicts: pl.DataFrame) -> None:
            with writable():
                verdicts.write_ndjson(sink)

        yield write
        with writable():
            stack.close()
