"""What a task is, and the registry of all tasks.

A task is one folder in this one, whose package defines ``TASK``. Its templates are the modules of
its own package ``templates`` that define ``WORDING``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Literal

import polars as pl

from gradsense import discovery
from gradsense.data.flows import Flows
from gradsense.data.networks import Networks
from gradsense.errors import InputError
from gradsense.tasks.fields import Field

#: The task where none is named.
DEFAULT = "flows"

Severity = Literal["info", "low", "medium", "high", "critical"]
Schema = Mapping[str, type[pl.DataType]]


@dataclass(frozen=True)
class ClassAdvice:
    """What an alert says about one class.

    Args:
        severity, title: of the alert.
        meaning: "it ...", the end of the alert's sentence.
        advice: what to do, in sentences.
        technique: of MITRE ATT&CK, or None.
    """

    severity: Severity
    title: str
    meaning: str
    advice: str
    technique: str | None = None


@dataclass(frozen=True)
class Wording:
    """What a prompt template says: one phrase a field, in order, joined by single spaces.

    A change of any phrase or bucket is a new version, because a trained model has learnt the old
    words. The model folder records name and version.

    Args:
        name: unique among the templates of all tasks.
        version: from 1.
        budget: the longest text in words. A word-level tokenizer spends one token a word.
        fields: the phrases.
    """

    name: str
    version: int
    budget: int
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Task:
    """What gradsense needs to know of the records that it learns from.

    Args:
        name: of its folder.
        schema: column to dtype of a record.
        classes: the known classes in their fixed order.
        normal: the class that raises no alert.
        classed: adds ``class`` to a frame of records: the label's class among those given, the
            label as written where it is none of them, null without a label.
        devices: the device that each record is about, given the operator's own networks.
        advice: what an alert says, by class.
        novel: the same of records that resemble nothing in training.
        other: the same of a class that is not in ``advice``; ``{label}`` stands for its name.
        wordings: the templates by name.
        history: columns that a summary of earlier records adds to a record.
        binary: the classes of the coarse view, the normal one and its opposite, if there is one.
    """

    name: str
    schema: Schema
    classes: tuple[str, ...]
    normal: str
    classed: Callable[[pl.DataFrame, Sequence[str]], pl.DataFrame]
    devices: Callable[[Flows, Networks], list[str]]
    advice: Mapping[str, ClassAdvice]
    novel: ClassAdvice
    other: ClassAdvice
    wordings: Mapping[str, Wording]
    history: Schema = field(default_factory=dict)
    binary: tuple[str, ...] = ()

    def check_labels(self, labels: Sequence[str]) -> None:
        """Without the normal class, a model would call everything an attack.

        Raises:
            InputError: ``normal`` is not among ``labels``.
        """
        if self.normal not in labels:
            raise InputError(
                f"the normal class '{self.normal}' is missing",
                hint=f"put it among {', '.join(labels)}",
                field="--labels",
            )


@cache
def tasks() -> dict[str, Task]:
    """All tasks by name."""
    packages = (import_module(f"{__package__}.{name}") for name in discovery.names(__package__))
    found: dict[str, Task] = {}
    for task in (package.TASK for package in packages if hasattr(package, "TASK")):
        discovery.add(found, task.name, task, __package__)
    return found


def get_task(name: str = DEFAULT) -> Task:
    """A task by name. Raises InputError for an unknown name.

    >>> get_task("flows").normal
    'Benign'
    """
    known = tasks()
    if name not in known:
        raise InputError(f"unknown task '{name}'", hint=f"use one of {', '.join(known)}")
    return known[name]


def wordings(package: str) -> dict[str, Wording]:
    """The templates that the modules of a package define as ``WORDING``, by name.

    Raises:
        GradsenseError: two have the same name.
    """
    modules = (import_module(f"{package}.{name}") for name in discovery.names(package))
    found: dict[str, Wording] = {}
    for wording in (module.WORDING for module in modules if hasattr(module, "WORDING")):
        discovery.add(found, wording.name, wording, package)
    return found
