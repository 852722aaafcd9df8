"""Parts of an algorithm: frozen values whose fields carry their own bounds.

Here are the two that say when: triggers (when does a client upload?) and pools (when does the cloud
aggregate?). Rules and transforms are parts too, and so is an algorithm itself.

A trigger has three verbs over a small state that the client keeps: ``init`` makes the state,
``sense`` looks at one local round and decides, ``reset`` follows an upload or a broadcast. The
state is a flat JSON-able mapping, so it survives a kill with the client.
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
