"""Flows to calibrate and verify on: a bounded sample of logs, or synthetic traffic."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from gradsense.data.datasets.captures import Reservoir, discover, in_context
from gradsense.data.sources.stream import is_synthetic
from gradsense.data.synthetic.traffic import write_fleet
from gradsense.data.tally import Tally
from gradsense.errors import InputError
from gradsense.tasks.task import get_task

#: Flows of each class of each capture, as many as training takes; unlabelled is a class here.
MOST = 1000

_SITES, _FLOWS, _SEED = 6, 500, 20_240


@dataclass(frozen=True)
class Sample:
    """Flows with context and ``class``, which is null where a flow has no label.

    ``source`` is their name in messages, ``dropped`` counts malformed lines.
    """

    flows: pl.DataFrame
    source: str
    synthetic: bool
    dropped: int = 0

    def known(self, labels: Sequence[str]) -> pl.DataFrame:
        """The flows of these classes."""
        return self.flows.filter(pl.col("class").is_in(list(labels)))


def draw(data: Path, labels: Sequence[str], most: int = MOST) -> Sample:
    """At most ``most`` flows of each class of each capture, drawn uniformly, the same each time.

    Args:
        data: a Zeek or Suricata log, or a folder of captures, labelled or not.
        labels: of the model; a binary model reads labels as Benign and Malicious.

    Raises:
        InputError: no captures, an unreadable log, or no flows.
    """
    tally, captures = Tally(), discover(data)
    parts = []
    for capture in captures:
        reservoir = Reservoir(most, capture.name)
        for flows in in_context(capture, tally=tally):
            reservoir.add(get_task().classed(flows, labels))
        parts += [reservoir.frame()] if reservoir.seen else []
    if not parts:
        raise InputError("the logs hold no flows", hint="give logs with flows", file=data)
    return Sample(
        pl.concat(parts),
        source=data.resolve().name,
        synthetic=any(is_synthetic(capture.path) for capture in captures),
        dropped=tally.total_dropped,
    )


def synthetic_sample(*, labelled: bool) -> Sample:
    """Built-in synthetic traffic, where no logs are given.

    Args:
        labelled: keep the labels, which only a model trained on such traffic knows.
    """
    with tempfile.TemporaryDirectory(prefix="gradsense-") as folder:
        write_fleet(Path(folder), sites=_SITES, flows=_FLOWS, seed=_SEED)
        flows = draw(Path(folder), ()).flows
    if not labelled:
        flows = flows.with_columns(pl.lit(None, dtype=pl.String).alias("class"))
    return Sample(flows, "built-in synthetic traffic", synthetic=True)
