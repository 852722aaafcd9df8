from __future__ import annotations

import polars as pl
import pytest

from gradsense.data.datasets.leakage import Leakage, leakage, sentence

COLUMNS = ["text", "compact", "capture", "orig_h"]


def frame(*rows: tuple[str, str, str, str | None]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=dict.fromkeys(COLUMNS, pl.String), orient="row")


def test_four_flows_by_hand() -> None:
    train = frame(
        ("x 1", "x", "a", "10.0.0.1"), ("x 1", "x", "a", "10.0.0.1"), ("z", "z", "b", None)
    )
    test = frame(
        ("x 1", "x", "a", "10.0.0.1"),  # all of it
        ("x 2", "x", "a", "10.0.0.2"),  # the host is another
        ("y 1", "y", "b", "10.0.0.1"),  # that address is of another capture
        ("y 1", "y", "c", None),  # nothing
    )
    found = leakage(train, test)
    assert found == Leakage(text=0.25, compact=0.5, host=0.25, capture=0.75)
    assert "compact text of 50.0 %" in sentence(found)
    assert leakage(train, test[:0]) == Leakage(0, 0, 0, 0)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_frame_against_itself_and_against_nothing(share: float) -> None:
    test = frame(("x", "x", "a", "h"), ("y", "y", "b", None))
    train = test if share else test[:0]
    assert leakage(train, test) == Leakage(share, share, share, share)
