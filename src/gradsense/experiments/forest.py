"""The random forest on raw flow features, the baseline of language models (Breiman 2001)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.ensemble import RandomForestClassifier

from gradsense.data.flows import CONTEXT_SCHEMA, class_numbers

_TREES = 200
_CATEGORIES = ("proto", "service", "conn_state", "history")
#: No addresses, no time, no uid: they name a capture and not a behaviour.
_NUMBERS = (
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
    codes = {name: _codes(train[name]) for name in _CATEGORIES}
    numbers = (*_NUMBERS, *(CONTEXT_SCHEMA if context else ()))
    model = RandomForestClassifier(n_estimators=_TREES, random_state=seed, n_jobs=jobs)
    model.fit(_features(train, numbers, codes), class_numbers(train, classes))
    predicted: npt.NDArray[np.int64] = model.predict(_features(test, numbers, codes)).astype(
        np.int64
    )
    return predicted


def _codes(column: pl.Series) -> dict[str, float]:
    """A number for each category of the training flows, in alphabetical order."""
    return {value: float(place) for place, value in enumerate(column.drop_nulls().unique().sort())}


def _features(
    flows: pl.DataFrame, names: Sequence[str], codes: dict[str, dict[str, float]]
) -> npt.NDArray[np.float32]:
    categories = [
        pl.col(name).replace_strict(known, default=_MISSING, return_dtype=pl.Float64)
        if known
        else pl.lit(_MISSING).alias(name)
        for name, known in codes.items()
    ]
    numbers = [pl.col(name).cast(pl.Float64) for name in names]
    frame = flows.select(*numbers, *categories).fill_null(_MISSING)
    return frame.to_numpy().astype(np.float32)
