"""What clients have given to a sum, kept apart so that it can be weighed and taken back."""

from __future__ import annotations

from abc import abstractmethod
from collections import UserDict
from collections.abc import Mapping, MutableMapping
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


class Contributions(Mapping[str, Contribution]):
    """Client to contribution, wherever they are kept."""

    @property
    @abstractmethod
    def records(self) -> Mapping[str, float]:
        """Client to the records that its contribution is of; no tensor is read for it."""


class MutableContributions(Contributions, MutableMapping[str, Contribution]):
    """Contributions that a coordinator changes."""


class Remembered(UserDict[str, Contribution], MutableContributions):
    """Contributions in memory."""

    @property
    def records(self) -> Mapping[str, float]:
        return {client: own.records for client, own in self.data.items()}
