"""One worker process of a comparison: jobs come in as JSON lines, news and results go out so.

Separate processes, each with one torch thread, use a small model's cores better than threads do,
and a run that dies takes no other with it. JSON on pipes, because nothing here is pickled.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from gradsense.config import RunSettings
from gradsense.errors import GradsenseError
from gradsense.experiments.bench import set_up
from gradsense.experiments.corpus import Corpus, load_corpus
from gradsense.experiments.references import REFERENCES, run_reference
from gradsense.experiments.run import RunProgress, train

#: Settings that fix a corpus; the others say how it is learnt from.
_CORPUS = {
    "data",
    "cap",
    "view",
    "unknown_labels",
    "strict",
    "contradictions",
    "split",
    "partition",
    "clients",
    "alpha",
    "template",
    "seed",
}


class Corpora:
    """The corpus of the last job, kept because the next job mostly has the same."""

    def __init__(self) -> None:
        self._key = ""
        self._corpus: Corpus | None = None

    def get(self, settings: RunSettings) -> Corpus:
        """The corpus of these settings."""
        key = settings.model_dump_json(include=_CORPUS)
        if self._corpus is None or key != self._key:
            self._key, self._corpus = key, load_corpus(settings)
        return self._corpus


def run_job(
    job: dict[str, Any], corpora: Corpora, report: Callable[[RunProgress], None]
) -> tuple[str, ...]:
    """One algorithm or reference with one seed, into its folder; the notes on its data."""
    settings = RunSettings.model_validate(job["settings"])
    corpus = corpora.get(settings)
    bench = set_up(settings, corpus)
    out = Path(job["out"])
    if settings.algorithm in REFERENCES:
        run_reference(bench, settings.algorithm, out, resume=job["resume"], on_progress=report)
    else:
        train(bench, out, resume=job["resume"], on_progress=report)
    return corpus.notes


def _received(jobs: TextIO, busy: threading.Event) -> Iterator[dict[str, Any]]:
    """The jobs as they come; ``busy`` is set with each, and whoever is done with it clears it.

    The comparison ends its list of jobs only while the worker is idle. Where the list ends before,
    the comparison was killed, and a worker that went on would write into folders that a resumed
    comparison uses.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in jobs:
            busy.set()
            waiting.put(line)
        if busy.is_set():
            os._exit(1)
        waiting.put("")

    threading.Thread(target=read, daemon=True).start()
    while line := waiting.get():
        yield json.loads(line)


def serve(jobs: TextIO, news: TextIO) -> None:
    """Work until the jobs end. Each job ends in one line, ``done`` or ``error``."""

    def send(**message: object) -> None:
        try:
            print(json.dumps(message), file=news, flush=True)
        except BrokenPipeError:  # the comparison is gone, and nobody is left to complain to
            os._exit(1)

    corpora = Corpora()
    busy = threading.Event()
    for job in _received(jobs, busy):
        number = job["number"]

        def report(progress: RunProgress, number: int = number) -> None:
            send(number=number, event="progress", **asdict(progress))

        try:
            notes = run_job(job, corpora, report)
        except GradsenseError as error:
            busy.clear()
            send(number=number, event="error", text=str(error), exit_code=error.exit_code)
        else:
            busy.clear()
            send(number=number, event="done", notes=notes)


if __name__ == "__main__":
    # Whatever a library prints must not be taken for news.
    news, sys.stdout = sys.stdout, sys.stderr
    serve(sys.stdin, news)
