from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from gradsense.data.flows import FLOW_SCHEMA, class_numbers
from gradsense.experiments.forest import predict
from gradsense.learning.metrics import score

CLASSES = ("Benign", "Scan")


def _flows(count: int, seed: int, *, service: str = "dns") -> pl.DataFrame:
    """Half DNS lookups, half SYNs that nobody answers; the address gives the class away."""
    scan = np.arange(count) % 2 == 1
    sizes = np.random.default_rng(seed).integers(40, 90, count)
    columns = {
        "proto": np.where(scan, "tcp", "udp"),
        "service": [None if one else service for one in scan],
        "conn_state": np.where(scan, "S0", "SF"),
        "history": np.where(scan, "S", "Dd"),
        "duration": [None if one else 0.1 for one in scan],
        "orig_bytes": sizes,
        "resp_p": np.where(scan, 23, 53),
        "class": np.where(scan, "Scan", "Benign"),
    }
    empty = pl.DataFrame(schema=FLOW_SCHEMA).clear(count)
    return empty.with_columns(
        pl.Series(name, values, dtype=FLOW_SCHEMA.get(name, pl.String))
        for name, values in columns.items()
    )


def test_it_learns_what_is_plain_to_see() -> None:
    test = _flows(20, 1)
    predicted = predict(_flows(60, 0), test, CLASSES, seed=0)
    scores = score(class_numbers(test, CLASSES), predicted, CLASSES)
    assert (scores.accuracy, scores.f1_macro) == (1.0, 1.0)


def test_categories_never_seen_in_training_are_no_error() -> None:
    predicted = predict(_flows(60, 0), _flows(20, 1, service="gopher"), CLASSES, seed=0)
    assert predicted.shape == (20,)


def test_one_seed_one_forest_whatever_the_cores() -> None:
    train, test = _flows(60, 0), _flows(40, 1)
    train = train.with_columns(pl.col("class").shuffle(seed=1))
    runs = [predict(train, test, CLASSES, seed=5, jobs=jobs) for jobs in (1, 2)]
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize("name", ["ts", "orig_h", "resp_h", "uid", "line"])
def test_addresses_and_time_have_no_influence(name: str) -> None:
    train, test = _flows(60, 0), _flows(40, 1)
    train = train.with_columns(pl.col("class").shuffle(seed=1))
    telling = train.with_columns(
        pl.col("class")
        .replace_strict({"Benign": "1", "Scan": "2"})
        .cast(FLOW_SCHEMA[name])
        .alias(name)
    )
    np.testing.assert_array_equal(
        predict(train, test, CLASSES, seed=5), predict(telling, test, CLASSES, seed=5)
    )
