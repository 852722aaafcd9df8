"""gsfs on a base that was never pretrained: what the base's weights are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradsense.experiments.references.reference import Fit, Tabular
from gradsense.experiments.references.table_of_flows import FlowTable

if TYPE_CHECKING:
    from gradsense.federation.algorithms.gsfs import Gsfs

_BATCH = 512


class RandomBase(Tabular):
    """The frozen base with random weights of the same shape, and gsfs's head over it."""

    name: ClassVar[str] = "random-base"
    rank: ClassVar[int] = 3

    def prepare(self, table: FlowTable) -> Fit:
        from gradsense.federation.algorithms.gsfs import Gsfs

        return over_frozen_base(table, Gsfs(), pretrained=False)


def over_frozen_base(table: FlowTable, gsfs: Gsfs, *, pretrained: bool) -> Fit:
    """The head of gsfs over a frozen base's states, which each distinct prompt is read for once."""
    from gradsense.experiments.references.statistics_of_sites import StatisticsOfSites

    features = frozen_features(table, gsfs, pretrained=pretrained)
    return StatisticsOfSites(table, features, gsfs, federated=True)


def frozen_features(table: FlowTable, gsfs: Gsfs, *, pretrained: bool) -> NDArray[np.float32]:
    """What the head reads of each distinct prompt, [distinct, d]."""
    import torch

    from gradsense.models.build import build

    settings = table.settings
    torch.set_num_threads(settings.threads)
    classifier = build(
        settings.model,
        template=table.template,
        labels=table.classes,
        seed=settings.seed,
        pretrained=pretrained,
        readout=gsfs.readout,
        frozen=True,
    )
    encoded = classifier.encode(table.template.texts(table.phrase_ids))
    classifier.model.eval()
    with torch.inference_mode():
        parts = [
            classifier.features(encoded, rows).float().cpu().numpy()
            for rows in torch.split(torch.arange(len(encoded)), _BATCH)
        ]
    return np.concatenate(parts)
