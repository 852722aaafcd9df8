"""The rows that keep a comparison honest, one file a reference; ``reference`` is their interface.

A new reference is a new file here that defines a ``ReferenceMethod``; nothing else changes.
"""

from __future__ import annotations

from functools import cache

from gradsense.discovery import members
from gradsense.experiments.references.reference import ReferenceMethod


@cache
def references() -> dict[str, ReferenceMethod]:
    """Every reference by name, in the order of their ``rank``, also those that cannot run here."""
    found = members(__name__, ReferenceMethod)  # type: ignore[type-abstract]
    made = [one() for one in found.values()]
    return {one.name: one for one in sorted(made, key=lambda one: (one.rank, one.name))}
