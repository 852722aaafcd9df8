"""What an update passes through: transforms, one file each, then a codec, one file each."""

from __future__ import annotations

from functools import cache

from gradsense.discovery import members
from gradsense.federation.transforms.transform import Codec, Transform


@cache
def codecs() -> dict[str, Codec]:
    """Every codec with its default settings, by name."""
    found = members(__name__, Codec)  # type: ignore[type-abstract]
    return {name: made() for name, made in found.items()}


@cache
def transforms() -> dict[str, Transform]:
    """Every transform with its default settings, by name."""
    found = members(__name__, Transform)  # type: ignore[type-abstract]
    return {name: made() for name, made in found.items()}
