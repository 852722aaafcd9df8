"""Leave whole groups of networks out, one after the other: what is seen where nobody trained?

For each group, every method is trained on all other groups and judged on this one: benign or
malicious. A tenth of the distinct prompts is for validation and trained on by nobody; the threshold
as trained comes from the benign ones among them. The operator's own calibration takes the first
half of each capture's benign flows in time; false alarms are counted on the second halves, before
and after alike. An algorithm takes part if its head follows from sufficient statistics: without a
group it is then a subtraction. Every site reports all that it has; sensing is not simulated.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradsense.config import RunSettings
from gradsense.data.datasets.captures import discover
from gradsense.data.datasets.groups import load_groups
from gradsense.data.datasets.iot23 import BENIGN, BINARY_CLASSES
from gradsense.data.datasets.split import Split
from gradsense.errors import InputError
from gradsense.experiments.compare import OnNews, PlannedRun, prepare, run_all
from gradsense.experiments.corpus import Corpus, OnFile
from gradsense.experiments.network_results import (
    CaptureCounts,
    GroupRow,
    load_groups_of,
    save_groups,
)
from gradsense.experiments.network_table import markdown
from gradsense.experiments.references import references
from gradsense.experiments.references.random_base import over_frozen_base
from gradsense.experiments.references.reference import Fit, Mask, Tabular
from gradsense.experiments.references.table_of_flows import FlowTable
from gradsense.experiments.results import write_text
from gradsense.experiments.rundir import RESULTS, claimed
from gradsense.federation.algorithm import get_algorithm
from gradsense.federation.algorithms.gsfs import Gsfs
from gradsense.learning.alarms import threshold_for
from gradsense.learning.calibration import suspicion
from gradsense.prompts.templates import get_template

#: Share of the distinct prompts that nobody trains on.
_VALIDATION = 0.1
#: The tables as text, beside ``results.json``.
TABLES = "networks.md"

_Scores = NDArray[np.floating[Any]]


def plan_networks(
    base: RunSettings, algorithms: Sequence[str], seeds: int, out: Path, *, with_references: bool
) -> list[PlannedRun]:
    """The jobs, seed by seed, so that a worker can keep a seed's flows.

    Raises:
        InputError: no data, nothing to compare, an algorithm that cannot take part, or settings
            that have no meaning here.
    """
    if base.data is None:
        raise InputError(
            "there are no networks to leave out", hint="give --data FOLDER", field="--data"
        )
    discover(base.data)
    if base.partition != "natural" or base.labels:
        raise InputError(
            "networks are left out with a client a capture, benign against malicious",
            hint="leave --partition and --labels out, or use another --split",
            field="--split",
        )
    get_template(base.template)
    for name in algorithms:
        if not isinstance(get_algorithm(name), Gsfs):
            raise InputError(
                f"'{name}' would have to train once for every group left out",
                hint="name algorithms of sufficient statistics, such as gsfs or gsfs:cap=2000",
                field="--algorithms",
            )
    names = list(dict.fromkeys(algorithms))
    if with_references:
        names += [
            name
            for name, one in references().items()
            if isinstance(one, Tabular) and one.absent() is None
        ]
    if not names:
        raise InputError("nothing to compare", hint="name an algorithm", field="--algorithms")
    return [
        PlannedRun(
            base.model_copy(update={"algorithm": name, "seed": seed}),
            out / f"{re.sub(r'[^a-z0-9.-]', '_', name.replace('=', '-'))}-seed{seed}",
        )
        for seed in range(base.seed, base.seed + seeds)
        for name in names
    ]


def compare_networks(
    jobs: Sequence[PlannedRun],
    out: Path,
    *,
    workers: int,
    resume: bool = False,
    on_news: OnNews = lambda job, news: None,
) -> tuple[list[GroupRow], tuple[str, ...]]:
    """Run all jobs; write ``results.json`` and the tables, ``networks.md``, into ``out``.

    Returns:
        The rows, method by method in the order of the jobs, and the notes on the data.

    Raises:
        InputError: an unwritable ``out``.
        GradsenseError: the first error of a job, with its exit code; or a worker died.
    """
    prepare(out, resume=resume)
    notes = run_all(jobs, workers, resume, on_news)
    order = {name: i for i, name in enumerate(dict.fromkeys(j.settings.algorithm for j in jobs))}
    rows = [row for job in jobs for row in load_groups_of(job.out / RESULTS)]
    rows.sort(key=lambda row: (order[row.method], row.seed))
    save_groups(rows, out / RESULTS)
    write_text(out / TABLES, markdown(rows))
    return rows, notes


def network_corpus(settings: RunSettings, on_file: OnFile | None = None) -> Corpus:
    """All labelled flows, a tenth of their prompts for validation and none for testing.

    The frames also have ``group`` and ``grade``.

    Raises:
        InputError: as ``load_groups``, or flows of one class only.
    """
    assert settings.data is not None
    found = load_groups(
        settings.data,
        cap=settings.kept,
        seed=settings.seed,
        strict=settings.strict,
        on_file=on_file,
    )
    flows = found.flows.with_columns(
        get_template(settings.template).render(found.flows).alias("text"), client=pl.col("capture")
    )
    if flows["class"].n_unique() < 2:
        raise InputError(
            f"every flow is of the class '{flows['class'][0]}'",
            hint="give benign and malicious flows",
            file=settings.data,
        )
    texts = flows["text"].unique().sort()
    drawn = np.random.default_rng([settings.seed, 41]).random(len(texts)) < _VALIDATION
    kept_out = flows["text"].is_in(texts.filter(pl.Series(drawn)).implode())
    parts = Split(
        train=flows.filter(~kept_out), test=flows.clear(), validation=flows.filter(kept_out)
    )
    notes = [*found.tally.lines()]
    if found.unlabelled:
        notes.append(f"{found.unlabelled:,} flows without a label are left out")
    return Corpus(parts, BINARY_CLASSES, found.synthetic, tuple(notes))


def run_network_job(
    settings: RunSettings,
    corpus: Corpus,
    out: Path,
    *,
    resume: bool,
    on_group: Callable[[int, int], None],
) -> None:
    """One method with one seed into ``out``; a finished one is left as it is.

    Raises:
        InputError: as ``rundir.claim``.
    """
    if claimed(out, settings, corpus, resume=resume):
        return
    save_groups(left_out(corpus, settings, on_group), out / RESULTS)


def left_out(
    corpus: Corpus,
    settings: RunSettings,
    on_group: Callable[[int, int], None] = lambda done, groups: None,
) -> list[GroupRow]:
    """A row for each group, by the method that ``settings.algorithm`` names."""
    table = FlowTable.of(corpus, settings)
    reference = references().get(settings.algorithm)
    fit: Fit
    if isinstance(reference, Tabular):
        fit = reference.prepare(table)
    else:
        algorithm = get_algorithm(settings.algorithm)
        assert isinstance(algorithm, Gsfs)
        fit = over_frozen_base(table, algorithm, pretrained=settings.pretrained)
    seen = _Seen(table)
    groups = table.flows["group"].unique().sort().to_list()
    by_site = dict(table.flows.select("client", "group").unique().iter_rows())
    site_groups = np.array([by_site[site] for site in table.sites])
    benign = table.labels == corpus.classes.index(BENIGN)
    number, rows = corpus.classes.index(BENIGN), []
    for place, group in enumerate(groups):
        began = time.monotonic()
        here = (table.flows["group"] == group).to_numpy()
        fitted = fit(site_groups != group)
        watched = table.part("validation") & benign & ~here
        threshold = threshold_for(suspicion(fitted.probabilities(watched), number))
        scores = suspicion(fitted.probabilities(here), number)
        rows.append(
            GroupRow(
                method=settings.algorithm,
                kind="federated" if reference is None else "reference",
                seed=settings.seed,
                group=group,
                grades="".join(sorted(table.flows.filter(here)["grade"].unique())),
                threshold=threshold,
                uplink_bytes=fitted.uplink_bytes,
                seconds=time.monotonic() - began,
                **_judged(table.flows.filter(here), benign[here], scores, threshold),
                **seen.shares(here),
            )
        )
        on_group(place + 1, len(groups))
    return rows


def _judged(flows: pl.DataFrame, benign: Mask, scores: _Scores, threshold: float) -> dict[str, Any]:
    """The counts of a ``GroupRow``."""
    names, own = flows["capture"].to_numpy(), np.zeros(len(flows), bool)
    captures = sorted(set(names.tolist()))
    for name in captures:
        rows = np.flatnonzero((names == name) & benign)
        rows = rows[np.argsort(flows["ts"].to_numpy()[rows], kind="stable")]
        own[rows[: len(rows) // 2]] = True
    calibrated = threshold_for(scores[own]) if own.any() else None
    after = threshold if calibrated is None else calibrated
    counts = []
    for name in captures:
        bad, quiet = (names == name) & ~benign, (names == name) & benign & ~own
        counts.append(
            CaptureCounts(
                capture=name,
                malicious=int(bad.sum()),
                benign=int(((names == name) & benign).sum()),
                judged=int(quiet.sum()),
                found=int((scores[bad] > threshold).sum()),
                false=int((scores[quiet] > threshold).sum()),
                found_calibrated=int((scores[bad] > after).sum()),
                false_calibrated=int((scores[quiet] > after).sum()),
            )
        )
    wins = [
        [
            pairs_won(scores[(names == one) & ~benign], scores[(names == other) & benign])
            for other in captures
        ]
        for one in captures
    ]
    return {"captures": counts, "wins": wins, "calibrated": calibrated}


def pairs_won(malicious: _Scores, benign: _Scores) -> float:
    """Pairs of which the malicious flow has the higher score; a tie counts half.

    >>> pairs_won(np.array([0.9, 0.5]), np.array([0.5, 0.1]))
    3.5
    """
    order = np.sort(benign)
    below = np.searchsorted(order, malicious, side="left")
    return float((below + np.searchsorted(order, malicious, side="right")).sum() / 2)


class _Seen:
    """How much of a group also stands in the training flows of the others."""

    def __init__(self, table: FlowTable) -> None:
        compact = get_template("compact").render(table.flows)
        self._training = table.part("train")
        self._columns = {
            "texts_seen": table.prompt,
            "compact_seen": np.unique(compact.to_numpy(), return_inverse=True)[1],
            "hosts_seen": np.unique(
                table.flows["orig_h"].fill_null("").to_numpy(), return_inverse=True
            )[1],
        }

    def shares(self, here: Mask) -> dict[str, float]:
        return {
            name: float(np.isin(column[here], column[self._training & ~here]).mean())
            for name, column in self._columns.items()
        }
