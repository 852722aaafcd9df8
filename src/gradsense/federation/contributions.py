"""What a client has given to a sum, kept apart so that it can be weighed and taken back."""

from __future__ import annotations

from dataclasses import dataclass

from gradsense.learning.learner import Tensors


@dataclass(frozen=True)
class Contribution:
    """All that one client has contributed.

    Attributes:
        updates: that it came in.
        records: that it is of, as the tensors themselves show: nobody's word is taken for it.
        tensors: the sum of those updates, in the rule's own form.
    """

    updates: int
    records: float
    tensors: Tensors
