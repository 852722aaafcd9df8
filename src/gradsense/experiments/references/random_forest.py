"""A random forest on the pooled raw features of what the model reads as text (Breiman 2001)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from gradsense.experiments.references.reference import Fit, Fitted, Mask, Tabular
from gradsense.experiments.references.table_of_flows import FlowTable

#: Flows that a tree draws where a forest is grown for every network left out.
_DRAWS = 15_000


class RandomForest(Tabular):
    """The baseline of language models."""

    name: ClassVar[str] = "forest"
    rank: ClassVar[int] = 2
    library: ClassVar[str | None] = "sklearn"

    def prepare(self, table: FlowTable) -> Fit:
        from gradsense.experiments.forest import grown

        context = table.template.needs_context
        draws = _DRAWS if table.settings.split == "network" else None

        def fit(sites: Mask) -> Fitted:
            train = table.flows.filter(table.training(sites))
            forest = grown(
                train, table.classes, seed=table.settings.seed, context=context, draws=draws
            )
            return Fitted(lambda rows: np.asarray(forest(table.flows.filter(rows))))

        return fit
