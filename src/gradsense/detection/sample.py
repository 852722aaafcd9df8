"""Flows to calibrate and verify on: a bounded sample of logs, or synthetic traffic."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from gradsense.data.context import ContextWindow
from gradsense.data.datasets.captures import Capture, discover, splitmix64
from gradsense.data.datasets.labels import MALICIOUS, View, with_view
from gradsense.data.sources.zeek import is_synthetic, read_conn
from gradsense.data.synthetic.traffic import write_fleet
from gradsense.data.tally import Tally
from gradsense.errors import InputError

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
        data: a Zeek ``conn.log`` or a folder of captures, labelled or not.
        labels: of the model; a binary model reads labels as Benign and Malicious.

    Raises:
        InputError: no captures, an unreadable log, or no flows.
    """
    view: View = "binary" if MALICIOUS in labels else "classes"
    tally, captures = Tally(), discover(data)
    parts = [part for capture in captures for part in _some(capture, view, most, tally)]
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


def _some(capture: Capture, view: View, most: int, tally: Tally) -> list[pl.DataFrame]:
    """A capture's part of the sample, one frame or none. Memory holds it and one block."""
    base = int.from_bytes(hashlib.sha256(capture.name.encode()).digest()[:8], "little")
    context, kept = ContextWindow(), list[pl.DataFrame]()
    for block in read_conn(capture.path, tally=tally):
        flows = with_view(context.add(block), view)
        priority = splitmix64(flows["line"].to_numpy().astype(np.uint64), base)
        both = pl.concat([*kept, flows.with_columns(pl.Series("priority", priority))])
        kept = [both.filter(pl.col("priority").rank("ordinal").over("class") <= most)]
    return [one.drop("priority").sort("line") for one in kept]
