"""The table of strategies. A new strategy is a new row.

``get_strategy("gsfs:floor=0.3:deadline_s=60")`` takes a row and changes named values
anywhere inside it, so that the effect of one switch can be measured without new code.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gradsense.errors import InputError
from gradsense.federation.aggregate import (
    Aggregator,
    FrequencyMean,
    Kind,
    ServerOptimizer,
    StalenessMean,
    WeightedMean,
)
from gradsense.federation.codec import CODECS
from gradsense.federation.least_squares import LeastSquares
from gradsense.federation.pool import AllInvited, Count, Pool, Quorum
from gradsense.federation.scaffold import ControlledMean
from gradsense.federation.trigger import (
    AnyOf,
    EveryRound,
    Gradient,
    Performance,
    Silence,
    Trigger,
    Unexplained,
)

Payload = Literal["deltas", "moments"]
Readout = Literal["last", "pooled", "tokens"]


@dataclass(frozen=True)
class Strategy:
    """Trigger × pool × aggregator, and what a client does at the two ends of a broadcast.

    Attributes:
        name: what people call it, with any changed values.
        summary: one line for tables and ``--help``.
        trigger, pool, aggregator: the three columns.
        wait: after an upload, rest until the next global model instead of training on. A small
            or fast site would otherwise spend its whole budget on a model that is about to change.
        partial: upload only the layers that triggered; the rest stays on the client and grows.
        codec: how this strategy's updates become bytes; a name of ``codec.CODECS``.
        proximal: μ of FedProx (Li et al. 2020, arXiv 1812.06127): each local step is also drawn
            back by μ (θ − θ_start).
        controls: clients correct their steps by control variates, as SCAFFOLD does.
        payload: what an update carries: the ``deltas`` of trained weights, or the ``moments`` of
            flows that were only read (``learning.moments``).
        tolerance: of ``moments.factorise``; moments only.
        readout: what the head reads of a prompt (``models.readout``): the ``last`` token's state,
            as the paper has it, or more.
        frozen: train the head only, on the base as it came. Moments need that: they are of
            features that nobody changes.
        keep_local: put the client's unsent movement on top of a new global model. False
            overwrites it, as eq 15 does.
    """

    name: str
    summary: str
    trigger: Trigger
    pool: Pool
    aggregator: Aggregator
    wait: bool = True
    partial: bool = False
    keep_local: bool = False
    codec: str = "none"
    proximal: float = 0.0
    controls: bool = False
    payload: Payload = "deltas"
    tolerance: float = 0.0
    readout: Readout = "last"
    frozen: bool = False


_SENSING = (Performance(), Gradient())

_ROWS = (
    Strategy(
        "fedavg",
        "everyone trains, then the mean weighted by samples (eq 1-2)",
        EveryRound(),
        AllInvited(),
        WeightedMean(),
    ),
    Strategy(
        "fedprox",
        "as FedAvg, local steps drawn back to the global model",
        EveryRound(),
        AllInvited(),
        WeightedMean(),
        proximal=0.01,
    ),
    Strategy(
        "scaffold",
        "as FedAvg, local steps corrected by control variates; twice the bytes",
        EveryRound(),
        AllInvited(),
        ControlledMean(),
        controls=True,
    ),
    Strategy(
        "fedavgm",
        "as FedAvg, with momentum on the server",
        EveryRound(),
        AllInvited(),
        WeightedMean(momentum=0.5),
    ),
    Strategy(
        "fedopt",
        "as FedAvg, with Adam on the server (eq 3-6)",
        EveryRound(),
        AllInvited(),
        ServerOptimizer("adam"),
    ),
    Strategy(
        "fedadam",
        "FedOpt, by the name that says which optimizer it is",
        EveryRound(),
        AllInvited(),
        ServerOptimizer("adam"),
    ),
    Strategy(
        "fedyogi",
        "as FedAvg, with Yogi on the server (eq 3-6)",
        EveryRound(),
        AllInvited(),
        ServerOptimizer("yogi"),
    ),
    Strategy(
        "fedadagrad",
        "as FedAvg, with Adagrad on the server (eq 3-6)",
        EveryRound(),
        AllInvited(),
        ServerOptimizer("adagrad"),
    ),
    Strategy(
        "fedbuff",
        "whoever is done uploads; mean of every 10 updates, stale ones discounted",
        EveryRound(),
        Count(10),
        StalenessMean(),
    ),
    Strategy(
        "gsfs-paper",
        "gradient sensing exactly as the paper has it (eq 7-15)",
        AnyOf(_SENSING),
        Quorum(0.6),
        FrequencyMean(),
        wait=False,
    ),
    Strategy(
        "gsfs-tune",
        "trains the whole model; sensing with a deadline, bounded weights, partial uploads",
        AnyOf((*_SENSING, Silence(3))),
        Quorum(0.8, deadline_s=30.0),
        FrequencyMean(
            samples_power=0.5,
            frequency_power=0.5,
            frequency_bound=2.0,
            staleness_exponent=0.5,
            full_step_share=0.8,
        ),
        partial=True,
        keep_local=True,
    ),
    Strategy(
        "gsfs",
        "sites that sense something new send its moments once; the cloud solves for the head",
        Unexplained(),
        Quorum(0.3, deadline_s=2.0),
        LeastSquares(),
        payload="moments",
        tolerance=0.005,
        readout="tokens",
        frozen=True,
        codec="uniform",
    ),
)

#: Every strategy by name.
STRATEGIES: dict[str, Strategy] = {row.name: row for row in _ROWS}


def _replace(value: Any, key: str, new: object) -> tuple[Any, int]:
    """``value`` with every dataclass field called ``key`` set to ``new``, and how many were."""
    if isinstance(value, tuple):
        pairs = [_replace(item, key, new) for item in value]
        return tuple(item for item, _ in pairs), sum(count for _, count in pairs)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value, 0
    changes, total = {}, 0
    for field in dataclasses.fields(value):
        if field.name == key:
            changes[key], count = new, 1
        else:
            changes[field.name], count = _replace(getattr(value, field.name), key, new)
        total += count
    return dataclasses.replace(value, **changes), total


def _same_kind(old: object, new: object) -> bool:
    numbers = (int, float)
    if isinstance(old, bool) or isinstance(new, bool):
        return isinstance(old, bool) and isinstance(new, bool)
    if old is None or new is None:
        return isinstance(old, (*numbers, type(None))) and isinstance(new, (*numbers, type(None)))
    if isinstance(old, numbers):
        return isinstance(new, numbers)
    return isinstance(new, type(old))


#: Least and greatest value of what a spec may change; what is not here may be any number >= 0.
_BOUNDS: dict[str, tuple[float, float]] = {
    "alpha": (0.0, 1.0),
    "momentum": (0.0, 1.0),
    "beta1": (0.0, 1.0),
    "beta2": (0.0, 1.0),
    "share": (0.0, 1.0),
    "full_step_share": (0.0, 1.0),
    "tolerance": (0.0, 0.999),
    "regularisation": (1e-12, math.inf),
    "sharpness": (1e-3, math.inf),
    "epsilon": (1e-12, math.inf),
    "frequency_bound": (1.0, math.inf),
    "updates": (1.0, math.inf),
    "visits": (1.0, math.inf),
}
#: What a row of the other payload is not asked about.
_IDLE = {"moments": ("keep_local", "partial", "proximal"), "deltas": ("tolerance",)}
#: What a row is, not how it is set.
_FIXED = ("name", "summary", "payload", "controls", "synchronous", "needs_score")
_CHOICES = {
    "kind": get_args(Kind),
    "codec": tuple(CODECS),
    "readout": get_args(Readout),
}


def _in_range(key: str, new: object) -> bool:
    if isinstance(new, str):
        return new in _CHOICES.get(key, ())
    if new is None or isinstance(new, bool):
        return True
    least, greatest = _BOUNDS.get(key, (0.0, math.inf))
    return isinstance(new, int | float) and math.isfinite(new) and least <= new <= greatest


def _range(key: str) -> str:
    """The mend's second half: what the bounds are."""
    if key in _CHOICES:
        return f", one of {', '.join(_CHOICES[key])}"
    least, greatest = _BOUNDS.get(key, (0.0, math.inf))
    return f", at least {least:g}" + (f", at most {greatest:g}" if greatest < math.inf else "")


def _find(value: Any, key: str) -> list[object]:
    """The values of every dataclass field called ``key`` inside ``value``."""
    if isinstance(value, tuple):
        return [found for item in value for found in _find(item, key)]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return []
    found: list[object] = []
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        found += [inner] if field.name == key else _find(inner, key)
    return found


def get_strategy(spec: str) -> Strategy:
    """The strategy that ``name`` or ``name:key=value:key=value`` means.

    Raises:
        InputError: an unknown name, an unknown key, or a value of the wrong kind.
    """
    name, *changes = spec.split(":")
    if name not in STRATEGIES:
        raise InputError(
            f"unknown strategy '{name}'", hint=f"choose from {', '.join(sorted(STRATEGIES))}"
        )
    strategy = STRATEGIES[name]
    for change in changes:
        key, _, text = change.partition("=")
        idle = key in _FIXED or key in _IDLE[strategy.payload]
        old = [] if idle else _find(strategy, key)
        if not old or any(dataclasses.is_dataclass(value) for value in old):
            keys = _keys(strategy).difference(_IDLE[strategy.payload])
            raise InputError(
                f"strategy '{name}' has no value '{key}'",
                hint=f"write {name}:key=value with one of {', '.join(sorted(keys))}",
            )
        try:
            new = json.loads(text)
        except ValueError:
            new = text
        if not all(_same_kind(value, new) for value in old) or not _in_range(key, new):
            raise InputError(
                f"strategy '{name}': '{text}' does not fit '{key}'",
                hint=f"give a value like the present {json.dumps(old[0])}{_range(key)}",
            )
        strategy, _ = _replace(strategy, key, new)
    if strategy.payload == "moments" and not strategy.frozen:
        raise InputError(
            f"strategy '{name}' sends moments of a base that stays as it is",
            hint="leave frozen=false out, or use gsfs-tune, which trains the base",
        )
    return dataclasses.replace(strategy, name=spec)


def _keys(value: Any) -> set[str]:
    """The names of the plain values that a spec may change."""
    if isinstance(value, tuple):
        return {key for item in value for key in _keys(item)}
    keys: set[str] = set()
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner) or isinstance(inner, tuple):
            keys |= _keys(inner)
        elif field.name not in _FIXED:
            keys.add(field.name)
    return keys
