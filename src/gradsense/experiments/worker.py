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
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TextIO

from gradsense.agent.supervisor import die_with_parent
from gradsense.config import RunSettings
from gradsense.errors import GradsenseError
from gradsense.experiments.bench import set_up
from gradsense.experiments.corpus import load_corpus
from gradsense.experiments.networks_left_out import network_corpus, run_network_job
from gradsense.experiments.references import references
from gradsense.experiments.run import RunProgress, run_reference, train

#: The corpus of the last job is kept, because the next job mostly has the same.
_corpus = lru_cache(maxsize=1)(load_corpus)
_networks = lru_cache(maxsize=1)(network_corpus)


def run_job(job: dict[str, Any], report: Callable[..., None]) -> tuple[str, ...]:
    """One algorithm or reference with one seed, into its folder; the notes on its data.

    Args:
        job: ``settings``, ``out`` and ``resume``.
        report: takes what a line of progress shall hold, ``share`` (0..1) always.
    """
    settings, out = RunSettings.model_validate(job["settings"]), Path(job["out"])
    # Jobs mostly differ in the seed and the algorithm, and no algorithm changes its data.
    data = settings.model_copy(update={"algorithm": ""})

    def on_group(done: int, groups: int) -> None:
        report(share=done / groups, text=f"{done} of {groups} groups left out")

    def on_progress(now: RunProgress) -> None:
        report(**asdict(now))

    if settings.split == "network":
        corpus = _networks(data)
        run_network_job(settings, corpus, out, resume=job["resume"], on_group=on_group)
        return corpus.notes
    corpus = _corpus(data)
    bench = set_up(settings, corpus)
    reference = references().get(settings.algorithm)
    if reference is not None:
        run_reference(bench, reference, out, resume=job["resume"], on_progress=on_progress)
    else:
        train(bench, out, resume=job["resume"], on_progress=on_progress)
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
            notes = run_job(json.loads(job), partial(send, "progress"))
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
