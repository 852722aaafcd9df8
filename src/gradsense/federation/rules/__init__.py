"""Rules for any algorithm, one file each but the mean; others stand in their algorithm."""

from __future__ import annotations

from functools import cache

from gradsense.discovery import members
from gradsense.federation.rules.rule import Rule

__all__ = ["Rule", "rules"]


@cache
def rules() -> dict[str, Rule]:
    """Every rule of this folder with its default settings, by name."""
    found = members(__name__, Rule)  # type: ignore[type-abstract]
    return {name: made() for name, made in found.items()}
