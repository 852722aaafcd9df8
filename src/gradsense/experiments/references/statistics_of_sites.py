"""Least squares from sites' sufficient statistics, over any features of a prompt.

S adds up, so the head without some sites is that of the total less their part: leaving networks
out costs a subtraction and no training, and each prompt's features are computed once for all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradsense.experiments.references.reference import Fitted, Mask, Probabilities
from gradsense.experiments.references.table_of_flows import FlowTable
from gradsense.federation.algorithms.gsfs import UNIT, Gsfs
from gradsense.federation.contributions import Contribution, Remembered
from gradsense.federation.update import exactly
from gradsense.learning.calibration import softmax
from gradsense.learning.statistics import HEAD_BIAS, HEAD_WEIGHT, STATISTICS, factorise, solve

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class _Site:
    """A site's distinct [x; y] with the root of their counts on them, or what it sent of them."""

    contribution: Contribution | None
    rows: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
    sent: int


class StatisticsOfSites:
    """Fits a ridge head for any set of sites; a ``Fit``.

    Args:
        table: the flows.
        features: x of each distinct prompt, float32 [distinct, d].
        gsfs: whose rule and penalty it is and, if ``federated``, whose factor and codec.
        federated: sites send factors, rounded, and none counts for more flows than the rule's
            cap. Otherwise flows are pooled: S is exact and every flow counts the same.
    """

    def __init__(
        self, table: FlowTable, features: NDArray[np.float32], gsfs: Gsfs, *, federated: bool
    ) -> None:
        self.table, self.features, self.gsfs, self.federated = table, features, gsfs, federated
        classes, d = len(table.classes), features.shape[1]
        self._head = {
            HEAD_WEIGHT: np.zeros((classes, d), np.float32),
            HEAD_BIAS: np.zeros(classes, np.float32),
        }
        training = table.part("train")
        clients = table.flows["client"]
        self._sites = [
            self._read(training & (clients == name).to_numpy(), place)
            for place, name in enumerate(table.sites)
        ]
        self._given = Remembered(
            {str(n): one.contribution for n, one in enumerate(self._sites) if one.contribution}
        )
        self._total = (
            gsfs.rule.total(self._head, self._given)[STATISTICS]
            if federated
            else self._sum(np.ones(len(self._sites), bool))
        )

    def __call__(self, sites: Mask) -> Fitted:
        if sites.all():
            matrix = self._total
        elif self.federated:  # whole numbers, so that nothing of the sites is left behind
            gone = dict.fromkeys(name for name in self._given if not sites[int(name)])
            state = {STATISTICS: self._total}
            _, rest = self.gsfs.rule.changed(self._head, state, self._given, gone)
            matrix = rest[STATISTICS]
        elif 2 * sites.sum() < len(sites):
            matrix = self._sum(sites)
        else:
            matrix = self._total - self._sum(~sites)
        rule, classes = self.gsfs.rule, len(self.table.classes)
        whole = matrix.astype(np.float64) * (UNIT if self.federated else 1.0)
        weight, bias = solve(whole, classes, rule.regularisation)

        def probabilities(rows: Mask) -> Probabilities:
            distinct, back = np.unique(self.table.prompt[rows], return_inverse=True)
            outputs = self.features[distinct].astype(np.float64) @ weight.T + bias
            return softmax(rule.sharpness * outputs)[back]

        sent = sum(one.sent for one, marked in zip(self._sites, sites, strict=True) if marked)
        return Fitted(probabilities, sent if self.federated else None)

    def _read(self, rows: Mask, place: int) -> _Site:
        counted = self.table.counted(rows)
        if not self.federated:
            return _Site(None, counted, 0)
        factor = factorise(self._both(*counted), self.gsfs.tolerance)
        sent = {STATISTICS: factor}
        rng = np.random.default_rng([self.table.settings.seed, place])
        for transform in self.gsfs.transforms:
            sent = dict(transform.apply(sent, rng))
        packed = self.gsfs.codec.pack(sent)
        decoded = self.gsfs.codec.unpack(packed, exactly(sent))
        # As the coordinator counts them: by the constant's column.
        constant = -len(self.table.classes) - 1
        records = float(np.square(decoded[STATISTICS][:, constant], dtype=np.float64).sum())
        return _Site(Contribution(1, records, decoded), counted, len(packed))

    def _both(
        self,
        prompts: NDArray[np.int64],
        labels: NDArray[np.int64],
        counts: NDArray[np.float64],
    ) -> Matrix:
        parts = (
            self.features[prompts].astype(np.float64),
            np.ones((len(prompts), 1)),
            np.eye(len(self.table.classes))[labels],
        )
        both: Matrix = np.sqrt(counts)[:, None] * np.hstack(parts)
        return both

    def _sum(self, sites: Mask) -> Matrix:
        chosen = [one for one, marked in zip(self._sites, sites, strict=True) if marked]
        width = self.features.shape[1] + 1 + len(self.table.classes)
        total = np.zeros((width, width))
        for one in chosen:
            prompts, labels, counts = one.rows
            rows = self._both(prompts, labels, np.ones(len(prompts)))
            total += rows.T @ (counts[:, None] * rows)
        return total
