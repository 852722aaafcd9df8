"""One worker process of a comparison: jobs come in as JSON lines, news and results go out so.

Separate processes, each with one torch thread, use a small model's cores better than threads do,
and a run that dies takes no other with it. JSON on pipes, because nothing here is pickled.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

from gradsense.agent.supervisor import die_with_parent
from gradsense.config import RunSettings
from gradsense.errors import GradsenseError
from gradsense.experiments.bench import set_up
from gradsense.experiments.corpus import load_corpus
from gradsense.experiments.references import REFERENCES, run_reference
from gradsense.experiments.run import RunProgress, train

#: The corpus of the last job is kept, because the next job mostly has the same.
_corpus = lru_cache(maxsize=1)(load_corpus)


def run_job(job: dict[str, Any], report: Callable[[RunProgress], None]) -> tuple[str, ...]:
    """One algorithm or reference with one seed, into its folder; the notes on its data."""
    settings, out = RunSettings.model_validate(job["settings"]), Path(job["out"])
    # Jobs mostly differ in the seed and the algorithm, and no algorithm changes its data.
    corpus = _corpus(settings.model_copy(update={"algorithm": ""}))
    bench = set_up(settings, corpus)
    if settings.algorithm in REFERENCES:
        run_reference(bench, settings.algorithm, out, resume=job["resume"], on_progress=report)
    else:
        train(bench, out, resume=job["resume"], on_progress=report)
    return corpus.notes


def serve(jobs: TextIO, news: TextIO) -> None:
    """Work until the jobs end. Each job ends in one line, ``done`` or ``error``."""

    def send(event: str, **message: object) -> None:
        try:
            print(json.dumps({"event": event, **message}), file=news, flush=True)
        except BrokenPipeError:  # the comparison is gone, and nobody is left to complain to
            os._exit(1)

    for job in jobs:
        try:
            notes = run_job(json.loads(job), lambda now: send("progress", **asdict(now)))
        except GradsenseError as error:
            send("error", text=str(error), exit_code=error.exit_code)
        else:
            send("done", notes=notes)


if __name__ == "__main__":
    # A worker that outlived a killed comparison would write into folders that a resumed one uses.
    die_with_parent(int(sys.argv[1]))
    # Whatever a library prints must not be taken for news.
    news, sys.stdout = sys.stdout, sys.stderr
    serve(sys.stdin, news)
