"""Table III for one's own data: every algorithm and reference, several seeds, the same compute."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsense.config import RunSettings
from gradsense.data.datasets.captures import discover
from gradsense.errors import GradsenseError, InputError
from gradsense.experiments import results
from gradsense.experiments.references import references as all_references
from gradsense.experiments.report import write_report
from gradsense.experiments.rundir import (
    REPORT,
    RESULTS,
    SETTINGS,
    claimable,
    load_row,
    writable,
)
from gradsense.federation.algorithm import get_algorithm
from gradsense.prompts.templates import get_template
from gradsense.simulation.devices import assign


@dataclass(frozen=True)
class PlannedRun:
    """One row to be: an algorithm or reference with one seed, and its folder."""

    settings: RunSettings
    out: Path

    @property
    def name(self) -> str:
        """For progress lines."""
        return f"{self.settings.algorithm} seed {self.settings.seed}"


#: Called with (job, its news): ``event`` is progress, done or error; see ``worker``.
OnNews = Callable[[PlannedRun, dict[str, Any]], None]


def plan(
    base: RunSettings, algorithms: Sequence[str], seeds: int, out: Path, *, references: bool
) -> list[PlannedRun]:
    """The jobs of a comparison, seed by seed, so that a worker can keep a seed's corpus.

    Raises:
        InputError: no algorithm, or settings that ``check`` turns down.
    """
    known = [name for name, one in all_references().items() if one.absent() is None]
    names = list(dict.fromkeys([*algorithms, *(known if references else ())]))
    if not names:
        raise InputError("nothing to compare", hint="name an algorithm", field="--algorithms")
    for name in names:
        check(base.model_copy(update={"algorithm": name}), reference=name in known)
    # A reference aggregates nothing: its rounds are the local rounds that the others may spend.
    alone = base.model_copy(update={"rounds": base.local_budget, "local_rounds": None})
    return [
        PlannedRun(
            one.model_copy(update={"algorithm": name, "seed": seed}),
            out / f"{re.sub(r'[^a-z0-9.-]', '_', name.replace('=', '-'))}-seed{seed}",
        )
        for seed in range(base.seed, base.seed + seeds)
        for name in names
        for one in [alone if name in known else base]
    ]


def absences() -> tuple[str, ...]:
    """The references that no comparison here can have, and what to do about each."""
    return tuple(text for one in all_references().values() if (text := one.absent()) is not None)


def check(settings: RunSettings, *, reference: bool = False) -> None:
    """Raise an error for names that do not exist and for data that is not there.

    Args:
        settings: of one run.
        reference: the algorithm is the name of a reference row, and known to be one.

    Raises:
        InputError: an unknown algorithm, template or device mix, adapters that the
            algorithm would not train, or no capture at ``data``.
    """
    if not reference:
        algorithm = get_algorithm(settings.algorithm)
        if settings.lora_rank and (algorithm.frozen or algorithm.readout != "last"):
            raise InputError(
                f"'{settings.algorithm}' trains no adapters",
                hint="leave it out, or use an algorithm that trains the base, such as gsfs-tune",
                field="--lora-rank",
            )
    get_template(settings.template)
    assign([], settings.devices, seed=settings.seed)
    if settings.data is not None:
        discover(settings.data)


def compare(
    jobs: Sequence[PlannedRun],
    out: Path,
    *,
    workers: int,
    resume: bool = False,
    on_news: OnNews = lambda job, news: None,
    title: str = "gradsense: algorithms compared",
    notes: tuple[str, ...] = (),
) -> tuple[list[results.Row], tuple[str, ...]]:
    """Run all jobs and write ``results.json`` and ``report.html`` into ``out``.

    Args:
        jobs: from ``plan``.
        out: the comparison's folder.
        workers: processes side by side.
        resume: read finished rows, continue unfinished ones.
        on_news: called with progress.
        notes: on how the jobs were chosen.

    Returns:
        The rows, and the notes, those on the first seed's data behind.

    Raises:
        InputError: an unwritable ``out``.
        GradsenseError: the first error of a job, with its exit code; or a worker died.
    """
    prepare(out, resume=resume)
    notes += run_all(jobs, workers, resume, on_news)
    rows = [load_row(job.out) for job in jobs]
    order = {algorithm: i for i, algorithm in enumerate(dict.fromkeys(r.algorithm for r in rows))}
    rows.sort(key=lambda row: (row.kind == "reference", order[row.algorithm], row.seed))
    results.save(rows, out / RESULTS)
    write_report(rows, out / REPORT, title=title, settings=shown(jobs[0].settings, notes))
    return rows, notes


def prepare(out: Path, *, resume: bool) -> None:
    """Complain about a folder that the comparison could not use.

    Raises:
        InputError: it cannot be written, holds a comparison and no ``resume``, or something else.
    """
    runs = any(out.glob(f"*-seed*/{SETTINGS}"))
    if runs and not resume:
        raise InputError(
            "the folder holds a comparison already",
            hint="add --resume to continue it, or choose another --out",
            file=out,
        )
    if (out / SETTINGS).exists():
        raise InputError("the folder holds a single run", hint="choose another --out", file=out)
    if runs:
        writable(out)
    else:
        claimable(out, resume=resume)


def shown(settings: RunSettings, notes: Sequence[str]) -> dict[str, str]:
    """The settings and notes that a report shows."""
    hidden = {"algorithm", "seed", "threads"}
    dumped = settings.model_dump(mode="json", exclude=hidden, exclude_none=True)
    pairs = {key.replace("_", " "): str(value) for key, value in dumped.items()}
    if settings.data is not None:
        pairs["data"] = settings.data.name
    return pairs | {f"note {i}": note for i, note in enumerate(notes, start=1)}


def run_all(
    jobs: Sequence[PlannedRun], workers: int, resume: bool, on_news: OnNews
) -> tuple[str, ...]:
    """Deal the jobs to worker processes; the notes on the first seed's data.

    Raises:
        GradsenseError: the first error of a job, with its exit code; or a worker died.
    """
    waiting, guard = iter(jobs), threading.Lock()
    notes: dict[int, tuple[str, ...]] = {}

    def look_after(process: subprocess.Popen[str]) -> None:
        """Give one worker job after job, and pass on what it reports."""
        for job in waiting:
            settings = job.settings.model_dump(mode="json")
            order = {"settings": settings, "out": str(job.out), "resume": resume}
            with contextlib.suppress(BrokenPipeError):  # it died, which ``_reports`` finds
                print(json.dumps(order), file=process.stdin, flush=True)
            for message in _reports(process):
                if message["event"] == "error":
                    error = GradsenseError(message["text"])
                    error.exit_code = message["exit_code"]
                    raise error
                with guard:
                    on_news(job, message)
                if message["event"] == "done":
                    notes[job.settings.seed] = tuple(message["notes"])
                    break

    environment = {**os.environ, "OMP_NUM_THREADS": str(jobs[0].settings.threads)}
    team = [
        subprocess.Popen(
            [sys.executable, "-m", "gradsense.experiments.worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is for us, and we end the workers
        )
        for _ in range(min(workers, len(jobs)))
    ]
    with ThreadPoolExecutor(len(team)) as pool:
        try:
            for ended in as_completed([pool.submit(look_after, process) for process in team]):
                ended.result()
        finally:
            for process in team:
                process.kill()
                process.wait()
    return notes[jobs[0].settings.seed]


def _reports(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """What a worker reports.

    Raises:
        GradsenseError: it died.
    """
    with contextlib.suppress(ValueError):  # a line that a dying worker did not finish
        yield from map(json.loads, process.stdout or ())
    raise GradsenseError(
        f"a worker process died with code {process.wait()}; "
        "run the same command with --resume to go on"
    )
