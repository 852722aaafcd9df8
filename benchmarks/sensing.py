"""Sensing itself: which statistic, known to a site, predicts that its upload helps?

    python benchmarks/sensing.py --data PATH [--seeds 3] [--rounds 8] [--orders 2]
        [--judge test] [--plot PNG]

Two settings. Deltas: plain FedAvg, in which every site trains and uploads in every round; an
upload is as useful as the new global model gets worse when it is left out of the round's weighted
mean. Moments: sites of ``gsfs`` speak one after another in random orders; before each step, each
site that is still silent is as useful as the global head gets better when it is added.

What gets better or worse is the cross-entropy of the pooled validation flows. A site senses with
its own flows only; its validation flows are among the pooled ones, and ``--judge test`` shows what
becomes of the numbers on flows that nobody has seen. Every trigger runs with its algorithm's values
and its own state, and decides nothing here: everybody uploads, so that silence can be judged too.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch.nn import functional

from gradsense.config import RunSettings, settings
from gradsense.experiments.bench import Bench, set_up
from gradsense.experiments.corpus import examples, load_corpus
from gradsense.federation.algorithm import get_algorithm
from gradsense.federation.algorithms.gsfs import RidgeSum
from gradsense.federation.parts import Gradient, Performance, Sensed, State, Unexplained
from gradsense.federation.transforms import codecs
from gradsense.learning.learner import Tensors
from gradsense.learning.statistics import STATISTICS, relative_gradients, solve
from gradsense.learning.trainer import Examples, Trainer

Vector = NDArray[np.float64]

MEAN, MACRO, ERROR = "mean cross-entropy", "macro cross-entropy", "macro error"


@dataclass(frozen=True)
class Upload:
    """One possible upload: what the site could sense, and what it was good for.

    Attributes:
        seed: of the run.
        group: uploads that compete with each other: a round, or a step of one order.
        shade: for the plot: the round, or how many sites have spoken before.
        statistics: name to value.
        sends: trigger to its decision.
        usefulness: measure to how much worse the global model is without this upload.
    """

    seed: int
    group: int
    shade: int
    statistics: Mapping[str, float]
    sends: Mapping[str, bool]
    usefulness: Mapping[str, float]


def losses(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Cross-entropy in nats over flows and over classes, and the mean error rate of the classes."""
    each = functional.cross_entropy(logits, labels, reduction="none").double()
    wrong = (logits.argmax(dim=1) != labels).double()
    present = [labels == label for label in labels.unique()]
    return {
        MEAN: float(each.mean()),
        MACRO: float(np.mean([float(each[own].mean()) for own in present])),
        ERROR: float(np.mean([float(wrong[own].mean()) for own in present])),
    }


def fall(worse: Mapping[str, float], better: Mapping[str, float]) -> dict[str, float]:
    """By how much each loss falls from the one to the other."""
    return {measure: worse[measure] - better[measure] for measure in worse}


# Deltas -----------------------------------------------------------------------------------------


def flatten(tensors: Tensors) -> Vector:
    """All values in one vector."""
    return np.concatenate([tensor.ravel() for tensor in tensors.values()]).astype(np.float64)


def unflatten(vector: Vector, like: Tensors) -> Tensors:
    """The tensors again."""
    ends = np.cumsum([tensor.size for tensor in like.values()])
    parts = np.split(vector.astype(np.float32), ends[:-1])
    return {name: part.reshape(like[name].shape) for name, part in zip(like, parts, strict=True)}


def cosine(one: Vector, other: Vector) -> float:
    """cos of the angle between two movements."""
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


class Senses:
    """The paper's two triggers as one site runs them, and the values behind the decisions."""

    def __init__(self) -> None:
        self.performance, self.gradient = Performance(), Gradient()
        self.moved: State = self.performance.init()
        self.usual: State = self.gradient.init()

    def look(
        self, before: float, after: float, norms: Mapping[str, float]
    ) -> tuple[dict[str, float], dict[str, bool]]:
        """Statistics and decisions of one visit.

        Args:
            before, after: M(θ_ref; D_k^val) and M(θ_k; D_k^val), in nats.
            norms: layer to ‖g‖.
        """
        seen = Sensed(norms, after, rounds=1)
        self.moved = self.performance.reset(self.moved, before)
        threshold = self.moved["delta"]
        self.moved, by_performance = self.performance.sense(self.moved, seen)
        self.usual, by_gradient = self.gradient.sense(self.usual, seen)
        ratio = max(
            norm / (self.usual[f"mu:{layer}"] + self.gradient.beta * self.usual[f"sigma:{layer}"])
            for layer, norm in norms.items()
        )
        moved = abs(after - before)
        loud = by_performance.reason is not None, by_gradient.reason is not None
        return (
            {
                "eq 7: ΔM": moved,
                "eq 9-11: ‖g‖ / δ": ratio,
                "union: max of ΔM / δ, ‖g‖ / δ": max(moved / threshold, ratio),
            },
            {"eq 7-8": loud[0], "eq 9-11": loud[1], "their union": any(loud)},
        )


def of_deltas(run: RunSettings, rounds: int, judges: str) -> Iterator[Upload]:
    """Train with FedAvg and judge every upload from the second round on.

    The first round only fills the histories that eq 9-11 and the cosine compare with.
    """
    corpus = load_corpus(run)
    bench = set_up(run, corpus)
    trainer, codec = bench.trainer, codecs()["int8"]
    judged = examples(getattr(corpus.parts, judges), corpus, trainer.classifier)

    def judge(tensors: Tensors) -> dict[str, float]:
        trainer.load(tensors)
        return losses(trainer.logits(judged)[judged.index], judged.labels)

    samples = np.array([learner.samples for learner in bench.learners.values()], dtype=np.float64)
    weights = samples / samples.sum()
    senses = {name: Senses() for name in bench.learners}
    model, last = bench.initial, None
    for number in range(1, rounds + 1):
        start = flatten(model)
        moves, seen = [], []
        for name, learner in bench.learners.items():
            steps = learner.steps_per_epoch
            before = learner.score(model)
            trained = learner.train(model, first_step=(number - 1) * steps, steps=steps)
            after = learner.score(trained.tensors)
            statistics, sends = senses[name].look(before, after, trained.gradient_norms)
            move = flatten(trained.tensors) - start
            size = len(codec.pack(unflatten(move, model)))
            statistics |= {
                "update norm ‖Δθ‖": float(np.linalg.norm(move)),
                "cosine with the last global move": math.nan
                if last is None
                else cosine(move, last),
                "ΔM per byte": abs(after - before) / size,
                "held-out gain per byte": (before - after) / size,
                "flows of the site": float(learner.samples),
            }
            moves.append(move)
            seen.append((statistics, sends))
        last = weights @ np.stack(moves)
        whole = judge(unflatten(start + last, model))
        if number > 1:
            for move, weight, (statistics, sends) in zip(moves, weights, seen, strict=True):
                rest = (last - weight * move) / (1 - weight)
                useful = fall(judge(unflatten(start + rest, model)), whole)
                yield Upload(run.seed, number, number, statistics, sends, useful)
        model = unflatten(start + last, model)


# Moments ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """A site of ``gsfs`` whose flows were read once: the base is frozen, only the head changes.

    Attributes:
        moments: S as the cloud gets it, [d + 1 + classes, d + 1 + classes].
        size: bytes of the packed factor.
        features, labels, counts: of each distinct (prompt, label), [n, d + 1], [n], [n].
        held_out, held_out_labels: of each own validation flow.
        flows: |D_k|.
    """

    moments: Vector
    size: int
    features: Vector
    labels: NDArray[np.int64]
    counts: Vector
    held_out: Vector
    held_out_labels: torch.Tensor
    flows: int


def features_of(trainer: Trainer, some: Examples) -> Vector:
    """What the head reads of the distinct prompts, and the constant, [distinct, d + 1]."""
    with torch.inference_mode():
        states = trainer.classifier.features(some.encoded, torch.arange(len(some.encoded)))
    return np.hstack([states.double().numpy(), np.ones((len(states), 1))])


def read_site(bench: Bench, name: str) -> Site:
    """One site's flows, as a ``Client`` would report them in one message."""
    learner, trainer = bench.learners[name], bench.trainer
    algorithm = get_algorithm("gsfs")
    seen = learner.observe(
        bench.initial, first_step=0, steps=learner.steps_per_epoch, tolerance=algorithm.tolerance
    )
    codec = codecs()[algorithm.codec]
    packed = codec.pack({STATISTICS: seen.factor})
    factor = codec.unpack(packed)[STATISTICS].astype(np.float64)
    own, held_out = learner.train_set, learner.validation_set
    pairs, counts = torch.unique(torch.stack((own.index, own.labels)), dim=1, return_counts=True)
    return Site(
        moments=factor.T @ factor,
        size=len(packed),
        features=features_of(trainer, own)[pairs[0].numpy()],
        labels=pairs[1].numpy(),
        counts=counts.double().numpy(),
        held_out=features_of(trainer, held_out)[held_out.index.numpy()],
        held_out_labels=held_out.labels,
        flows=learner.samples,
    )


def of_moments(run: RunSettings, orders: int, judges: str) -> Iterator[Upload]:
    """Let sites speak in random orders and judge every silent one before each step.

    The first step is not judged: to an untrained head all flows of all sites are equally new.
    """
    corpus = load_corpus(run)
    bench = set_up(run, corpus)
    algorithm = get_algorithm("gsfs")
    rule, trigger = algorithm.rule, algorithm.trigger
    assert isinstance(rule, RidgeSum)
    assert isinstance(trigger, Unexplained)
    classes = len(corpus.classes)
    sites = [read_site(bench, name) for name in bench.learners]
    judged = examples(getattr(corpus.parts, judges), corpus, bench.trainer.classifier)
    pooled = features_of(bench.trainer, judged)[judged.index.numpy()]

    def head_of(moments: Vector) -> Vector:
        weight, bias = solve(moments, classes, rule.regularisation)
        return rule.sharpness * np.vstack([weight.T, bias])

    def judge(head: Vector) -> dict[str, float]:
        return losses(torch.from_numpy(pooled @ head), judged.labels)

    def own_loss(site: Site, head: Vector) -> float:
        return losses(torch.from_numpy(site.held_out @ head), site.held_out_labels)[MEAN]

    alone = [own_loss(site, head_of(site.moments)) for site in sites]
    rng = np.random.default_rng([run.seed, 77])
    for number in range(orders):
        silent = rng.permutation(len(sites)).tolist()
        moments = np.zeros_like(sites[0].moments)
        while len(silent) > 2:  # one alone competes with nobody
            moments = moments + sites[silent.pop(0)].moments
            head = head_of(moments)
            present, spoken = judge(head), len(sites) - len(silent)
            for place in silent:
                site = sites[place]
                p = torch.softmax(torch.from_numpy(site.features @ head), dim=1).numpy()
                missed = p - np.eye(classes)[site.labels]
                pull = (site.features * site.counts[:, None]).T @ missed
                norms = relative_gradients(site.features, p, site.labels, site.counts)
                loud = trigger.sense({}, Sensed({str(c): n for c, n in norms.items()}, None, 1))
                before = own_loss(site, head)
                yield Upload(
                    run.seed,
                    number * len(sites) + spoken,
                    spoken,
                    {
                        "gsfs: loudest class": max(norms.values()),
                        "loudest class per byte": max(norms.values()) / site.size,
                        "gradient norm, all flows": float(np.linalg.norm(pull)),
                        "own validation loss M": before,
                        "eq 7: ΔM to the own head": abs(before - alone[place]),
                        "held-out gain per byte": (before - alone[place]) / site.size,
                        "update norm ‖S‖": float(np.linalg.norm(site.moments)),
                        "flows of the site": float(site.flows),
                    },
                    {f"gsfs: above {trigger.floor:g}": loud[1].reason is not None},
                    fall(present, judge(head_of(moments + site.moments))),
                )


# What predicts ----------------------------------------------------------------------------------


def spearman(one: Vector, other: Vector) -> float:
    """Rank correlation; nan where either is constant."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def auroc(statistic: Vector, useful: NDArray[np.bool_]) -> float:
    """Probability that a useful upload has the larger statistic than another one; ties half."""
    hits = int(useful.sum())
    rest = len(useful) - hits
    if not hits or not rest:
        return math.nan
    return float((rankdata(statistic)[useful].sum() - hits * (hits + 1) / 2) / (hits * rest))


def groups(uploads: Sequence[Upload]) -> list[NDArray[np.int64]]:
    """Places of the uploads that compete with each other."""
    keys = np.array([(upload.seed, upload.group) for upload in uploads])
    _, place = np.unique(keys, axis=0, return_inverse=True)
    return [np.flatnonzero(place.ravel() == number) for number in range(place.max() + 1)]


def kept(statistic: Vector, useful: Vector, together: Sequence[NDArray[np.int64]]) -> float:
    """Share of all positive usefulness in each group's upper half by the statistic."""
    gains = np.maximum(useful, 0)
    upper = [
        own[np.argsort(-statistic[own], kind="stable")][: -(-len(own) // 2)] for own in together
    ]
    return float(gains[np.concatenate(upper)].sum() / gains.sum())


def kept_at(statistic: Vector, useful: Vector, sent: int) -> float:
    """Share of all positive usefulness in the ``sent`` uploads that one threshold would let by."""
    gains = np.maximum(useful, 0)
    return float(gains[np.argsort(-statistic, kind="stable")[:sent]].sum() / gains.sum())


def values(uploads: Sequence[Upload], statistic: str) -> Vector:
    """One statistic of all uploads."""
    return np.array([upload.statistics[statistic] for upload in uploads])


def worth(uploads: Sequence[Upload], measure: str) -> Vector:
    """One measure of usefulness of all uploads."""
    return np.array([upload.usefulness[measure] for upload in uploads])


def within(statistic: Vector, useful: Vector, together: Sequence[NDArray[np.int64]]) -> float:
    """Rank correlation inside each group, averaged over the groups where it exists."""
    found = [spearman(statistic[own], useful[own]) for own in together]
    known = [value for value in found if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def table(uploads: Sequence[Upload], measure: str, group: str) -> Iterator[str]:
    """Every statistic against one measure of usefulness, in Markdown.

    The last column sends as much as the last trigger does, so that it can be compared with it.
    """
    useful, together = worth(uploads, measure), groups(uploads)
    seeds = np.array([upload.seed for upload in uploads])
    # A random half keeps this much: the halves of odd groups are rounded up.
    gains = np.maximum(useful, 0)
    half = sum(gains[own].sum() * -(-len(own) // 2) / len(own) for own in together) / gains.sum()
    yield (
        f"Usefulness by {measure}: {len(uploads):,} uploads, {np.mean(useful > 0):.0%} of them "
        f"useful. The better half of each {group} holds {kept(useful, useful, together):.0%} of "
        f"all positive usefulness, a random half {half:.0%}."
    )
    yield ""
    trigger = list(uploads[0].sends)[-1]
    sent = sum(upload.sends[trigger] for upload in uploads)
    yield (
        f"| statistic | ρ, all (by seed) | ρ within a {group} | AUROC, useful "
        f"| upper half of a {group} keeps | upper {sent / len(uploads):.0%} of all keeps |"
    )
    yield "|---|---|---|---|---|---|"
    for name in uploads[0].statistics:
        statistic = values(uploads, name)
        by_seed = [spearman(statistic[seeds == s], useful[seeds == s]) for s in np.unique(seeds)]
        yield (
            f"| {name} | {spearman(statistic, useful):+.2f} "
            f"({min(by_seed):+.2f} to {max(by_seed):+.2f}) "
            f"| {within(statistic, useful, together):+.2f} "
            f"| {auroc(statistic, useful > 0):.2f} | {kept(statistic, useful, together):.0%} "
            f"| {kept_at(statistic, useful, sent):.0%} |"
        )
    yield ""


def decisions(uploads: Sequence[Upload], measure: str) -> Iterator[str]:
    """What each trigger would have sent and withheld, in Markdown."""
    useful = worth(uploads, measure)
    gains = np.maximum(useful, 0)
    yield f"Decisions, usefulness by {measure}:"
    yield ""
    yield "| trigger | sends | useful among sent | useful among silent | usefulness sent |"
    yield "|---|---|---|---|---|"
    for name in uploads[0].sends:
        sent = np.array([upload.sends[name] for upload in uploads])
        parts = [
            f"{np.mean(useful[some] > 0):.0%}" if some.any() else "-" for some in (sent, ~sent)
        ]
        yield (
            f"| {name} | {sent.mean():.0%} | {parts[0]} | {parts[1]} "
            f"| {gains[sent].sum() / gains.sum():.0%} |"
        )
    yield ""


# The picture ------------------------------------------------------------------------------------

_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#b8bec8",
    "axes.labelcolor": "#4b5360",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e9ecf0",
    "xtick.color": "#b8bec8",
    "ytick.color": "#b8bec8",
    "xtick.labelcolor": "#4b5360",
    "ytick.labelcolor": "#4b5360",
}


@dataclass(frozen=True)
class Panel:
    """One scatter plot.

    Attributes:
        statistic: its name in the table.
        title: with the unit.
        factor: from the statistic to the unit.
        scale: of the axis, matplotlib's name.
        threshold: above it the trigger sends; None where no trigger reads this statistic so.
    """

    statistic: str
    title: str
    factor: float = 1.0
    scale: str = "log"
    threshold: float | None = None


_DELTAS = (
    Panel("eq 7: ΔM", "eq 7: ΔM, nats"),
    Panel("eq 9-11: ‖g‖ / δ", "eq 9-11: ‖g‖ / δ", threshold=1),
    Panel("union: max of ΔM / δ, ‖g‖ / δ", "union: value / δ", threshold=1),
    Panel("update norm ‖Δθ‖", "update norm ‖Δθ‖", scale="linear"),
    Panel("cosine with the last global move", "cos, last global move", scale="linear"),
    Panel("held-out gain per byte", "gain, nats per MB", 1e6, "symlog"),
)
_MOMENTS = (
    Panel(
        "gsfs: loudest class", "gsfs: loudest class", scale="linear", threshold=Unexplained().floor
    ),
    Panel("gradient norm, all flows", "gradient, all flows"),
    Panel("own validation loss M", "own loss M, nats"),
    Panel("eq 7: ΔM to the own head", "eq 7: ΔM, nats"),
    Panel("update norm ‖S‖", "update norm ‖S‖"),
    Panel("held-out gain per byte", "gain, nats per MB", 1e6, "symlog"),
)


def scatter(axes: Axes, uploads: Sequence[Upload], panel: Panel, group: str) -> PathCollection:
    """Usefulness against one statistic."""
    x, y = values(uploads, panel.statistic) * panel.factor, worth(uploads, MACRO)
    shades = [upload.shade for upload in uploads]
    size = 10 if len(uploads) < 500 else 6
    dots = axes.scatter(x, y, c=shades, cmap="viridis_r", s=size, alpha=0.7, linewidths=0)
    axes.axhline(0, color="#8a93a0", linewidth=0.9)
    if panel.threshold is not None:
        axes.axvline(panel.threshold, color="#c8321f", linewidth=1.1, linestyle=(0, (4, 2)))
    # Near zero the sign matters, far away the order of magnitude does.
    axes.set_yscale("symlog", linthresh=float(np.quantile(np.abs(y), 0.5)))
    if panel.scale == "symlog":
        axes.set_xscale("symlog", linthresh=1)
        axes.xaxis.set_major_locator(FixedLocator([-100, -1, 0, 1, 100]))
    elif panel.scale == "log":
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=3))
    axes.xaxis.set_minor_locator(NullLocator())
    inside = within(x, y, groups(uploads))
    axes.set_title(
        f"{panel.title}\nρ {spearman(x, y):+.2f}, in a {group} {inside:+.2f}",
        loc="left",
        fontsize=9,
    )
    axes.tick_params(length=0, labelsize=8)
    return dots


def draw(deltas: Sequence[Upload], moments: Sequence[Upload], path: Path) -> None:
    """Write the picture: a row of panels for each setting."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(12, 6.4), layout="constrained", dpi=150, facecolor="white")
        rows = figure.subfigures(2, 1, hspace=0.04)
        for part, uploads, panels, title, group, legend in (
            (
                rows[0],
                deltas,
                _DELTAS,
                "FedAvg: every site, every round (dashed: the trigger sends above it)",
                "round",
                "round",
            ),
            (
                rows[1],
                moments,
                _MOMENTS,
                "Moments (gsfs): every silent site before every step",
                "step",
                "sites heard before",
            ),
        ):
            part.suptitle(title, x=0.005, ha="left", fontsize=11, fontweight="bold")
            row = part.subplots(1, len(panels), sharey=True)
            for axes, panel in zip(row, panels, strict=True):
                dots = scatter(axes, uploads, panel, group)
            row[0].set_ylabel("usefulness, nats\n(macro cross-entropy)")
            part.colorbar(dots, ax=row, label=legend, pad=0.01, aspect=30).outline.set_visible(
                False
            )
        figure.savefig(path)


# ------------------------------------------------------------------------------------------------


def collect(name: str, seeds: int, uploads_of: Callable[[int], Iterator[Upload]]) -> list[Upload]:
    """All seeds' uploads; progress goes to stderr."""
    found: list[Upload] = []
    for seed in range(seeds):
        began = time.perf_counter()
        found += uploads_of(seed)
        print(f"{name}, seed {seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return found


def main() -> None:
    """Print the tables; draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of captures; synthetic without it")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=8, help="of FedAvg, at least 2")
    parser.add_argument("--orders", type=int, default=2, help="orders of speaking, each seed")
    parser.add_argument(
        "--judge", choices=("validation", "test"), default="validation", help="whose loss counts"
    )
    parser.add_argument("--plot", type=Path, help="where to write the picture, a PNG")
    arguments = parser.parse_args()
    began = time.perf_counter()

    def run(algorithm: str, seed: int) -> RunSettings:
        return settings(data=arguments.data, model=arguments.model, algorithm=algorithm, seed=seed)

    judge = arguments.judge
    deltas = collect(
        "deltas",
        arguments.seeds,
        lambda seed: of_deltas(run("fedavg", seed), arguments.rounds, judge),
    )
    moments = collect(
        "statistics",
        arguments.seeds,
        lambda seed: of_moments(run("gsfs", seed), arguments.orders, judge),
    )
    for title, uploads, group, measures in (
        ("Deltas (FedAvg)", deltas, "round", (MEAN, MACRO)),
        ("Moments (gsfs)", moments, "step", (MACRO, ERROR)),
    ):
        print(f"## {title}\n")
        for measure in measures:
            print("\n".join(table(uploads, measure, group)))
        print("\n".join(decisions(uploads, MACRO)))
    if arguments.plot is not None:
        draw(deltas, moments, arguments.plot)
    print(f"wall time {time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
