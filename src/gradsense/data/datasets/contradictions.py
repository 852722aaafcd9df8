"""Flows that read the same but carry different labels: how many there are, what to do about it.

IoT-23 has them: benign tcp S0 flows of one capture look the same as
port scans of another. No model can learn both, so they bound its accuracy from above. They are
kept by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from gradsense.data.datasets.iot23 import BINARY_CLASSES, CLASSES

How = Literal["keep", "majority", "drop"]
_TOP_PAIRS = 10
_ORDER = {name: rank for rank, name in enumerate(dict.fromkeys((*CLASSES, *BINARY_CLASSES)))}


@dataclass(frozen=True)
class ContradictionReport:
    """``texts`` with more than one class, the ``flows`` in them, and the commonest pairs.

    ``pairs`` holds ``(class A, class B, flows)``: flows of class A or B in texts that have both,
    most flows first, at most ten.
    """

    texts: int
    flows: int
    pairs: tuple[tuple[str, str, int], ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "texts": self.texts,
            "flows": self.flows,
            "pairs": [{"classes": [a, b], "flows": flows} for a, b, flows in self.pairs],
        }


def contradictions(text: pl.Series, label: pl.Series) -> ContradictionReport:
    """Report on texts that occur with several classes; flows without a class do not count."""
    return report_counts(text_counts(pl.DataFrame({"text": text, "class": label}).drop_nulls()))


def text_counts(frame: pl.DataFrame) -> pl.DataFrame:
    """The ``flows`` of each distinct ``text`` and ``class``."""
    return frame.group_by("text", "class").agg(pl.len().cast(pl.Int64).alias("flows"))


def report_counts(counts: pl.DataFrame) -> ContradictionReport:
    """The same from counts: one row per distinct ``text`` and ``class`` with its ``flows``."""
    several = counts.filter(pl.len().over("text") > 1)
    ranked = several.with_columns(rank=class_rank())
    pairs = (
        ranked.join(ranked, on="text")
        .filter(
            (pl.col("rank") < pl.col("rank_right"))
            | ((pl.col("rank") == pl.col("rank_right")) & (pl.col("class") < pl.col("class_right")))
        )
        .group_by("class", "class_right")
        .agg((pl.col("flows") + pl.col("flows_right")).sum().alias("flows"))
        .sort(["flows", "class", "class_right"], descending=[True, False, False])
        .head(_TOP_PAIRS)
    )
    return ContradictionReport(
        texts=several["text"].n_unique(),
        flows=int(several["flows"].sum()),
        pairs=tuple(pairs.iter_rows()),
    )


def majority_class(frame: pl.DataFrame) -> pl.DataFrame:
    """``text`` and its most frequent ``class``, ties to the canonically first; sorted by text."""
    return (
        text_counts(frame)
        .with_columns(rank=class_rank())
        .sort(["text", "flows", "rank", "class"], descending=[False, True, False, False])
        .unique("text", keep="first", maintain_order=True)
        .select("text", "class")
    )


def resolve(frame: pl.DataFrame, how: How = "keep") -> tuple[pl.DataFrame, int]:
    """Treat contradicting flows of a training frame with columns ``text`` and ``class``.

    Args:
        how: ``keep`` leaves them as they are; ``majority`` gives every flow its text's most
            frequent class, ties to the canonically first; ``drop`` removes every flow of a
            contradicting text.

    Returns:
        The frame, rows in their order, and how many flows were relabelled or removed.
    """
    if how == "keep":
        return frame, 0
    if how == "drop":
        kept = frame.filter(pl.col("class").n_unique().over("text") == 1)
        return kept, frame.height - kept.height
    major = majority_class(frame).rename({"class": "major"})
    joined = frame.join(major, on="text", how="left", maintain_order="left")
    changed = int((joined["class"] != joined["major"]).sum())
    return frame.with_columns(joined["major"].alias("class")), changed


def class_rank() -> pl.Expr:
    """Rank of ``class`` in the canonical order; classes outside it come last."""
    return pl.col("class").replace_strict(_ORDER, default=len(_ORDER), return_dtype=pl.Int64)
