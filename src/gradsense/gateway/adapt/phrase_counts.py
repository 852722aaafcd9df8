"""The place of each of a template's phrases in one vector of counts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradsense.prompts.templates import Template


@dataclass(frozen=True)
class PhraseLayout:
    """The phrases of all fields, one after the other.

    Attributes:
        fields: names in the template's order.
        sizes: int64 [fields], phrases of each field.
        offsets: int64 [fields], where each field begins.
        width: phrases of all fields together.
        fingerprint: 16 bytes, a hash of all phrases. Counts under another fingerprint cannot be
            used.
    """

    fields: tuple[str, ...]
    sizes: NDArray[np.int64]
    offsets: NDArray[np.int64]
    width: int
    fingerprint: bytes

    @classmethod
    def of(cls, template: Template) -> PhraseLayout:
        """The layout of ``template``."""
        sizes = np.array([len(field.phrases) for field in template.fields], dtype=np.int64)
        words = [template.name, str(template.version)]
        for field in template.fields:
            words += [field.name, *field.phrases, ""]
        return cls(
            tuple(field.name for field in template.fields),
            sizes,
            np.concatenate(([0], np.cumsum(sizes)[:-1])),
            int(sizes.sum()),
            hashlib.blake2b("\n".join(words).encode(), digest_size=16).digest(),
        )
