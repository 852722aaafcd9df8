"""Where a template's phrases stand in one long vector, for whoever counts them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradsense.prompts.templates import Template


@dataclass(frozen=True)
class PhraseLayout:
    """The phrases of all fields side by side.

    Attributes:
        fields: names in the template's order.
        sizes: int64 [fields], phrases of each field.
        offsets: int64 [fields], where each field begins.
        width: phrases of all fields together.
        fingerprint: 16 bytes that differ wherever any phrase does. Counts under another
            fingerprint mean something else.
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
