"""The labels of IoT-23 and of logs labelled like it (doi 10.5281/zenodo.4743746).

A record carries ``label`` (Benign, Malicious, or a class of one's own) and ``detail``, which says
what a Malicious one is. The case does not matter, and unset values have many spellings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import polars as pl

View = Literal["classes", "binary"]

BENIGN = "Benign"
MALICIOUS = "Malicious"

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


#: What logs write where nobody judged the flow.
_UNLABELLED = ("-", "(empty)", "", "background", "unknown")


def class_order(view: View) -> tuple[str, ...]:
    """The classes of a view in their fixed order."""
    return CLASSES if view == "classes" else BINARY_CLASSES


def classed(flows: pl.DataFrame, classes: Sequence[str] = CLASSES) -> pl.DataFrame:
    """Add ``class``: what ``label`` and ``detail`` say each flow is.

    Null where the flow carries no label. A flow labelled Benign is Benign whatever its detail; one
    labelled Malicious is of the class that its detail names, or Malicious if that is among
    ``classes`` (the binary view) or there is no detail; any other label is a class by itself.
    Names are compared without case and then spelt as in ``classes`` or ``CLASSES``; a name that
    is in neither stays as it is written.
    """
    label, detail = pl.col("label").str.strip_chars(), pl.col("detail").str.strip_chars()
    malicious = label.str.to_lowercase() == MALICIOUS.lower()
    name = label
    if MALICIOUS not in classes:
        name = pl.when(malicious & ~_unset(detail)).then(detail).otherwise(label)
    known = {one.lower(): one for one in (*BINARY_CLASSES, *CLASSES, *classes)}
    spelt = name.str.to_lowercase().replace_strict(known, default=name)
    return flows.with_columns(pl.when(~_unset(label)).then(spelt).alias("class"))


def _unset(text: pl.Expr) -> pl.Expr:
    return text.is_null() | text.str.to_lowercase().is_in(_UNLABELLED)
