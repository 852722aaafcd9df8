"""Boosted trees (LightGBM: Ke et al. 2017, NeurIPS), on the phrases and on the raw fields."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradsense.experiments.forest import Fields
from gradsense.experiments.references.reference import Fit, Fitted, Mask, Probabilities, Tabular
from gradsense.experiments.references.table_of_flows import FlowTable

_TREES = 200


class BoostedPhrases(Tabular):
    """LightGBM on the phrase ids of the template's fields: just what the language model reads.

    A field's phrases are numbered from little to much where they are of a quantity.
    """

    name: ClassVar[str] = "lightgbm-phrases"
    rank: ClassVar[int] = 2
    library: ClassVar[str | None] = "lightgbm"

    def prepare(self, table: FlowTable) -> Fit:
        features = table.phrase_ids.astype(np.float32)

        def fit(sites: Mask) -> Fitted:
            rows = table.training(sites)
            predict = _boosted(table, features[table.prompt[rows]], table.labels[rows])

            def probabilities(rows: Mask) -> Probabilities:
                distinct, back = np.unique(table.prompt[rows], return_inverse=True)
                odds: Probabilities = predict(features[distinct])[back]
                return odds

            return Fitted(probabilities)

        return fit


class BoostedFields(Tabular):
    """LightGBM on the fields of the log that the random forest reads."""

    name: ClassVar[str] = "lightgbm-fields"
    rank: ClassVar[int] = 2
    library: ClassVar[str | None] = "lightgbm"

    def prepare(self, table: FlowTable) -> Fit:
        context = table.template.needs_context

        def fit(sites: Mask) -> Fitted:
            rows = table.training(sites)
            train = table.flows.filter(rows)
            fields = Fields(train, context=context)
            predict = _boosted(table, fields(train), table.labels[rows])
            return Fitted(lambda marked: predict(fields(table.flows.filter(marked))))

        return fit


def _boosted(table: FlowTable, features: NDArray[np.float32], labels: NDArray[np.int64]) -> Any:
    """From features to probabilities of all classes."""
    from lightgbm import Dataset, train

    known, numbers = np.unique(labels, return_inverse=True)
    if len(known) == 1:
        return lambda rows: table.spread(known, np.ones((len(rows), 1)))
    several = len(known) > 2
    parameters = {
        "objective": "multiclass" if several else "binary",
        **({"num_class": len(known)} if several else {}),
        "num_leaves": 31,
        "learning_rate": 0.1,
        "num_threads": table.settings.threads,
        "seed": table.settings.seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    model = train(parameters, Dataset(features, numbers), num_boost_round=_TREES)

    def predict(rows: NDArray[np.float32]) -> NDArray[np.float64]:
        odds = np.asarray(model.predict(rows))
        return table.spread(known, odds if several else np.column_stack([1 - odds, odds]))

    return predict
