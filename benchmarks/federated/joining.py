"""Joining: does a site that has never seen an attack recognise it once it is in the fleet?

    python -m benchmarks.federated.joining --data IOT23 [--seeds 3]

For every site and every malicious class that the site's training flows lack: the test flows of that
class at other sites, judged by the site alone (ridge on its own moments) and by the fleet's global
head after a normal GSFS run, in which the site labels nothing that it did not label before. Alone
it cannot name a class that it has never seen, so recall before joining is zero by construction, not
by measurement; what it can do is call the flow malicious by some other name. Both are reported:
``named``, the right class, and ``flagged``, any malicious class, both as macro means over the
classes that the site has never seen. ``alarms``, the share of other sites' benign test flows called
malicious, says what flagging is worth: a site that calls everything unfamiliar malicious flags all.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.shared import (
    Progress,
    bench_of,
    features,
    finished,
    parser,
    spread,
    table,
    train_sets,
    upload,
)
from gradsense.data.datasets.iot23 import BENIGN
from gradsense.experiments.bench import Bench
from gradsense.experiments.table import human_bytes
from gradsense.federation.algorithms.gsfs import RidgeSum
from gradsense.learning.learner import Tensors
from gradsense.learning.statistics import HEAD_BIAS, HEAD_WEIGHT, solve


@dataclass
class Site:
    """One site's figures, a value for each seed, and the classes that it lacked in any."""

    unseen: set[str] = field(default_factory=set)
    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    sent: list[float] = field(default_factory=list)
    received: list[float] = field(default_factory=list)


def fleet(bench: Bench) -> tuple[Tensors, dict[str, int], float]:
    """The global head after a normal run, bytes sent by site, and bytes received by each."""
    run = finished(bench)
    sent: dict[str, int] = defaultdict(int)
    for mark in run.simulator.uploads:
        sent[mark.client] += mark.bytes
    received = run.simulator.meter.downlink_bytes / len(bench.learners)
    return run.final(), sent, received


def verdicts(
    prompts: NDArray[np.float64], weight: NDArray[np.floating], bias: NDArray[np.floating]
) -> NDArray[np.int64]:
    """Class numbers of the distinct prompts."""
    return np.asarray(np.argmax(prompts @ weight.T + bias, axis=1), np.int64)


def measure(bench: Bench, sites: dict[str, Site]) -> None:
    """Add one seed's figures."""
    classes = bench.corpus.classes
    benign = classes.index(BENIGN)
    prompts, index = features(bench, bench.test), bench.test.index.numpy()
    labels = bench.test.labels.numpy()
    places = bench.corpus.parts.test["client"].to_numpy()
    head, sent, received = fleet(bench)
    after = verdicts(prompts, head[HEAD_WEIGHT], head[HEAD_BIAS])[index]
    for name, own in train_sets(bench).items():
        factor, _ = upload(bench, own, np.arange(len(own)))
        alone = solve(factor.T @ factor, len(classes), RidgeSum().regularisation)
        before = verdicts(prompts, *alone)[index]
        here = places == name
        seen = set(own.labels.tolist())
        unseen = {
            number: ~here & (labels == number)
            for number in range(len(classes))
            if number not in seen | {benign} and (~here & (labels == number)).any()
        }
        site = sites[name]
        site.unseen |= {classes[number] for number in unseen}
        for when, predicted in (("before", before), ("after", after)):
            named = [float((predicted[rows] == number).mean()) for number, rows in unseen.items()]
            flagged = [float((predicted[rows] != benign).mean()) for rows in unseen.values()]
            site.values[f"named {when}"].append(statistics.fmean(named))
            site.values[f"flagged {when}"].append(statistics.fmean(flagged))
            calm = ~here & (labels == benign)
            site.values[f"alarms {when}"].append(float((predicted[calm] != benign).mean()))
            if here.any():
                right = float((predicted[here] == labels[here]).mean())
                site.values[f"own accuracy {when}"].append(right)
        site.values["unseen"].append(len(unseen))
        site.sent.append(sent[name])
        site.received.append(received)


_COLUMNS = [
    f"{what} {when}"
    for what in ("named", "flagged", "alarms", "own accuracy")
    for when in ("before", "after")
]


def sites_table(sites: dict[str, Site]) -> str:
    """A line for each site, then the mean over sites."""
    rows = []
    for name, site in sites.items():
        cells = [spread(site.values[key]) if site.values[key] else "none" for key in _COLUMNS]
        unseen = f"{statistics.fmean(site.values['unseen']):.1f}".removesuffix(".0")
        bytes_ = [human_bytes(statistics.fmean(one)) for one in (site.sent, site.received)]
        rows.append([name, unseen, *cells, *bytes_])
    means = [spread(_over_sites(sites, key)) for key in _COLUMNS]
    every = list(sites.values())
    unseen = f"{statistics.fmean(v for s in every for v in s.values['unseen']):.1f}"
    bytes_ = [
        human_bytes(statistics.fmean(v for s in every for v in getattr(s, key)))
        for key in ("sent", "received")
    ]
    rows.append(["mean over sites", unseen, *means, *bytes_])
    return table(["site", "never seen", *_COLUMNS, "sent", "received"], rows)


def _over_sites(sites: dict[str, Site], key: str) -> Sequence[float]:
    """The mean over sites within each seed; a site without the figure is not in it."""
    columns = [site.values[key] for site in sites.values() if site.values[key]]
    seeds = max(map(len, columns))
    return [statistics.fmean(c[seed] for c in columns if seed < len(c)) for seed in range(seeds)]


def run(data: Path, seeds: int) -> dict[str, Site]:
    """All seeds."""
    say = Progress()
    sites: dict[str, Site] = defaultdict(Site)
    for seed in range(seeds):
        measure(bench_of(data, seed), sites)
        say(f"seed {seed}")
    return dict(sorted(sites.items()))


def main() -> None:
    """Print the table."""
    given = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    print(sites_table(run(given.data, given.seeds)))


if __name__ == "__main__":
    main()
