"""Partitions: nothing lost, the same client mix in every part, reproducible."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.data.datasets.partition import partition
from gradsense.data.datasets.split import Split
from gradsense.errors import InputError


def parts(train: int = 4000, test: int = 1000) -> Split:
    def frame(rows: int) -> pl.DataFrame:
        index = pl.int_range(rows, eager=True)
        return pl.DataFrame(
            {
                "row": index,
                "class": (index % 4).cast(pl.String),
                "capture": (index % 3).cast(pl.String),
            }
        )

    return Split(frame(train), frame(test), frame(test // 2))


def frames(found: Split) -> list[pl.DataFrame]:
    return [found.train, found.test, found.validation]


def test_natural_is_the_capture() -> None:
    found = partition(parts(), seed=0)
    assert all((part["client"] == part["capture"]).all() for part in frames(found))
    assert partition(parts(), clients=3, seed=0).train["client"].n_unique() == 3


def test_iid_is_even() -> None:
    found = partition(parts(), how="iid", clients=7, seed=0)
    counts = found.train["client"].value_counts()["count"]
    assert counts.max() - counts.min() <= 1  # type: ignore[operator]
    assert sorted(found.train["client"].unique())[::6] == ["client-0001", "client-0007"]


@settings(max_examples=40, deadline=None)
@given(
    how=st.sampled_from(["dirichlet", "iid"]),
    clients=st.integers(1, 30),
    alpha=st.floats(0.05, 100),
    seed=st.integers(0, 9),
)
def test_properties(how: str, clients: int, alpha: float, seed: int) -> None:
    given_parts = parts(train=30 + clients, test=20)
    options = {"how": how, "clients": clients, "alpha": alpha, "seed": seed}
    found = partition(given_parts, **options)  # type: ignore[arg-type]
    assert found.train["client"].n_unique() == clients
    for before, after in zip(frames(given_parts), frames(found), strict=True):
        assert after.drop("client").equals(before)
    again = partition(given_parts, **options)  # type: ignore[arg-type]
    assert all(a.equals(b) for a, b in zip(frames(found), frames(again), strict=True))


def skew(train: pl.DataFrame) -> float:
    """Mean over clients of the largest class share."""
    counts = train.pivot(on="class", index="client", values="row", aggregate_function="len")
    table = counts.drop("client").fill_null(0).to_numpy()
    return float((table.max(axis=1) / table.sum(axis=1)).mean())


def test_alpha_sets_the_skew_and_parts_agree() -> None:
    low = partition(parts(), how="dirichlet", clients=10, alpha=0.1, seed=0)
    high = partition(parts(), how="dirichlet", clients=10, alpha=1000, seed=0)
    assert skew(low.train) > 0.6
    assert skew(high.train) == pytest.approx(0.25, abs=0.03)
    shares = [
        part.group_by("client", "class").agg(pl.len() / part.height) for part in frames(low)[:2]
    ]
    both = shares[0].join(shares[1], on=["client", "class"], how="full", coalesce=True)
    gaps = (both["len"].fill_null(0) - both["len_right"].fill_null(0)).abs()
    assert gaps.max() < 0.005  # type: ignore[operator]
    assert not partition(parts(), how="dirichlet", clients=10, alpha=0.1, seed=1).train.equals(
        low.train
    )


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"how": "iid"}, "clients"),
        ({"how": "dirichlet", "clients": 5000}, "clients"),
        ({"how": "natural", "clients": 2}, "clients"),
    ],
)
def test_bad_arguments(options: dict[str, object], field: str) -> None:
    with pytest.raises(InputError) as caught:
        partition(parts(), seed=0, **options)  # type: ignore[arg-type]
    assert caught.value.field == field
