"""Splits: nothing lost, no compact text in two parts, shares near the target, time kept."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.data.datasets.split import Split, split


def parts(found: Split) -> list[pl.DataFrame]:
    return [found.train, found.test, found.validation]


def flows(groups: list[tuple[str, int]]) -> pl.DataFrame:
    """One text per ``(class, size)``."""
    rows = [
        (f"{name}-{index}", name) for index, (name, size) in enumerate(groups) for _ in range(size)
    ]
    return pl.DataFrame(rows, schema={"compact": pl.String, "class": pl.String}, orient="row")


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(
        st.tuples(st.sampled_from(["Benign", "DDoS", "C&C"]), st.integers(1, 40)),
        min_size=1,
        max_size=30,
    ),
    how=st.sampled_from(["grouped", "random"]),
    seed=st.integers(0, 5),
)
def test_properties(groups: list[tuple[str, int]], how: str, seed: int) -> None:
    frame = flows(groups).with_row_index("row")
    found = parts(split(frame, how=how, seed=seed))  # type: ignore[arg-type]
    assert all(part["row"].is_sorted() for part in found)
    assert pl.concat(found).sort("row").equals(frame)
    if how == "grouped":
        texts = [set(part["compact"]) for part in found]
        assert sum(map(len, texts)) == frame["compact"].n_unique()
    unit = "compact" if how == "grouped" else "row"
    for name, members in frame.group_by("class"):
        present = [name[0] in part["class"] for part in found]
        assert present[0]
        assert present[1] == (members[unit].n_unique() >= 2)
    again = parts(split(frame, how=how, seed=seed))  # type: ignore[arg-type]
    assert all(a.equals(b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize(
    ("how", "expected"), [("grouped", [0.7, 0.2, 0.1]), ("random", [0.7, 0.1, 0.2])]
)
def test_shares_of_training_test_and_validation(how: str, expected: list[float]) -> None:
    frame = flows([("Benign", 1 + i % 17) for i in range(400)] + [("DDoS", 3)] * 200)
    found = split(frame, how=how, seed=3)  # type: ignore[arg-type]
    for name, total in frame["class"].value_counts().iter_rows():
        shares = [(part["class"] == name).sum() / total for part in parts(found)]
        assert shares == pytest.approx(expected, abs=0.01)
    other = split(frame, how=how, seed=4)  # type: ignore[arg-type]
    assert not other.test.equals(found.test)


def test_one_text_of_thousands_goes_to_training() -> None:
    frame = flows([("DDoS", 5000)] + [("DDoS", 1)] * 20)
    for seed in range(5):
        found = split(frame, seed=seed)
        assert found.train["compact"].value_counts()["count"].max() == 5000
        assert found.test.height
        assert found.validation.height


def test_a_contradicting_text_stays_together() -> None:
    frame = flows([("Benign", 5), ("DDoS", 5)] * 10)
    twins = pl.DataFrame({"compact": ["Benign-0"] * 3, "class": ["DDoS"] * 3})
    found = parts(split(pl.concat([frame, twins]), seed=0))
    assert sum("Benign-0" in part["compact"] for part in found) == 1


def test_by_time_the_past_trains_of_every_capture() -> None:
    frame = pl.DataFrame(
        {"capture": ["a"] * 10 + ["b"] * 20, "at": [*range(10), *range(20)], "class": ["x"] * 30}
    )
    found = split(frame, how="time", seed=0)
    at = {
        name: part["at"].filter(part["capture"] == "b").to_list()
        for name, part in vars(found).items()
    }
    assert at["train"] == [*range(14)]
    assert at["validation"] == [14, 15]
    assert at["test"] == [*range(16, 20)]
    for part, rows in zip(parts(found), (7, 2, 1), strict=True):
        assert (part["capture"] == "a").sum() == rows
    assert split(frame, how="time", seed=1).test.equals(found.test)


def test_by_time_no_row_of_a_capture_trains_after_one_that_tests() -> None:
    for rows in range(40):
        at = list(range(rows))
        frame = pl.DataFrame({"capture": ["a"] * rows, "at": at, "class": ["x"] * rows})
        found = split(frame, how="time", seed=0)
        order = [*found.train["at"], *found.validation["at"], *found.test["at"]]
        assert order == at
