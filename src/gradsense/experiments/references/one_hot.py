"""Which phrases a prompt has, one-hot, under linear classifiers: the model's input without a model.

Whatever a frozen base is worth, it is worth beyond these.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradsense.experiments.references.reference import Fit, Fitted, Mask, Probabilities, Tabular
from gradsense.experiments.references.table_of_flows import FlowTable

#: Inverse strength of the penalty, and passes; scikit-learn's own default of 100 stops too early.
_C, _PASSES = 1.0, 500


class OneHotLogistic(Tabular):
    """Logistic regression on the pooled flows, ℓ2 penalty, C = 1 (scikit-learn's own)."""

    name: ClassVar[str] = "onehot-logistic"
    rank: ClassVar[int] = 2
    library: ClassVar[str | None] = "sklearn"

    def prepare(self, table: FlowTable) -> Fit:
        from scipy.sparse import csr_array
        from sklearn.linear_model import LogisticRegression

        columns = places(table)
        shape = (len(columns), width(table))
        starts = np.arange(0, columns.size + 1, columns.shape[1])
        whole: Any = csr_array((np.ones(columns.size), columns.ravel(), starts), shape=shape)

        def fit(sites: Mask) -> Fitted:
            prompts, labels, counts = table.counted(table.training(sites))
            known = np.unique(labels)
            if len(known) == 1:
                return Fitted(lambda rows: table.spread(known, np.ones((int(rows.sum()), 1))))
            model = LogisticRegression(C=_C, max_iter=_PASSES)
            model.fit(whole[prompts], labels, sample_weight=counts)

            def probabilities(rows: Mask) -> Probabilities:
                distinct, back = np.unique(table.prompt[rows], return_inverse=True)
                return table.spread(known, model.predict_proba(whole[distinct]))[back]

            return Fitted(probabilities)

        return fit


class OneHotRidge(Tabular):
    """Ridge regression on the pooled flows, with the penalty that gsfs has."""

    name: ClassVar[str] = "onehot-ridge"
    rank: ClassVar[int] = 2
    federated: ClassVar[bool] = False

    def prepare(self, table: FlowTable) -> Fit:
        from gradsense.experiments.references.statistics_of_sites import StatisticsOfSites
        from gradsense.federation.algorithms.gsfs import Gsfs

        return StatisticsOfSites(table, one_hot(table), Gsfs(), federated=self.federated)


class OneHotFederated(OneHotRidge):
    """The same from sufficient statistics that sites send, by gsfs's own rule and codec."""

    name: ClassVar[str] = "onehot-federated"
    federated: ClassVar[bool] = True


def width(table: FlowTable) -> int:
    """How many phrases the fields have together."""
    return sum(len(field.phrases) for field in table.template.fields)


def places(table: FlowTable) -> NDArray[np.int64]:
    """The columns that are 1 of each distinct prompt, [distinct, fields]."""
    sizes = [len(field.phrases) for field in table.template.fields]
    first = np.cumsum([0, *sizes[:-1]])
    columns: NDArray[np.int64] = table.phrase_ids.astype(np.int64) + first
    return columns


def one_hot(table: FlowTable) -> NDArray[np.float32]:
    """The distinct prompts one-hot, [distinct, phrases]."""
    whole = np.zeros((len(table.phrase_ids), width(table)), np.float32)
    np.put_along_axis(whole, places(table), 1.0, axis=1)
    return whole
