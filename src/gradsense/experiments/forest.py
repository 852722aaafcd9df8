"""The random forest on raw flow features, the baseline of language models (Breiman 2001)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.ensemble import RandomForestClassifier

from gradsense.data.flows import CONTEXT_SCHEMA, class_numbers

_TREES = 200
CATEGORIES = ("proto", "service", "conn_state", "history")
#: No addresses, no time, no uid: they name a capture and not a behaviour.
NUMBERS = (
    *("orig_p", "resp_p", "duration", "orig_bytes", "resp_bytes", "missed_bytes"),
    *("orig_pkts", "orig_ip_bytes", "resp_pkts", "resp_ip_bytes"),
)
#: Stands for an unset number and an unset or never seen category: below every real value, so
#: that one split sets it apart.
_MISSING = -1.0


def predict(
    train: pl.DataFrame,
    test: pl.DataFrame,
    classes: Sequence[str],
    *,
    seed: int,
    context: bool = False,
    jobs: int = 1,
) -> npt.NDArray[np.int64]:
    """Class numbers [test flows] from a forest of 200 trees grown on the pooled training flows.

    Args:
        train, test: flows (FLOW_SCHEMA) with ``class``, one of ``classes``.
        classes: class names; their places are the class numbers.
        context: also read the host's recent flows (CONTEXT_SCHEMA), for a fair comparison with a
            template that does.
        jobs: processor cores. The forest is the same for any number.
    """
    known = codes(train)
    model = RandomForestClassifier(n_estimators=_TREES, random_state=seed, n_jobs=jobs)
    model.fit(features(train, known, context=context), class_numbers(train, classes))
    predicted: npt.NDArray[np.int64] = model.predict(features(test, known, context=context)).astype(
        np.int64
    )
    return predicted


def codes(flows: pl.DataFrame) -> dict[str, dict[str, float]]:
    """A number for each category of each categorical column, in alphabetical order."""
    return {
        name: {
            value: float(place)
            for place, value in enumerate(sorted(flows[name].drop_nulls().unique()))
        }
        for name in CATEGORIES
    }


def features(
    flows: pl.DataFrame, known: dict[str, dict[str, float]], *, context: bool
) -> npt.NDArray[np.float32]:
    """What the forest reads of each flow, [flows, columns].

    Args:
        known: ``codes`` of the training flows.
        context: also the columns of CONTEXT_SCHEMA.
    """
    categories = [
        pl.col(name).replace_strict(places, default=_MISSING, return_dtype=pl.Float64)
        if places
        else pl.lit(_MISSING).alias(name)
        for name, places in known.items()
    ]
    names = (*NUMBERS, *(CONTEXT_SCHEMA if context else ()))
    numbers = [pl.col(name).cast(pl.Float64) for name in names]
    frame = flows.select(*numbers, *categories).fill_null(_MISSING)
    return frame.to_numpy().astype(np.float32)
