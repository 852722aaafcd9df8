"""Templates turn records into prompts.

A task says what a template's words are (``tasks.task.Wording``); here they become text, for many
records at once and for one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from gradsense.errors import InputError
from gradsense.tasks.fields import Record
from gradsense.tasks.task import Task, Wording, get_task, tasks


@dataclass(frozen=True)
class Template(Wording):
    """How a record of a task reads as text.

    Args:
        task: whose records they are.

    >>> get_template("compact").needs_context, get_template("context").needs_context
    (False, True)
    """

    task: Task = field(default_factory=get_task, repr=False, compare=False)

    def render(self, frame: pl.DataFrame) -> pl.Series:
        """Texts of the records in ``frame``: a String series ``text``, same height, no nulls.

        ``frame`` has the columns of the task's schema, and those of its history too where the
        template ``needs_context``.
        """
        words = pl.concat_str([field.text for field in self.fields], separator=" ")
        return frame.select(words.alias("text")).to_series()

    def indices(self, frame: pl.DataFrame) -> npt.NDArray[np.uint16]:
        """The phrase ids of the records in ``frame``, [records, fields]: a phrase of each field.

        ``frame`` as for ``render``.
        """
        picked = frame.select(
            field.index.cast(pl.UInt16).alias(field.name) for field in self.fields
        )
        return np.ascontiguousarray(picked.to_numpy(), dtype=np.uint16)

    def pick(self, row: Record) -> npt.NDArray[np.uint16]:
        """As ``indices`` for one record, [1, fields], in microseconds; ``row`` has those keys."""
        return np.array([[field.pick(row) for field in self.fields]], dtype=np.uint16)

    def texts(self, indices: npt.NDArray[np.uint16]) -> list[str]:
        """The prompts of these phrase ids, [records, fields]."""
        columns = [
            [field.phrases[place] for place in column]
            for field, column in zip(self.fields, indices.T.tolist(), strict=True)
        ]
        return [" ".join(phrases) for phrases in zip(*columns, strict=True)]

    def vocabulary(self) -> tuple[str, ...]:
        """Every word that ``render`` can emit, once, in a fixed order."""
        phrases = (phrase for field in self.fields for phrase in field.phrases)
        return tuple(dict.fromkeys(word for phrase in phrases for word in phrase.split()))

    @property
    def length(self) -> int | None:
        """Words of every text, or None where they differ."""
        counts = [{len(phrase.split()) for phrase in field.phrases} for field in self.fields]
        return sum(min(one) for one in counts) if all(len(one) == 1 for one in counts) else None

    @property
    def needs_context(self) -> bool:
        """Whether ``render`` reads the columns of the task's history."""
        columns = {name for field in self.fields for name in field.index.meta.root_names()}
        return not columns.isdisjoint(self.task.history)


def templates() -> dict[str, Template]:
    """The templates of all tasks by name."""
    return {
        name: Template(**vars(wording), task=task)
        for task in tasks().values()
        for name, wording in task.wordings.items()
    }


def get_template(name: str) -> Template:
    """A template by name. Raises InputError for an unknown name."""
    known = templates()
    if name not in known:
        raise InputError(f"unknown prompt template '{name}'", hint=f"use one of {', '.join(known)}")
    return known[name]
