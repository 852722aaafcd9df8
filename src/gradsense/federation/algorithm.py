"""An algorithm = local step × trigger × pool × rule: the interface, and how one is named.

Both halves of an algorithm stand in one file of ``algorithms/``: what a client does between two
broadcasts, and what the cloud does with what arrives. ``Client`` and ``Coordinator`` are the two
state machines around them; they know nothing of any one algorithm.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

from pydantic import ValidationError

from gradsense.discovery import members
from gradsense.errors import InputError
from gradsense.federation import transforms
from gradsense.federation.parts import part
from gradsense.federation.pools import Pool
from gradsense.federation.rules import Rule, rules
from gradsense.federation.transforms.transform import Codec, Plain, Transform
from gradsense.federation.triggers import State, Trigger
from gradsense.federation.update import ShapeBounds, Update, exactly
from gradsense.learning.learner import FlowCost, Learner, ServerState, Tensors, norm_of
from gradsense.learning.statistics import FleetStatistics

#: What the head reads of a prompt (``models.heads.readout``): the last token's state, as the paper
#: has it, or more.
Readout = Literal["last", "pooled", "tokens"]


@dataclass
class LocalState:
    """What an algorithm keeps at a client; all of it survives a kill.

    An algorithm adds fields of its own: named tensors, or values that JSON can hold.

    Attributes:
        local: the model that the client works with.
        sensing: the trigger's state.
        fresh: a model was adopted since the last local round.
    """

    local: Tensors = field(default_factory=dict)
    sensing: State = field(default_factory=dict)
    fresh: bool = False

    def split(self) -> tuple[dict[str, Any], dict[str, Tensors]]:
        """JSON-able values, and named groups of tensors."""
        groups = {one.name for one in dataclasses.fields(self) if one.type == "Tensors"}
        values = {name: value for name, value in vars(self).items() if name not in groups}
        return values, {name: getattr(self, name) for name in groups if getattr(self, name)}

    @classmethod
    def joined(cls, values: Mapping[str, Any], groups: Mapping[str, Tensors]) -> Self:
        """Rebuild the state from the output of ``split``."""
        own = {one.name for one in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in {**values, **groups}.items() if name in own})


@dataclass(frozen=True)
class Plan:
    """What a local round will cost.

    Attributes:
        steps: batches; 0 where there is nothing to do.
        passes: validation passes over D_k^val.
    """

    steps: int
    passes: int = 0


@dataclass(frozen=True)
class Outgoing:
    """What a client has decided to send: the fields of an ``Update`` that are the algorithm's.

    Attributes:
        tensors: before transforms and codec.
        score: M(θ_k; D_k^val) in nats, where the trigger asked for it.
    """

    reason: str
    tensors: Tensors
    samples: int
    score: float | None = None


S = TypeVar("S", bound=LocalState)


@part
class Algorithm(ABC, Generic[S]):
    """The interface of every algorithm, and its parts.

    Attributes:
        name: what people call it.
        summary: one line for tables and ``--help``.
        trains: clients change weights. If not, they only read, and their model is the global one.
        search: the setting, and its published values, that ``compare --tune`` chooses among.
        trigger: when does a client upload?
        pool: when does the cloud aggregate?
        rule: how?
        wait: after an upload, rest until the next global model instead of training on. A small
            or fast site would otherwise spend its whole budget on a model that is about to change.
        transforms: what an update passes through before its codec.
        codec: how an update becomes bytes.
        readout: what the head reads of a prompt.
        frozen: the base stays as it came, and only the head changes.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    trains: ClassVar[bool] = True
    search: ClassVar[tuple[str, tuple[float, ...]] | None] = None

    trigger: Trigger
    pool: Pool
    rule: Rule
    wait: bool = True
    transforms: tuple[Transform, ...] = ()
    codec: Codec = Plain()
    readout: Readout = "last"
    frozen: bool = False

    # At the client --------------------------------------------------------------------------

    @abstractmethod
    def begin(self) -> S:
        """The state of a client that has no model yet."""

    @abstractmethod
    def adopt(self, state: S, tensors: Tensors) -> None:
        """Take a new global model and reset the reference point (eq 15)."""

    @abstractmethod
    def plan(self, state: S, learner: Learner, round_steps: int, budget: int) -> Plan:
        """What the next ``local_round`` costs, of a round's steps and those that may be spent."""

    @abstractmethod
    def local_round(
        self, state: S, learner: Learner, steps: int, *, first_step: int, rounds: int
    ) -> Outgoing | None:
        """One local round, then the trigger's decision.

        Args:
            steps: of ``plan``, at least one.
            first_step: steps that the client has taken in its life.
            rounds: local rounds since the last upload, this one included.
        """

    def sent(self, state: S, outgoing: Outgoing, arrives: Tensors) -> None:
        """Called after an upload was packed; ``arrives`` is what the coordinator will decode."""

    def refused(self, state: S) -> None:
        """The coordinator turned the last upload away."""

    def reported_steps(self, state: S) -> int:
        """Steps already reported to the coordinator, by an algorithm that does not train."""
        return 0

    def flop(self, cost: FlowCost, learner: Learner, plan: Plan) -> float:
        """Arithmetic of a local round: training, and passes over D_k^val."""
        share = plan.steps / learner.steps_per_epoch
        training = cost.training * learner.samples * share
        return training + cost.inference * plan.passes * learner.validation_samples

    # In the cloud ---------------------------------------------------------------------------

    def opened(self, tensors: Tensors) -> Tensors:
        """The first global model, made of the weights."""
        return tensors

    def weights(self, tensors: Tensors) -> Tensors:
        """The weights in a global model, without what else travels with it."""
        return tensors

    def versions_back(self, version: int, max_staleness: int) -> int:
        """How many versions before this one an update may start from."""
        return 0 if self.pool.synchronous else max_staleness

    def shape_bounds(self, tensors: Tensors, state: ServerState) -> ShapeBounds:
        """The tensors that an update may have: by default those of the global model."""
        return exactly(tensors)

    def norm(self, update: Update, tensors: Tensors) -> float:
        """How much an update moves; the coordinator bounds it.

        Raises:
            NormTooLarge: it claims to be of fewer records than it is.
        """
        return norm_of(update.delta)

    def statistics(self, state: ServerState) -> FleetStatistics | None:
        """What the fleet's sufficient statistics are; None where none came together."""
        return None


# Names --------------------------------------------------------------------------------------


@cache
def algorithms() -> dict[str, Algorithm[Any]]:
    """Every algorithm with its default settings, by name."""
    found = members("gradsense.federation.algorithms", Algorithm)  # type: ignore[type-abstract]
    return {name: made() for name, made in sorted(found.items())}  # type: ignore[call-arg]


def get_algorithm(spec: str) -> Algorithm[Any]:
    """The algorithm that ``name`` or ``name:key=value:key=value`` means.

    A key is a field of the algorithm or of any of its parts. ``rule``, ``codec`` and
    ``transforms`` (several joined by ``+``) take names, and are put in first. The values are
    checked together, so their order says nothing.

    >>> get_algorithm("fedavg:codec=int8").codec.name
    'int8'
    >>> get_algorithm("gsfs:floor=0.2:deadline_s=60").pool
    Quorum(deadline_s=60.0, share=0.3, among='connected')

    Raises:
        InputError: an unknown name, an unknown key, or a value that does not fit.
    """
    name, *changes = spec.split(":")
    if name not in algorithms():
        raise InputError(
            f"unknown algorithm '{name}'", hint=f"choose from {', '.join(algorithms())}"
        )
    algorithm = algorithms()[name]
    pairs = [(key, text) for key, _, text in (change.partition("=") for change in changes)]
    values: dict[str, str] = {}
    for key, text in sorted(pairs, key=lambda pair: pair[0] not in _NAMED):
        present = dict(fields_of(algorithm))
        if key not in {*_NAMED, *present}:
            raise InputError(
                f"algorithm '{name}' has no setting '{key}'",
                hint=f"write {name}:key=value with one of {', '.join(sorted({*_NAMED, *present}))}",
            )
        if key not in _NAMED:
            values[key] = text
            continue
        try:
            algorithm = _with_part(algorithm, key, text)
        except ValueError as error:
            raise _misfit(name, key, text, present.get(key), error) from None
    try:
        made: Algorithm[Any] = _replaced(algorithm, _read(values))
    except ValueError as together:
        present = dict(fields_of(algorithm))
        for key, text in values.items():
            try:
                _replaced(algorithm, _read({key: text}))
            except ValueError as error:
                raise _misfit(name, key, text, present[key], error) from None
        shown, keys = ":".join(f"{key}={text}" for key, text in values.items()), ", ".join(values)
        raise _misfit(name, keys, shown, None, together) from None
    return made


def _misfit(name: str, key: str, text: str, known: object, error: ValueError) -> InputError:
    like = "" if known is None else f"give a value like the present {json.dumps(known)}"
    reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    reason = reason.removeprefix("Value error, ")
    return InputError(
        f"algorithm '{name}': '{text}' does not fit '{key}'",
        hint=", ".join(filter(None, (like, reason[:1].lower() + reason[1:]))),
    )


#: Settings whose values are parts, by name.
_NAMED: dict[str, Callable[[], Mapping[str, Any]]] = {
    "rule": rules,
    "codec": transforms.codecs,
    "transforms": transforms.transforms,
}


def fields_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of every plain field inside a part, also inside the parts that it holds."""
    if isinstance(value, tuple):
        for item in value:
            yield from fields_of(item)
    elif dataclasses.is_dataclass(value):
        for one in dataclasses.fields(value):
            inner = getattr(value, one.name)
            yield from fields_of(inner) if _nested(inner) else [(one.name, inner)]


def _nested(value: Any) -> bool:
    return dataclasses.is_dataclass(value) or isinstance(value, tuple)


def _with_part(algorithm: Algorithm[Any], key: str, text: str) -> Algorithm[Any]:
    """The algorithm with the part that ``text`` names, or the parts.

    Raises:
        ValueError: the name does not fit; the message says what would.
    """
    found, names = _NAMED[key](), text.split("+") if key == "transforms" else [text]
    if not found.keys() >= set(names):
        raise ValueError(f"one of {', '.join(sorted(found))}")
    chosen = tuple(found[name] for name in names)
    part_of: dict[str, Any] = {key: chosen if key == "transforms" else chosen[0]}
    return dataclasses.replace(algorithm, **part_of)


def _read(values: Mapping[str, str]) -> dict[str, object]:
    """What each text says: JSON, or a word."""
    read: dict[str, object] = {}
    for key, text in values.items():
        try:
            read[key] = json.loads(text)
        except (ValueError, RecursionError):
            read[key] = text
    return read


def _replaced(value: Any, new: Mapping[str, object]) -> Any:
    """The part with every field of these names inside it set to the new value.

    Raises:
        ValueError: the value does not fit; the message says what would.
    """
    if isinstance(value, tuple):
        return tuple(_replaced(item, new) for item in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fresh: dict[str, Any] = {}
    for one in dataclasses.fields(value):
        inner = getattr(value, one.name)
        chosen = one.name in new and not _nested(inner)
        fresh[one.name] = new[one.name] if chosen else _replaced(inner, new)
    return type(value)(**fresh)
