"""Rules that any algorithm of its kind may take, one file each; others stand in their algorithm."""

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
