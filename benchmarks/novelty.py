"""Novelty: is traffic of a class that no site has seen told from traffic that the fleet knows?

    python benchmarks/novelty.py --data IOT23 [--seeds 3] [--plot novelty.svg]

Each class with 20 test flows in turn is held out: its training flows are removed from every site
before the moments are computed (the base was never trained on real traffic at all). The test flows
of that class are then to score higher than the other test flows, and, in the second table, higher
than the benign ones. "All malware" holds out everything but Benign. AUROC: 0.5 is a coin, 1 is
perfect. The third table is what an operator sees: the share of the held-out class that is caught
when the threshold lets 5 % of all other test flows through. No prompt is in both training and test.
Moments travel as in a real run (truncated, int8). ``residual`` is ``influence`` without its factor
``leverage``; where one class is left the head is constant and it means nothing.

Peers read the raw flow fields that the random forest reads, from all sites pooled in one place:
an isolation forest (Liu et al. 2008), the distance to the nearest training flow and the local
outlier factor (Breunig et al. 2000), the last two on logarithms, standardised, categories one-hot,
because distances need that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import polars as pl
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.preprocessing import StandardScaler

from gradsense.data.datasets.iot23 import BENIGN
from gradsense.data.flows import CONTEXT_SCHEMA
from gradsense.experiments.bench import Bench
from gradsense.experiments.forest import _CATEGORIES, _NUMBERS, _codes, _features
from gradsense.learning.novelty import influence, leverage, perplexity, token_surprise
from gradsense.learning.pretraining import pretrain
from gradsense.models.build import build
from gradsense.prompts.templates import get_template
from shared import Progress, bench_of, features, parser, spread, table, train_sets, upload

FEWEST = 20
ALARMS = 0.05
ALL = "All malware"
_NAMES = (*_NUMBERS, *CONTEXT_SCHEMA)
_TREES = 200

#: The rows of the tables in order, and what the plot shows of them.
PLOTTED = ("influence", "leverage", "perplexity", "isolation forest", "nearest neighbour")

Scores = dict[str, NDArray[np.float64]]


def fleet_moments(bench: Bench, kept: frozenset[int]) -> NDArray[np.float64]:
    """S of all sites' training flows of these classes, as the cloud would hold it."""
    total: NDArray[np.float64] | None = None
    for flows in train_sets(bench).values():
        rows = np.flatnonzero(np.isin(flows.labels.numpy(), list(kept)))
        if len(rows):
            factor, _ = upload(bench, flows, rows)
            total = factor.T @ factor if total is None else total + factor.T @ factor
    assert total is not None
    return total


def adapted(bench: Bench, texts: list[str], epochs: int) -> NDArray[np.float64]:
    """Surprise of the test prompts after the base has read these texts without their labels."""
    run = bench.settings
    classifier = build(
        run.model,
        template=get_template(run.template),
        labels=bench.corpus.classes,
        seed=run.seed,
    )
    pretrain(classifier, texts, epochs=epochs, seed=run.seed, lr=1e-3)
    return token_surprise(classifier, bench.test.encoded)


def peers(train: pl.DataFrame, test: pl.DataFrame, seed: int) -> Scores:
    """Detectors on raw fields; the training flows without the held-out class."""
    codes = {name: _codes(train[name]) for name in _CATEGORIES}
    known, new = _features(train, _NAMES, codes), _features(test, _NAMES, codes)
    forest = IsolationForest(n_estimators=_TREES, random_state=seed).fit(known)
    numbers = len(_NAMES)
    scale = StandardScaler().fit(_logarithms(known[:, :numbers]))

    def scaled(flows: NDArray[np.float32]) -> NDArray[np.float64]:
        parts = [scale.transform(_logarithms(flows[:, :numbers]))]
        for place, values in enumerate(codes.values()):
            parts.append(flows[:, numbers + place, None] == np.array(list(values.values())))
        return np.hstack(parts).astype(np.float64)

    distinct, queries = np.unique(scaled(known), axis=0), scaled(new)
    nearest = NearestNeighbors(n_neighbors=1).fit(distinct)
    outlier = LocalOutlierFactor(novelty=True).fit(distinct)
    return {
        "isolation forest": -forest.score_samples(new),
        "nearest neighbour": nearest.kneighbors(queries)[0][:, 0],
        "local outlier factor": -outlier.score_samples(queries),
    }


def _logarithms(values: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.sign(values) * np.log1p(np.abs(values.astype(np.float64)))


def scores_without(bench: Bench, kept: frozenset[int], epochs: int) -> Scores:
    """Every method's score of every test flow, where the fleet has seen these classes only."""
    parts, classes = bench.corpus.parts, bench.corpus.classes
    train = parts.train.filter(pl.col("class").is_in([classes[number] for number in kept]))
    known, prompts = fleet_moments(bench, kept), features(bench, bench.test)
    surprise = adapted(bench, train["text"].unique(maintain_order=True).to_list(), epochs)
    both, span = influence(prompts, known), leverage(prompts, known)
    by_prompt = {
        "influence": both,
        "leverage": span,
        "residual": both / span,
        "perplexity": perplexity(bench.trainer.classifier, bench.test.encoded),
        "perplexity, worst token": token_surprise(bench.trainer.classifier, bench.test.encoded).max(
            axis=1
        ),
        "perplexity, adapted": surprise.mean(axis=1),
        "perplexity, adapted, worst token": surprise.max(axis=1),
    }
    index = bench.test.index.numpy()
    return {name: score[index] for name, score in by_prompt.items()} | peers(
        train, parts.test, bench.settings.seed
    )


def _nested() -> dict[str, dict[str, list[float]]]:
    return defaultdict(lambda: defaultdict(list))


Table = Mapping[str, Mapping[str, Sequence[float]]]  # method, then class, to figures by seed


@dataclass
class Found:
    """What ``measure`` found: three tables, and test flows of classes judged and left out."""

    rest: dict[str, dict[str, list[float]]] = field(default_factory=_nested)
    benign: dict[str, dict[str, list[float]]] = field(default_factory=_nested)
    caught: dict[str, dict[str, list[float]]] = field(default_factory=_nested)
    judged: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    left_out: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))


def measure(data: Path, seeds: int, epochs: int, say: Callable[[str], None]) -> Found:
    """Hold out every class in turn, for every seed."""
    found = Found()
    for seed in range(seeds):
        bench = bench_of(data, seed)
        classes, labels = bench.corpus.classes, bench.test.labels.numpy()
        everything = frozenset(range(len(classes)))
        held_out = {name: frozenset({n}) for n, name in enumerate(classes) if name != BENIGN}
        held_out[ALL] = everything - {classes.index(BENIGN)}
        for name, gone in held_out.items():
            new = np.isin(labels, list(gone))
            if new.sum() < FEWEST:
                found.left_out[name].append(int(new.sum()))
                continue
            found.judged[name].append(int(new.sum()))
            among = new | (labels == classes.index(BENIGN))
            for method, score in scores_without(bench, everything - gone, epochs).items():
                found.rest[method][name].append(float(roc_auc_score(new, score)))
                found.benign[method][name].append(float(roc_auc_score(new[among], score[among])))
                threshold = np.quantile(score[~new], 1 - ALARMS)
                found.caught[method][name].append(float((score[new] > threshold).mean()))
            say(f"seed {seed}: {name}")
    return found


def rows_of(found: Table, classes: Sequence[str]) -> list[list[str]]:
    """A line for each method: mean ± sd by class, then the mean and the least over classes."""
    lines = []
    for method, by_class in found.items():
        single = [float(np.mean(by_class[name])) for name in classes if name != ALL]
        cells = [spread(by_class[name]) for name in classes]
        lines.append([method, *cells, f"{np.mean(single):.3f}", f"{min(single):.3f}"])
    return lines


def plot(found: Table, classes: Sequence[str], path: Path) -> None:
    """A horizontal dot plot: a line for each class, a dot for each method, bars of one sd."""
    style = {"svg.fonttype": "none", "svg.hashsalt": "gradsense", "font.size": 10}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7.4, 0.9 + 0.6 * len(classes)), layout="constrained")
        axes = figure.subplots()
        colours = ("#0b6e4f", "#1f77b4", "#d17a00", "#8a8a8a", "#4a4a4a")
        for place, (method, colour, marker) in enumerate(
            zip(PLOTTED, colours, "osD^v", strict=True)
        ):
            values = [found[method][name] for name in classes]
            axes.errorbar(
                [float(np.mean(one)) for one in values],
                [row + 0.14 * (place - 2) for row in range(len(classes))],
                xerr=[float(np.std(one, ddof=1)) if len(one) > 1 else 0.0 for one in values],
                fmt=marker,
                color=colour,
                markersize=5.5,
                linewidth=1.2,
                label=method,
            )
        axes.axvline(0.5, color="#8a8a8a", linewidth=0.8, linestyle="--")
        axes.set_yticks(range(len(classes)), classes)
        axes.set_ylim(len(classes) - 0.5, -0.5)
        for row in range(1, len(classes)):
            axes.axhline(row - 0.5, color="#dddddd", linewidth=0.8)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("AUROC of the held-out class against all other test flows")
        axes.grid(axis="x", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper center", ncols=len(PLOTTED), frameon=False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=160)


def main() -> None:
    """Print the tables; draw the first where a path is given."""
    arguments = parser(__doc__)
    arguments.add_argument("--epochs", type=int, default=5, help="of adapting the base")
    arguments.add_argument("--plot", type=Path, help="SVG or PNG to write")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    say = Progress()
    found = measure(given.data, given.seeds, given.epochs, say)
    judged, left_out = found.judged, found.left_out
    # A class must be judged with every seed to have a place in the tables.
    classes = [name for name, flows in judged.items() if len(flows) == given.seeds]
    for name in set(judged) - set(classes):
        left_out[name] += judged[name]
    for title, values in (
        ("AUROC of the held-out class against all other test flows", found.rest),
        ("AUROC of the held-out class against benign test flows only", found.benign),
        (f"Share caught at {ALARMS:.0%} alarms among all other test flows", found.caught),
    ):
        print(f"{title}:\n")
        print(table(["", *classes, "mean", "least"], rows_of(values, classes)), end="\n\n")
    print("Test flows:", ", ".join(f"{name} {np.mean(judged[name]):.0f}" for name in classes))
    few = ", ".join(f"{name} ({max(flows)})" for name, flows in left_out.items())
    print(f"Left out with fewer than {FEWEST} test flows: {few or 'none'}")
    print("Mean and least are over single classes, without the column on all malware.")
    if given.plot is not None:
        plot(found.rest, classes, given.plot)
    say("done")


if __name__ == "__main__":
    main()
