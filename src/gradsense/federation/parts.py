"""Frozen dataclasses whose fields carry their bounds.

Triggers, pools, rules, transforms and algorithms are parts.
"""

from __future__ import annotations

from typing import Annotated, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field
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
