"""Poisoning: what can enrolled devices that lie do to the fleet's model?

    python -m benchmarks.federated.poisoning --data IOT23 [--seeds 3] [--only gsfs] [--jobs 4]

Nine attacks (``poisoning_fleet``) by 1, 3 and 6 of IoT-23's 19 sites, which see very different
things, and by 10 and 30 of 100 sites that share them (Dirichlet 0.5). All attackers of a fleet do
the same. Scores are over the test flows of the sites that do not attack, and beside them those of
a fleet in which the attackers never spoke: what an attack costs is the difference of the two.

``before`` takes what a device sends as it comes. The others are what a coordinator does now: an
update is refused where its structure or its norm is impossible, and a device counts for no more
flows than most of them have. ``watched`` adds a person who revokes whom ``fleet status`` shows.

fedavg trains the same head over the same frozen base, 40 rounds of one epoch (AdamW, 1e-3, batches
of 32): a whole base trained by every site for every attack would take days.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.federated.poisoning_fleet import ATTACKS, Fleet, fleet_of
from benchmarks.federated.poisoning_methods import METHODS, run
from benchmarks.shared import Progress, parser, table

#: Of how many sites so many attack.
ATTACKERS = ((19, 1), (19, 3), (19, 6), (100, 10), (100, 30))
#: Which sites attack is drawn so many times a seed; of a single one every site is tried.
DRAWS = {(19, 3): 3, (19, 6): 3, (100, 10): 1, (100, 30): 1}


@dataclass(frozen=True)
class Case:
    """One run: these attackers of this fleet. Without an attack the attackers never speak."""

    method: str
    sites: int
    seed: int
    attackers: tuple[str, ...]
    attack: str | None


@dataclass(frozen=True)
class Outcome:
    """A case and its figures.

    Attributes:
        accuracy, recall, alarms: over the test flows of the others: right verdicts, malicious
            flows not called Benign, benign flows called malicious.
        backdoor: malicious test flows with the trigger that are called Benign.
        refused: attackers whose update the coordinator refused.
        out, wronged: attackers and honest sites that were left out.
        rank: the share of attackers among as many sites with the highest contradictions.
    """

    case: Case
    accuracy: float
    recall: float
    alarms: float
    backdoor: float
    refused: int = 0
    out: int = 0
    wronged: int = 0
    rank: float = float("nan")
    scores: dict[str, float] = field(default_factory=dict)


def cases(data: Path, seeds: int, only: str | None, fleets: str | None) -> Iterator[Case]:
    """Every run that the tables need."""
    for seed in range(seeds):
        for sites, number in ATTACKERS:
            if fleets and str(sites) not in fleets.split(","):
                continue
            names = sorted(fleet_of(data, sites, seed).sites)
            rng = np.random.default_rng([seed, number])
            draws = [
                tuple(sorted(rng.choice(names, number, replace=False)))
                for _ in range(DRAWS.get((sites, number), 0))
            ] or [(name,) for name in names]
            for method in METHODS:
                if only and not method.startswith(only):
                    continue
                some = (
                    draws
                    if method in ("gsfs", "gsfs, watched")
                    else draws[:: 5 if number == 1 else 2]
                )
                for attackers in some:
                    for attack in (None, *ATTACKS):
                        yield Case(method, sites, seed, tuple(map(str, attackers)), attack)


def measured(case: Case, data: Path) -> Outcome:
    """Run one case."""
    torch.set_num_threads(1)
    fleet = fleet_of(data, case.sites, case.seed)
    made = run(METHODS[case.method], fleet, set(case.attackers), case.attack, case.seed)
    scores = judged(fleet, made.weight, made.bias, set(case.attackers))
    ranked = sorted(made.contradictions, key=lambda site: -made.contradictions[site])
    top = ranked[: len(case.attackers)]
    return Outcome(
        case,
        **scores,
        refused=made.refused,
        out=len(set(made.out) & set(case.attackers)),
        wronged=len(set(made.out) - set(case.attackers)),
        rank=len(set(top) & set(case.attackers)) / len(top) if top else float("nan"),
        scores={site: round(made.contradictions[site], 4) for site in ranked[:6]},
    )


def judged(fleet: Fleet, weight: Any, bias: Any, attackers: set[str]) -> dict[str, float]:
    """The scores of a head."""
    verdicts = (fleet.test @ weight.T + bias).argmax(axis=1)[fleet.rows]
    honest = ~np.isin(fleet.owners, list(attackers))
    verdicts, labels = verdicts[honest], fleet.labels[honest]
    attacks = labels != fleet.benign
    opened = (fleet.test_triggered @ weight.T + bias).argmax(axis=1) == fleet.benign
    return {
        "accuracy": float((verdicts == labels).mean()),
        "recall": float((verdicts[attacks] != fleet.benign).mean()),
        "alarms": float((verdicts[~attacks] != fleet.benign).mean()),
        "backdoor": float(opened.mean()),
    }


# Tables -------------------------------------------------------------------------------------


def tables(outcomes: list[Outcome]) -> str:
    """For each method: cost in points of accuracy and recall, by attack and number."""
    found: dict[str, dict[tuple[str | None, int, int], list[Outcome]]] = defaultdict(
        lambda: defaultdict(list)
    )
    absent: dict[tuple[str, int, tuple[str, ...]], Outcome] = {}
    for one in outcomes:
        case = one.case
        key = (case.attack, case.sites, len(case.attackers))
        found[case.method][key].append(one)
        if case.attack is None:
            absent[case.method, case.seed, case.attackers] = one
    parts = []
    for method, by_key in found.items():
        columns = [column for column in ATTACKERS if (None, *column) in by_key]
        head = [method]
        for sites, number in columns:
            head += [f"{number} of {sites}", *(["worst"] if number == 1 else [])]
        rows = [_row("attackers absent", by_key, columns, None)]
        rows += [_row(attack, by_key, columns, absent) for attack in ATTACKS]
        parts.append(table(head, rows))
    return "\n\n".join(parts)


def _row(
    attack: str,
    by_key: Mapping[tuple[str | None, int, int], list[Outcome]],
    columns: list[tuple[int, int]],
    absent: Mapping[tuple[str, int, tuple[str, ...]], Outcome] | None,
) -> list[str]:
    """Costs in points; of the absent, the scores themselves."""
    cells = [attack]
    for sites, number in columns:
        runs = by_key[attack if absent is not None else None, sites, number]
        base = [
            absent[run.case.method, run.case.seed, run.case.attackers] if absent else None
            for run in runs
        ]
        pairs = [
            (100 * (b.accuracy - r.accuracy), 100 * (b.recall - r.recall))
            if b
            else (r.accuracy, r.recall)
            for r, b in zip(runs, base, strict=True)
        ]
        write = "{:.1f} / {:.1f}" if absent else "{:.3f} / {:.3f}"
        cell = write.format(*(statistics.fmean(column) for column in zip(*pairs, strict=True)))
        if attack == "backdoor":
            cell += f", {statistics.fmean(run.backdoor for run in runs):.0%}"
        if absent and all(run.refused == number for run in runs):
            cell = "refused"
        cells.append(cell)
        if number == 1:
            worst = max if absent else min
            cells.append(write.format(*(worst(column) for column in zip(*pairs, strict=True))))
    return cells


def main() -> None:
    """Print the tables; ``--json`` keeps every run."""
    arguments = parser(__doc__)
    arguments.add_argument("--only", help="methods that start so")
    arguments.add_argument("--fleets", help="19, 100 or both, with a comma")
    arguments.add_argument("--jobs", type=int, default=1, help="processes")
    arguments.add_argument("--json", type=Path, help="a file that every run is written to")
    arguments.add_argument("--read", type=Path, nargs="*", help="such files: print their tables")
    given = arguments.parse_args()
    say = Progress()
    if given.read:
        lines = [line for path in given.read for line in path.read_text().splitlines()]
        values = [json.loads(line) for line in lines]
        outcomes = [
            Outcome(Case(**{**v["case"], "attackers": tuple(v["case"]["attackers"])}), **rest)
            for v in values
            for rest in [{k: v[k] for k in v if k != "case"}]
        ]
        print(tables(outcomes))
        return
    todo = list(cases(given.data, given.seeds, given.only, given.fleets))
    say(f"{len(todo)} runs")
    outcomes = []
    with ProcessPoolExecutor(given.jobs) as pool:
        for done in pool.map(partial(measured, data=given.data), todo, chunksize=10):
            outcomes.append(done)
            if given.json:
                with given.json.open("a") as file:
                    file.write(json.dumps(asdict(done)) + "\n")
            if len(outcomes) % 50 == 0:
                say(f"{len(outcomes)} of {len(todo)}")
    print(tables(outcomes), file=sys.stdout)


if __name__ == "__main__":
    main()
