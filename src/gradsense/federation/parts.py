"""Parts of an algorithm: frozen values whose fields carry their own bounds.

A trigger, a pool, a rule, a transform and an algorithm itself are parts. ``changed`` sets one field
anywhere inside a part by its name, so that the effect of one setting can be measured without code.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

T = TypeVar("T")

Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
AtLeastOne = Annotated[int, Field(ge=1)]

_CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def part(cls: type[T]) -> type[T]:
    """A frozen dataclass that checks the types and bounds of its fields when it is made."""
    made: type[T] = dataclass(frozen=True, config=_CONFIG)(cls)  # type: ignore[assignment]
    return made


class NoSuchField(KeyError):
    """No part has a field of this name."""


def fields_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of every plain field inside a part, also inside the parts that it holds."""
    if isinstance(value, tuple):
        for item in value:
            yield from fields_of(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            nested = dataclasses.is_dataclass(inner) or isinstance(inner, tuple)
            yield from fields_of(inner) if nested else [(field.name, inner)]


def changed(value: T, key: str, text: str) -> T:
    """The part with every plain field ``key`` inside it set to what ``text`` says.

    Args:
        text: JSON, or else a word.

    Raises:
        NoSuchField: no field has this name.
        ValueError: the value does not fit; the message says what would.
    """
    if key not in dict(fields_of(value)):
        raise NoSuchField(key)
    try:
        new = json.loads(text)
    except ValueError:
        new = text
    made: T = _replaced(value, key, new)
    return made


def _replaced(value: Any, key: str, new: object) -> Any:
    if isinstance(value, tuple):
        return tuple(_replaced(item, key, new) for item in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fresh: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        nested = dataclasses.is_dataclass(inner) or isinstance(inner, tuple)
        fresh[field.name] = new if field.name == key and not nested else _replaced(inner, key, new)
    try:
        return type(value)(**fresh)
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"]) from None
