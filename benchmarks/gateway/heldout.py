"""Networks that the model never saw: what it rings for there, and what calibration changes.

    python -m benchmarks.gateway.heldout --data ZEEK --iot23 IOT23 [--seeds 3] [--model EDGE ...]

ZEEK is a folder with the logs of ``LABELLED`` and ``UNLABELLED``; every model is trained on IoT-23
alone (``gsfs``; bundles given with ``--model`` are taken instead, one for each seed from 0). Of a
labelled log the first half of its benign flows, in the order of the log, is what the operator holds
to be benign: thresholds and habits come from it. Every labelled flow after the last of them is
judged, never one of them; flows without a label are judged and not counted.

``as exported`` is the bundle as training left it. ``calibrated`` has the alarm threshold of
``gradsense calibrate``. ``+ Novel`` adds the gateway's second rule: new to the device's habits and
novel to the model. ``own network told`` does what ``networks`` in the gateway's settings
does: it takes the network's public addresses for private ones; without it nothing is local here.
Alerts are counted by the gateway's own grouping.

Peers: the random forest of ``gradsense compare`` on the same IoT-23 training flows with context,
its threshold from IoT-23's validation flows or calibrated as above; an isolation forest (Liu et
al. 2008) grown on every other of the calibration flows, its threshold from those between. ``began
outside`` rings for every flow whose originator is not in the own network, and learns nothing.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.gateway.heldout_methods import (
    NETWORKS,
    Forest,
    Network,
    Outcome,
    Scores,
    above,
    began_outside,
    by_gateway,
    habit_scores,
    isolation,
    model_scores,
    network,
    plain,
    trained,
    with_thresholds,
)
from benchmarks.shared import Progress, bench_of, parser, spread, table
from gradsense.data.datasets.iot23 import BENIGN, MALICIOUS
from gradsense.detection.detector import Detector
from gradsense.gateway.alerting.alert import Example
from gradsense.gateway.alerting.grouping import Alarm, Grouper, LogClock
from gradsense.gateway.settings import Settings
from gradsense.learning.alarms import threshold_for

LABELLED = {"008": "008-zeek-mixed_conn.log.labeled", "011": "011-zeek-mixed_conn.log.labeled"}
UNLABELLED = {"scan": "002-port-scanning_conn.json.log", "home": "home_conn.json.log"}


def alerts(outcome: Outcome, rows: Iterable[int]) -> list[str]:
    """The alert that each of these ringing rows goes to, by its id."""
    told, clock, ids = Settings(), LogClock(), list[str]()
    grouper = Grouper("", "", window_s=told.window_s, max_s=told.max_s, explain=lambda prompt: ())
    for row in rows:
        flow = outcome.site.judged.row(row, named=True)
        alarm = Alarm(
            device=NETWORKS.device(flow["orig_h"], flow["resp_h"]),
            peer=NETWORKS.peer(flow["orig_h"], flow["resp_h"]),
            label=outcome.labels[row],
            clock=clock.advance(flow["ts"] + (flow["duration"] or 0.0)),
            ts=flow["ts"],
            port=flow["resp_p"],
            probability=1.0,
            novelty=None,
            prompt=b"",
            example=partial(_example, flow),
        )
        grouper.add([alarm])
        ids.append(grouper.changed()[-1].id)
    return ids


def figures(outcome: Outcome) -> dict[str, float]:
    """Precision, recall, F1, share of false alarms, alerts, and those without an attack."""
    truth = outcome.site.judged["class"].fill_null("").to_numpy()
    malicious, benign = truth == MALICIOUS, truth == BENIGN
    hits, false = int((outcome.rings & malicious).sum()), int((outcome.rings & benign).sum())
    recall = hits / malicious.sum()
    precision = hits / (hits + false) if hits + false else 0.0
    both = precision + recall
    counted = np.flatnonzero(outcome.rings & (malicious | benign))
    ids = np.array(alerts(outcome, counted.tolist()), dtype=object)
    return {
        "precision": precision,
        "recall": recall,
        "F1": 2 * precision * recall / both if both else 0.0,
        "false alarms": false / benign.sum(),
        "alerts": len(set(ids)),
        "false alerts": len(set(ids) - set(ids[malicious[counted]])),
    }


def _example(flow: dict[str, Any]) -> Example:
    return Example(log="", **{name: flow[name] for name in Example.model_fields if name != "log"})


def labelled(site: Network, edge: Path, forest: Forest, seed: int) -> dict[str, Outcome]:
    """Every method's outcome on a labelled network."""
    told, found = site.told(), dict[str, Outcome]()
    with tempfile.TemporaryDirectory() as scratch:
        for place, suffix in ((site, ""), (told, ", own network told")):
            folder = Path(scratch, suffix or "as is")
            folder.mkdir()
            exported = Detector.load(edge, threads=1)
            kept = with_thresholds(edge, place, folder)
            found[f"gsfs, as exported{suffix}"] = by_gateway(exported, place)
            found[f"gsfs, calibrated{suffix}"] = by_gateway(kept, place)
            found[f"gsfs, calibrated + Novel{suffix}"] = by_gateway(kept, place, habits=True)
        both = with_thresholds(edge, told, folder, novelty="calibrated")
        found["the same, novelty calibrated too"] = by_gateway(both, told, habits=True)
        alone = with_thresholds(edge, told, folder, novelty="off")
        found["the same, habits alone decide"] = by_gateway(alone, told, habits=True)
    suspicion = forest.suspicion(site.flows)
    found["forest, as trained"] = plain(site, suspicion[site.after] > forest.threshold)
    found["forest, calibrated"] = above(suspicion, site.benign, site)
    found["isolation forest"] = above(*isolation(site, seed), site)
    found["began outside, own network told"] = plain(told, began_outside(told)[told.after])
    return found


def quiet_or_not(
    site: Network, calm: Network, edge: Path, forest: Forest
) -> dict[str, tuple[int, Outcome]]:
    """Outcomes on a network without labels, and how many flows each judged.

    Args:
        site: the network.
        calm: whose first half calibrates; the network itself, or another one.
    """
    whole = site if site is calm else _whole(site)
    suspicion, quiet = forest.suspicion(calm.flows)[calm.benign], forest.suspicion(whole.judged)
    threshold = threshold_for(suspicion)
    with tempfile.TemporaryDirectory() as scratch:
        kept = with_thresholds(edge, calm, Path(scratch))
        found = {
            "gsfs, as exported": by_gateway(Detector.load(edge, threads=1), whole),
            "gsfs, calibrated": by_gateway(kept, whole),
            "forest, as trained": plain(whole, quiet > forest.threshold),
            "forest, calibrated": plain(whole, quiet > threshold),
        }
        if site is calm:
            found["gsfs, calibrated + Novel"] = by_gateway(kept, whole, habits=True)
    return {name: (len(whole.after), outcome) for name, outcome in found.items()}


def _whole(site: Network) -> Network:
    """All flows to be judged."""
    return Network(site.name, site.flows, site.benign[:0], np.arange(len(site.flows)))


def curves(site: Network, edge: Path, forest: Forest, seed: int) -> dict[str, Scores]:
    """Scores of all flows, whatever the threshold."""
    detector, told = Detector.load(edge, threads=1, cache=0), site.told()
    return {
        "gsfs, suspicion": model_scores(detector, site),
        "gsfs, suspicion, own network told": model_scores(detector, told),
        "device's habits, own network told": habit_scores(detector, told),
        "forest": forest.suspicion(site.flows),
        "isolation forest": isolation(site, seed)[0],
    }


# Tables --------------------------------------------------------------------------------------


def percent(value: float) -> str:
    """With two digits where it is small."""
    return f"{100 * value:.2f}" if value < 0.02 else f"{100 * value:.1f}"


Measured = dict[str, dict[str, list[float]]]  # method, then figure, by seed
Drawn = dict[str, list[tuple[Network, dict[str, Scores]]]]  # network, by seed, then method
Runs = list[tuple[int, int, int, str]]  # flows, alarms, alerts, most frequent labels, by seed


def results_table(found: Measured) -> str:
    """A line for each method."""
    lines = []
    for method, by_figure in found.items():
        cells = [
            spread(values, "{:.0f}".format if "alerts" in name else percent)
            for name, values in by_figure.items()
        ]
        lines.append([method, *cells])
    names = next(iter(found.values()))
    return table(["", *(name if "alerts" in name else f"{name}, %" for name in names)], lines)


def ranking_table(drawn: Drawn) -> str:
    """AUROC of each score, a column for each network."""
    rows = []
    for method in next(iter(drawn.values()))[0][1]:
        cells = []
        for seeds in drawn.values():
            values = []
            for site, scores in seeds:
                truth = site.judged["class"].fill_null("").to_numpy()
                known = truth != ""
                attack = truth[known] == MALICIOUS
                values.append(float(roc_auc_score(attack, scores[method][site.after][known])))
            cells.append(spread(values))
        rows.append([method, *cells])
    return table(["AUROC", *drawn], rows)


def unlabelled_table(found: dict[str, dict[str, Runs]]) -> str:
    """Flows judged, alarms, alerts and what for, by network and method."""
    rows = []
    for name, by_method in found.items():
        for method, runs in by_method.items():
            flows, alarms, opened, _ = zip(*runs, strict=True)
            share = spread([a / f for a, f in zip(alarms, flows, strict=True)], percent)
            cells = [str(flows[0]), share, spread(opened, "{:.0f}".format), runs[0][3]]
            rows.append([f"{name}: {method}", *cells])
    return table(["", "flows", "ring, %", "alerts", "what for, first seed"], rows)


def summed(outcome: Outcome) -> tuple[int, str]:
    """Alerts, and the most frequent labels."""
    rows = np.flatnonzero(outcome.rings).tolist()
    common = Counter(outcome.labels[row] for row in rows).most_common(3)
    return len(set(alerts(outcome, rows))), ", ".join(f"{name} {n}" for name, n in common)


def main() -> None:
    """Print the tables."""
    arguments = parser(__doc__)
    arguments.add_argument("--iot23", type=Path, required=True, help="folder of IoT-23 captures")
    arguments.add_argument("--model", type=Path, action="append", help="a bundle for each seed")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    say: Callable[[str], None] = Progress()
    sites = [network(k, given.data / v, labelled=True) for k, v in LABELLED.items()]
    scan, home = (network(k, given.data / v, labelled=False) for k, v in UNLABELLED.items())
    measured: dict[str, Measured] = {site.name: {} for site in sites}
    drawn: Drawn = defaultdict(list)
    others: dict[str, dict[str, Runs]] = {"scan": {}, "home": {}}
    for seed in range(len(given.model) if given.model else given.seeds):
        bench = bench_of(given.iot23, seed)
        forest = Forest.grow(bench)
        with tempfile.TemporaryDirectory() as scratch:
            edge = given.model[seed] if given.model else trained(bench, Path(scratch, "run"))
            say(f"seed {seed}: forest and model")
            for site in sites:
                outcomes = labelled(site, edge, forest, seed)
                for method, outcome in outcomes.items():
                    by_figure = measured[site.name].setdefault(method, defaultdict(list))
                    for name, value in figures(outcome).items():
                        by_figure[name].append(value)
                drawn[site.name].append((site, curves(site, edge, forest, seed)))
                say(f"seed {seed}: {site.name}")
            for site in (scan, home):
                for method, (flows, outcome) in quiet_or_not(site, home, edge, forest).items():
                    opened, common = summed(outcome)
                    runs = others[site.name].setdefault(method, [])
                    runs.append((flows, int(outcome.rings.sum()), opened, common))
    for site in sites:
        counts = Counter(site.judged["class"].fill_null("unlabelled").to_list())
        print(f"\n{site.name}: {len(site.benign)} flows to calibrate on; judged: {dict(counts)}\n")
        print(results_table(measured[site.name]))
    print(f"\n{ranking_table(drawn)}")
    print("\nWithout labels; the scan is judged with the thresholds of the home:\n")
    print(unlabelled_table(others))
    say("done")


if __name__ == "__main__":
    main()
