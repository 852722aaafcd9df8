"""The random forest on raw flow features, the baseline of language models (Breiman 2001)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

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


class Fields:
    """Raw fields of flows as numbers; categories are numbered as the training flows have them.

    Args:
        train: the training flows.
        context: also read the host's recent flows (CONTEXT_SCHEMA), for a fair comparison with a
            template that does.
    """

    def __init__(self, train: pl.DataFrame, *, context: bool) -> None:
        self._codes, self._context = codes(train), context

    def __call__(self, flows: pl.DataFrame) -> npt.NDArray[np.float32]:
        """Features [flows, fields]; unset numbers and unseen categories are -1."""
        return features(flows, self._codes, context=self._context)


def grown(
    train: pl.DataFrame,
    classes: Sequence[str],
    *,
    seed: int,
    context: bool = False,
    draws: int | None = None,
    jobs: int = 1,
) -> Callable[[pl.DataFrame], npt.NDArray[np.float64]]:
    """A forest of 200 trees grown on the pooled training flows: from flows to probabilities.

    Args:
        train: flows (FLOW_SCHEMA) with ``class``, one of ``classes``.
        classes: class names; their places are the class numbers.
        context: of ``Fields``.
        draws: flows that each tree draws, at most; by default as many as there are.
        jobs: processor cores. The forest is the same for any number.

    Returns:
        A function to class probabilities [flows, classes].
    """
    from sklearn.ensemble import RandomForestClassifier  # noqa: PLC0415  (an extra brings it)

    fields = Fields(train, context=context)
    most = draws if draws is not None and draws < len(train) else None
    model = RandomForestClassifier(
        n_estimators=_TREES, max_samples=most, random_state=seed, n_jobs=jobs
    )
    model.fit(fields(train), class_numbers(train, classes))

    def probabilities(flows: pl.DataFrame) -> npt.NDArray[np.float64]:
        table = np.zeros((len(flows), len(classes)))
        if len(flows):
            table[:, model.classes_] = model.predict_proba(fields(flows))
        return table

    return probabilities


def predict(
    train: pl.DataFrame,
    test: pl.DataFrame,
    classes: Sequence[str],
    *,
    seed: int,
    context: bool = False,
    jobs: int = 1,
) -> npt.NDArray[np.int64]:
    """Class numbers [test flows] by a forest; see ``grown``."""
    forest = grown(train, classes, seed=seed, context=context, jobs=jobs)
    predicted: npt.NDArray[np.int64] = forest(test).argmax(axis=1)
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
