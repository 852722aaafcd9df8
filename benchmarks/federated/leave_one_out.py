"""Leave one capture out: are the attacks of a network seen that no site has ever been in?

    python -m benchmarks.federated.leave_one_out --data IOT23 [--seeds 3] [--view classes]

Everything of one capture is held out; the training flows of the other sites make the model, and
all kept flows of the held-out capture test it: benign or malicious. Moments add up, so each site
computes and sends its own once, and leaving one out is a subtraction: "without site k" costs no
training. Verdicts are binary. From a head of IoT-23's classes they come in two ways: ``summed``,
malicious where the outputs of all malicious classes together exceed Benign's (which is exactly the
ridge head of two classes on the same flows, since least squares is linear in the labels), and
``largest``, where the single largest output is not Benign's.

The peer is the random forest on raw fields with context, of the same sites' pooled flows, grown on
binary labels (``forest``) or on the classes (``forest, classes``).
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from benchmarks.shared import (
    Progress,
    bench_of,
    features,
    parser,
    spread,
    table,
    train_sets,
    upload,
)
from gradsense.data.datasets.iot23 import BENIGN, BINARY_CLASSES, MALICIOUS
from gradsense.experiments import forest
from gradsense.experiments.bench import Bench
from gradsense.experiments.corpus import examples
from gradsense.federation.algorithms.gsfs import RidgeSum
from gradsense.learning.statistics import solve

Verdicts = NDArray[np.bool_]


@dataclass(frozen=True)
class Outcome:
    """Counts of one method on one held-out capture."""

    flows: int
    malicious: int
    caught: int
    alarms: int

    @property
    def accuracy(self) -> float:
        """Share of right verdicts."""
        return (self.caught + self.flows - self.malicious - self.alarms) / self.flows

    @property
    def recall(self) -> float | None:
        """Share of the malicious flows that were caught; None without any."""
        return self.caught / self.malicious if self.malicious else None

    @property
    def false_alarms(self) -> float | None:
        """Share of the benign flows that were called malicious; None without any."""
        benign = self.flows - self.malicious
        return self.alarms / benign if benign else None


Outcomes = Mapping[str, Mapping[str, list[Outcome]]]  # method, capture, by seed


def judge(truth: Verdicts, verdicts: Verdicts) -> Outcome:
    """Counts of verdicts against the truth; True is malicious."""
    return Outcome(
        len(truth), int(truth.sum()), int((truth & verdicts).sum()), int((~truth & verdicts).sum())
    )


def forest_verdicts(bench: Bench, capture: str, test: pl.DataFrame) -> dict[str, Verdicts]:
    """The forest of the other captures' training flows, on both kinds of labels."""
    train = bench.corpus.parts.train.filter(pl.col("client") != capture)
    seed, classes = bench.settings.seed, bench.corpus.classes
    simple = train.with_columns(
        pl.when(pl.col("class") == BENIGN)
        .then(pl.lit(BENIGN))
        .otherwise(pl.lit(MALICIOUS))
        .alias("class")
    )
    found = {"forest": forest.predict(simple, test, BINARY_CLASSES, seed=seed, context=True) > 0}
    if len(classes) > len(BINARY_CLASSES):
        numbers = forest.predict(train, test, classes, seed=seed, context=True)
        found["forest, classes"] = numbers != classes.index(BENIGN)
    return found


def one_seed(bench: Bench, say: Callable[[str], None]) -> dict[str, dict[str, Outcome]]:
    """Method to held-out capture to outcome."""
    parts, classes = bench.corpus.parts, bench.corpus.classes
    benign = classes.index(BENIGN)
    flows = pl.concat([parts.train, parts.test, parts.validation])
    encoded = examples(flows, bench.corpus, bench.trainer.classifier)
    prompts, index = features(bench, encoded), encoded.index.numpy()
    truth, captures = encoded.labels.numpy() != benign, flows["capture"].to_numpy()
    moments = {}
    for site, own in train_sets(bench).items():
        factor, _ = upload(bench, own, np.arange(len(own)))
        moments[site] = factor.T @ factor
    found: dict[str, dict[str, Outcome]] = defaultdict(dict)
    for capture in flows["capture"].unique(maintain_order=True):
        # Summed without the site: subtracting it from the total would leave rounding behind.
        others = sum(own for site, own in moments.items() if site != capture)
        weight, bias = solve(others, len(classes), RidgeSum().regularisation)
        here = captures == capture
        outputs = prompts[index[here]] @ weight.T + bias
        verdicts = {"gsfs": outputs.sum(axis=1) > 2 * outputs[:, benign]}
        if len(classes) > len(BINARY_CLASSES):
            verdicts["gsfs, largest"] = outputs.argmax(axis=1) != benign
        verdicts |= forest_verdicts(bench, capture, flows.filter(pl.Series(here)))
        for method, own in verdicts.items():
            found[method][capture] = judge(truth[here], own)
        say(f"seed {bench.settings.seed}: without {capture}")
    return found


def captures_table(outcomes: Outcomes, compared: tuple[str, str]) -> str:
    """A line for each held-out capture: both methods, means over seeds."""
    head = ["held-out capture", "flows", "malicious"]
    head += [f"{name}: {what}" for what in ("accuracy", "recall", "alarms") for name in compared]
    rows = []
    for capture, first in outcomes[compared[0]].items():
        runs = [outcomes[name][capture] for name in compared]
        cells = [spread([one.accuracy for one in run]) for run in runs]
        cells += [_mean([one.recall for one in run]) for run in runs]
        cells += [_mean([one.false_alarms for one in run]) for run in runs]
        flows = statistics.fmean(one.flows for one in first)
        share = sum(one.malicious for one in first) / sum(one.flows for one in first)
        rows.append([capture, f"{flows:,.0f}", f"{share:.0%}", *cells])
    return table(head, rows)


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.3f}" if known else "none"


def summary_table(outcomes: Outcomes) -> str:
    """A line for each method: over captures within a seed, then mean ± sd over seeds."""
    head = ["method", "accuracy, mean", "median", "least", "recall, mean", "median"]
    head += ["alarms, mean", "median", "pooled: accuracy", "recall", "alarms"]
    rows = []
    for method, by_capture in outcomes.items():
        columns: dict[str, list[float]] = defaultdict(list)
        for runs in zip(*by_capture.values(), strict=True):
            _add(columns, "accuracy", [one.accuracy for one in runs], least=True)
            _add(columns, "recall", [r for one in runs if (r := one.recall) is not None])
            _add(columns, "alarms", [r for one in runs if (r := one.false_alarms) is not None])
            pooled = Outcome(
                *(sum(column) for column in zip(*(_counts(one) for one in runs), strict=True))
            )
            columns["pooled accuracy"].append(pooled.accuracy)
            columns["pooled recall"].append(pooled.recall or 0.0)
            columns["pooled alarms"].append(pooled.false_alarms or 0.0)
        rows.append([method, *(spread(values) for values in columns.values())])
    return table(head, rows)


def _counts(one: Outcome) -> tuple[int, int, int, int]:
    return one.flows, one.malicious, one.caught, one.alarms


def _add(
    columns: dict[str, list[float]], name: str, values: list[float], *, least: bool = False
) -> None:
    columns[f"{name} mean"].append(statistics.fmean(values))
    columns[f"{name} median"].append(statistics.median(values))
    if least:
        columns[f"{name} least"].append(min(values))


def main() -> None:
    """Print the table of captures and the summary."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "--view",
        choices=("classes", "binary"),
        default="classes",
        help="what the cap keeps 1000 flows of, and the head's classes",
    )
    given = arguments.parse_args()
    torch.set_num_threads(1)
    say = Progress()
    outcomes: dict[str, dict[str, list[Outcome]]] = defaultdict(lambda: defaultdict(list))
    for seed in range(given.seeds):
        for method, found in one_seed(bench_of(given.data, seed, view=given.view), say).items():
            for capture, outcome in found.items():
                outcomes[method][capture].append(outcome)
    print(captures_table(outcomes, ("gsfs", "forest")))
    print(
        f"\nMean ± sd over {given.seeds} seeds, view {given.view}. Mean, median and least are "
        "over captures; pooled counts every flow once.\n"
    )
    print(summary_table(outcomes))
    say("done")


if __name__ == "__main__":
    main()
