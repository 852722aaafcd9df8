"""All flows of a corpus as one table that every reference can read: phrases, fields, counts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradsense.config import RunSettings
from gradsense.data.flows import class_numbers
from gradsense.experiments.references.reference import Mask
from gradsense.prompts.templates import Template, get_template

if TYPE_CHECKING:
    from gradsense.experiments.corpus import Corpus

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class FlowTable:
    """Flows of training, test and validation, below each other.

    Attributes:
        settings: of the run.
        flows: [n] rows with ``class``, ``client`` and ``part``.
        classes: class names; their places are the class numbers.
        sites: the clients with training flows, in the data's order.
    """

    settings: RunSettings
    flows: pl.DataFrame
    classes: tuple[str, ...]
    sites: tuple[str, ...]

    @classmethod
    def of(cls, corpus: Corpus, settings: RunSettings) -> FlowTable:
        """The table of a corpus."""
        parts = [
            getattr(corpus.parts, name).with_columns(part=pl.lit(name))
            for name in ("train", "test", "validation")
        ]
        return cls(settings, pl.concat(parts), corpus.classes, tuple(corpus.clients))

    def part(self, name: str) -> Mask:
        """Which flows are of ``train``, ``test`` or ``validation``, [n]."""
        marked: Mask = (self.flows["part"] == name).to_numpy()
        return marked

    def training(self, sites: Mask) -> Mask:
        """Which flows the marked sites train on, [n]."""
        named = [name for name, marked in zip(self.sites, sites, strict=True) if marked]
        marked: Mask = self.part("train") & self.flows["client"].is_in(named).to_numpy()
        return marked

    @cached_property
    def template(self) -> Template:
        """The template of the prompts."""
        return get_template(self.settings.template)

    @cached_property
    def labels(self) -> Ints:
        """Class numbers, [n]."""
        return class_numbers(self.flows, self.classes)

    @cached_property
    def _distinct(self) -> tuple[NDArray[np.uint16], Ints]:
        distinct, place = np.unique(self.template.indices(self.flows), axis=0, return_inverse=True)
        return distinct, place.reshape(-1).astype(np.int64)

    @property
    def phrase_ids(self) -> NDArray[np.uint16]:
        """The distinct prompts, [distinct, fields]: a phrase of each field."""
        return self._distinct[0]

    @property
    def prompt(self) -> Ints:
        """The place of each flow's prompt in ``phrase_ids``, [n]."""
        return self._distinct[1]

    def counted(self, rows: Mask) -> tuple[Ints, Ints, NDArray[np.float64]]:
        """Distinct (prompt, class) of the marked flows: prompts, class numbers and counts."""
        width = len(self.classes)
        keys, counts = np.unique(self.prompt[rows] * width + self.labels[rows], return_counts=True)
        return keys // width, keys % width, counts.astype(np.float64)

    def spread(self, known: Ints, odds: NDArray[np.floating]) -> NDArray[np.float64]:
        """Probabilities of all classes from those of the classes ``known`` to a classifier."""
        table = np.zeros((len(odds), len(self.classes)))
        table[:, known] = odds
        return table
