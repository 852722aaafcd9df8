"""Key findings in words, computed from the rows. A sentence appears only when it is true."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from gradsense.experiments.results import Point, Row
from gradsense.experiments.table import Stat, by_algorithm, human_bytes, human_seconds, stat

#: The algorithm that savings are measured against, as in the paper.
BASELINE = "fedavg"
#: The references' names, as ``compare`` writes them.
CENTRALISED, LOCAL_ONLY = "centralised", "local-only"


def findings(rows: Sequence[Row]) -> list[str]:
    """What the rows show, most important first, one sentence or two each.

    Differences smaller than the two spreads together are called so, and costs are only compared
    where the quality is the same or better.
    """
    groups = by_algorithm(rows)
    federated = {name: group for name, group in groups.items() if group[0].kind == "federated"}
    found = [
        _best(federated),
        _bytes_saved(federated),
        _time_saved(federated),
        _gap(federated, groups.get(CENTRALISED)),
        _federation_helps(federated, groups.get(LOCAL_ONLY)),
        _never_learned(federated),
        _refused(federated),
    ]
    return [sentence for sentence in found if sentence is not None]


def _f1(row: Row) -> float | None:
    return None if row.central is None else row.central.f1_macro


def _seeds(rows: Sequence[Row]) -> set[int]:
    return {row.seed for row in rows}


def _ranked(
    groups: dict[str, list[Row]], get: Callable[[Row], float | None]
) -> list[tuple[str, Stat]]:
    """Algorithms with a value, from the highest mean to the lowest."""
    found = [
        (name, value)
        for name, group in groups.items()
        if (value := stat(get(row) for row in group)) is not None
    ]
    return sorted(found, key=lambda one: -one[1].mean)


def _pm(value: Stat) -> str:
    return f"{value.mean:.3f}" + (
        "" if value.spread is None else f"\u00a0±\u00a0{value.spread:.3f}"
    )


def _within_spread(one: Stat, other: Stat) -> bool:
    return abs(one.mean - other.mean) <= (one.spread or 0.0) + (other.spread or 0.0)


def _best(federated: dict[str, list[Row]]) -> str | None:
    ranked = _ranked(federated, _f1)
    if len(ranked) < 2:
        return None
    (best, first), (second, next_) = ranked[:2]
    if _pm(first) == _pm(next_):
        return f"{best} and {second} have equally good global models by macro-F1: {_pm(first)}."
    text = (
        f"{best} has the best global model by macro-F1: {_pm(first)}, "
        f"ahead of {second} with {_pm(next_)}."
    )
    if first.spread is None:
        return f"{text} One seed only: the order may be chance."
    if _within_spread(first, next_):
        return f"{text} The difference is within the spread over seeds."
    return text


def _bytes_saved(federated: dict[str, list[Row]]) -> str | None:
    savers, missed = _savers(federated, lambda point: point.uplink_bytes)
    sentences = []
    if savers:
        share, name, ours, theirs = savers[0]
        several = len(_seeds(federated[name]) & _seeds(federated[BASELINE])) > 1
        sentences.append(
            f"With {human_bytes(ours)} of uplink {name} first reaches {BASELINE}'s final "
            f"macro-F1, {BASELINE} itself with {human_bytes(theirs)}: {share:.0%} less, "
            f"{'in the mean over seeds' if several else 'with one seed'}."
        )
    if len(savers) > 1:
        rest = ", ".join(f"{name} {share:.0%}" for share, name, *_ in savers[1:])
        sentences.append(f"By the same measure: {rest} less.")
    if missed:
        several = len(_seeds(federated[BASELINE])) > 1
        sentences.append(
            f"Not {'in every seed ' if several else ''}as good as {BASELINE} ends, at any cost: "
            f"{', '.join(missed)}."
        )
    return " ".join(sentences) or None


def _time_saved(federated: dict[str, list[Row]]) -> str | None:
    savers, _ = _savers(federated, lambda point: point.virtual_s)
    if not savers:
        return None
    _, name, ours, theirs = savers[0]
    return (
        f"{name} first reaches {BASELINE}'s final macro-F1 after {human_seconds(ours)} of virtual "
        f"time, {BASELINE} itself after {human_seconds(theirs)}: {theirs / ours:.1f} times sooner."
    )


def _savers(
    federated: dict[str, list[Row]], cost: Callable[[Point], float]
) -> tuple[list[tuple[float, str, float, float]], list[str]]:
    """Who reaches the baseline's final macro-F1 at less cost than itself, best first, as (share
    saved, name, cost, baseline's cost) in the mean over seeds; and who does not in every seed."""
    base = {row.seed: row for row in federated.get(BASELINE, []) if row.curve}
    savers, missed = [], []
    for name, group in federated.items():
        pairs = [(row, base[row.seed]) for row in group if row.seed in base]
        if name == BASELINE or not pairs:
            continue
        spent = [one for row, other in pairs if (one := to_reach(row, other, cost)) is not None]
        if len(spent) < len(pairs):
            missed.append(name)
            continue
        ours, theirs = (statistics.fmean(side) for side in zip(*spent, strict=True))
        if 0 < ours < theirs:
            savers.append((1 - ours / theirs, name, ours, theirs))
    return sorted(savers, reverse=True), missed


def to_reach(row: Row, base: Row, cost: Callable[[Point], float]) -> tuple[float, float] | None:
    """What ``row`` and ``base`` spent when they first reach base's final macro-F1; None if row
    never does.

    Both are measured at their first time there, because a curve that swings may pass its own end
    early.
    """
    target = base.curve[-1].f1_macro
    ours = next((cost(point) for point in row.curve if point.f1_macro >= target), None)
    theirs = next(cost(point) for point in base.curve if point.f1_macro >= target)
    return None if ours is None else (ours, theirs)


def _gap(federated: dict[str, list[Row]], centralised: list[Row] | None) -> str | None:
    ranked = _ranked(federated, _f1)
    top = stat(_f1(row) for row in centralised or [])
    if not ranked or top is None:
        return None
    best, value = ranked[0]
    gap = top.mean - value.mean
    return (
        f"The same model trained on all flows in one place reaches a macro-F1 of {_pm(top)}; "
        f"{best} is {abs(gap):.3f} {'below' if gap > 0 else 'above'} that without moving a flow."
    )


def _federation_helps(federated: dict[str, list[Row]], alone: list[Row] | None) -> str | None:
    def accuracy(row: Row) -> float | None:
        return None if row.clients is None else row.clients.accuracy

    ranked = _ranked(federated, accuracy)
    local = stat(accuracy(row) for row in alone or [])
    if not ranked or local is None:
        return None
    best, value = ranked[0]
    if value.mean <= local.mean or _within_spread(value, local):
        return (
            f"On traffic of all sites, clients of {best} ({_pm(value)} accuracy) are not clearly "
            f"better than sites that train alone ({_pm(local)})."
        )
    return (
        f"On traffic of all sites, clients of {best} reach an accuracy of {_pm(value)}; sites "
        f"that train alone reach {_pm(local)}."
    )


def _never_learned(federated: dict[str, list[Row]]) -> str | None:
    f1: dict[str, float] = {}
    for group in federated.values():
        for row in group:
            for name, score in row.per_class.items():
                if score.support > 0:
                    f1[name] = max(score.f1, f1.get(name, 0.0))
    missed = sorted(name for name, best in f1.items() if best == 0.0)
    if not missed:
        return None
    return (
        f"No federated algorithm recognises a single flow of {', '.join(missed)}: "
        "F1 is 0 in every run."
    )


def _refused(federated: dict[str, list[Row]]) -> str | None:
    refused = sum(sum(row.refused.values()) for group in federated.values() for row in group)
    if refused == 0:
        return None
    return f"{refused:,} updates were refused; the reasons are listed under 'Uploads'."
