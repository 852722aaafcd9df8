"""Sensing where sites are alike: does anybody stay silent, and does silence cost anything?

    python benchmarks/fleet.py --data IOT23 [--seeds 3] [--clients 100] [--late 0.9]

IoT-23's training flows dealt out to many clients, at random or skewed by class (Dirichlet). GSFS
as it is (``floor=0.1``: a site whose flows the global head explains says nothing) against everyone
always sending (``floor=0``), for several quorums, since nobody can be silent about a model that was
not yet published. ``silent`` is how many clients never sent. ``--late 0.9``: only a tenth of the
clients is there at the start, the others come one by one within a virtual minute, as in a fleet
that grows.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import torch

from gradsense.config import settings
from gradsense.experiments.bench import Bench, set_up
from gradsense.experiments.corpus import load_corpus
from shared import Progress, finished, parser, spread, table

SHARES = (0.1, 0.3, 0.5)
FLOORS = (0.0, 0.1)
PARTITIONS: dict[str, dict[str, Any]] = {
    "iid": {"partition": "iid"},
    "Dirichlet 0.5": {"partition": "dirichlet", "alpha": 0.5},
}


def measure(bench: Bench) -> dict[str, float]:
    """One run's figures by column."""
    run = finished(bench)
    simulator = run.simulator
    spoke = {mark.client for mark in simulator.uploads}
    last = run.curve[-1]
    return {
        "silent": len(simulator.clients) - len(spoke),
        "uploads": simulator.meter.uploads,
        "uplink, MB": simulator.meter.uplink_bytes / 1e6,
        "downlink, MB": simulator.meter.downlink_bytes / 1e6,
        "aggregations": simulator.meter.aggregations,
        "accuracy": last.accuracy,
        "macro-F1": last.f1_macro,
        "virtual s": simulator.now,
    }


_DECIMALS = {"accuracy": 4, "macro-F1": 3, "silent": 0, "uploads": 0}


def _cell(column: str, values: list[float]) -> str:
    return spread(values, f"{{:.{_DECIMALS.get(column, 1)}f}}".format)


def main() -> None:
    """Print the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--clients", type=int, default=100)
    arguments.add_argument("--late", type=float, default=0.0, help="share that comes later")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    say = Progress()
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed, (name, values) in itertools.product(range(given.seeds), PARTITIONS.items()):
        # As many rounds as clients: no run ends while somebody still has something to say.
        base = settings(
            data=given.data,
            seed=seed,
            clients=given.clients,
            late=given.late,
            rounds=given.clients,
            **values,
        )
        corpus = load_corpus(base)
        for share, floor in itertools.product(SHARES, FLOORS):
            spec = f"gsfs:share={share}:floor={floor}"
            bench = set_up(base.model_copy(update={"algorithm": spec}), corpus)
            for column, value in measure(bench).items():
                found[name, spec][column].append(value)
            say(f"seed {seed}: {name}, {spec}")
    columns = list(next(iter(found.values())))
    rows = [
        [f"{name}, `{spec}`", *(_cell(column, values[column]) for column in columns)]
        for partition in PARTITIONS
        for (name, spec), values in found.items()
        if name == partition
    ]
    print(table(["fleet", *columns], rows))


if __name__ == "__main__":
    main()
