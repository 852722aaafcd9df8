"""Labels as written to classes: IoT-23's detailed classes, or Benign against Malicious."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

View = Literal["classes", "binary"]

BENIGN = "Benign"
MALICIOUS = "Malicious"
#: Stands for a label that says something which ``CLASSES`` does not know.
UNKNOWN = "?"

#: IoT-23's detailed classes in a fixed order, Benign first. The first ten are common to the
#: public samples, the others occur in the full data set (doi 10.5281/zenodo.4743746).
CLASSES: tuple[str, ...] = (
    BENIGN,
    "Attack",
    "C&C",
    "C&C-FileDownload",
    "C&C-HeartBeat-Attack",
    "C&C-Torii",
    "DDoS",
    "FileDownload",
    "Okiru",
    "PartOfAHorizontalPortScan",
    "C&C-HeartBeat",
    "C&C-HeartBeat-FileDownload",
    "C&C-Mirai",
    "C&C-PartOfAHorizontalPortScan",
    "Okiru-Attack",
    "PartOfAHorizontalPortScan-Attack",
    "Torii",
)
BINARY_CLASSES: tuple[str, ...] = (BENIGN, MALICIOUS)

_KNOWN = {name.lower(): name for name in CLASSES if name != BENIGN}
#: What logs write where nobody judged the flow.
_UNLABELLED = ("-", "(empty)", "", "background", "unknown")


def class_order(view: View) -> tuple[str, ...]:
    """The classes of a view in their fixed order."""
    return CLASSES if view == "classes" else BINARY_CLASSES


def normalise(frame: pl.DataFrame) -> pl.DataFrame:
    """Add ``class``, one of ``CLASSES``, from ``label`` and ``detail``, ignoring case.

    Benign with any detail is Benign. Null where the flow carries no label, ``UNKNOWN`` where
    the label, or the detail of a malicious flow, is not known.
    """
    detail = pl.col("detail").str.strip_chars().str.to_lowercase()
    return _with_class(frame, detail.replace_strict(_KNOWN, default=UNKNOWN))


def binary(frame: pl.DataFrame) -> pl.DataFrame:
    """Add ``class``, Benign or Malicious, from ``label`` alone; null and ``UNKNOWN`` as above."""
    return _with_class(frame, pl.lit(MALICIOUS))


def with_view(frame: pl.DataFrame, view: View) -> pl.DataFrame:
    """``normalise`` or ``binary``, by name."""
    return normalise(frame) if view == "classes" else binary(frame)


def _with_class(frame: pl.DataFrame, malicious: pl.Expr) -> pl.DataFrame:
    label = pl.col("label").str.strip_chars().str.to_lowercase()
    return frame.with_columns(
        pl.when(label.is_null() | label.is_in(_UNLABELLED))
        .then(pl.lit(None, dtype=pl.String))
        .when(label == "benign")
        .then(pl.lit(BENIGN))
        .when(label == "malicious")
        .then(malicious)
        .otherwise(pl.lit(UNKNOWN))
        .alias("class")
    )


def class_numbers(frame: pl.DataFrame, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """The ``class`` of each flow as its place in ``classes``, int64 of shape [flows]."""
    places = {name: place for place, name in enumerate(classes)}
    numbers = frame["class"].replace_strict(places, return_dtype=pl.Int64)
    return numbers.to_numpy().astype(np.int64)
