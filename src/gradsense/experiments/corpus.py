"""From settings to the examples of every client: load, render, split, partition, encode."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import torch

from gradsense.config import RunSettings
from gradsense.data.datasets.captures import load
from gradsense.data.datasets.contradictions import contradictions, resolve
from gradsense.data.datasets.leakage import Leakage, leakage
from gradsense.data.datasets.order import warnings
from gradsense.data.datasets.partition import partition
from gradsense.data.datasets.split import Split, split
from gradsense.data.flows import class_numbers
from gradsense.data.synthetic.traffic import write_fleet
from gradsense.errors import InputError
from gradsense.learning.trainer import Examples
from gradsense.models.classifier import TextClassifier
from gradsense.prompts.templates import get_template
from gradsense.tasks.task import DEFAULT

OnFile = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Corpus:
    """Labelled flows, ready for the models.

    Attributes:
        parts: train, test and validation frames of ``FLOW_SCHEMA`` and ``CONTEXT_SCHEMA`` with
            ``text``, ``compact``, ``class``, ``capture``, ``client``.
        classes: class names; their places are the class numbers.
        synthetic: whether the traffic was generated.
        notes: what a person should know about this data, one sentence each.
    """

    parts: Split
    classes: tuple[str, ...]
    synthetic: bool
    notes: tuple[str, ...]

    @property
    def clients(self) -> list[str]:
        """Sites with at least one training flow, in the data's order."""
        return self.parts.train["client"].unique(maintain_order=True).to_list()

    @cached_property
    def leakage(self) -> Leakage:
        """What of the test flows training has seen."""
        return leakage(self.parts.train, self.parts.test)


def load_corpus(settings: RunSettings, on_file: OnFile | None = None) -> Corpus:
    """Read the captures that the settings name, or generate synthetic ones.

    Raises:
        InputError: unreadable data, labels without the normal one, or a split that leaves nothing
            to train or test on.
    """
    if settings.split == "network":
        raise InputError(
            "networks are left out by 'gradsense compare' alone",
            hint="use gradsense compare --split network, or another split here",
            field="--split",
        )
    template = get_template(settings.template)
    if template.task.name != DEFAULT:
        raise InputError(
            f"template '{template.name}' is of the task '{template.task.name}'",
            hint="captures hold flows; use another task from Python, as CONTRIBUTING.md shows",
            field="--template",
        )
    if settings.labels:
        template.task.check_labels(settings.labels)
    with ExitStack() as stack:
        root = settings.data
        if root is None:
            root = Path(stack.enter_context(TemporaryDirectory(prefix="gradsense-")))
            # The traffic is the same for all seeds of a comparison; splits and models differ.
            write_fleet(root, seed=0)
        dataset = load(
            root,
            cap=settings.kept,
            seed=settings.seed,
            view=settings.view,
            labels=settings.labels,
            unknown=settings.unknown_labels,
            strict=settings.strict,
            on_file=on_file,
        )
    flows = dataset.flows.with_columns(
        template.render(dataset.flows).alias("text"),
        get_template("compact").render(dataset.flows).alias("compact"),
    )
    report = contradictions(flows["text"], flows["class"])
    notes = list(dataset.tally.lines())
    if template.needs_context:
        notes += warnings(dataset.orders)
    notes += [
        f"capture {one.name}: {one.path.name} is read, {', '.join(log.name for log in one.unread)} "
        "beside it is not"
        for one in dataset.captures
        if one.unread
    ]
    if report.flows:
        notes.append(
            f"{report.flows:,} of {flows.height:,} flows read the same as a flow with another "
            f"label; --contradictions {settings.contradictions}"
        )
    parts = split(flows, how=settings.split, seed=settings.seed)
    train, touched = resolve(parts.train, settings.contradictions)
    if touched:
        notes.append(f"{touched:,} contradicting training flows relabelled or removed")
    parts = partition(
        Split(train=train, test=parts.test, validation=parts.validation),
        how=settings.partition,
        clients=settings.clients,
        alpha=settings.alpha,
        seed=settings.seed,
    )
    for name, frame in (("train", parts.train), ("test", parts.test)):
        if frame.is_empty():
            raise InputError(f"no flows left to {name} on", hint="give more flows, or raise --cap")
    if len(dataset.classes) < 2:
        raise InputError(
            f"every flow is of the class '{dataset.classes[0]}'",
            hint="give flows of two or more classes",
            file=settings.data,
        )
    trained = set(parts.train["client"].unique())
    silent = sorted(set(parts.test["client"].unique()) - trained)
    if silent:
        notes.append(f"sites without a training flow, tested only: {', '.join(silent)}")
    untaught = sorted(set(parts.test["class"].unique()) - set(parts.train["class"].unique()))
    if untaught:
        notes.append(f"classes without a training flow, tested only: {', '.join(untaught)}")
    return Corpus(parts, dataset.classes, dataset.synthetic, tuple(notes))


def examples(frame: pl.DataFrame, corpus: Corpus, classifier: TextClassifier) -> Examples:
    """The flows of ``frame`` as token ids and class numbers, each distinct prompt once."""
    distinct = frame["text"].unique(maintain_order=True)
    rows = pl.DataFrame({"text": distinct, "row": np.arange(len(distinct))})
    index = frame.select("text").join(rows, on="text", how="left", maintain_order="left")["row"]
    return Examples(
        classifier.encode(distinct.to_list()),
        torch.from_numpy(index.to_numpy().astype(np.int64)),
        torch.from_numpy(class_numbers(frame, corpus.classes)),
    )


def by_client(frame: pl.DataFrame, whole: Examples) -> dict[str, Examples]:
    """``whole``, the examples of ``frame``, cut by client."""
    rows = frame.with_row_index("row").group_by("client", maintain_order=True).agg("row")
    return {
        client: whole.select(torch.tensor(members, dtype=torch.int64))
        for client, members in rows.iter_rows()
    }
