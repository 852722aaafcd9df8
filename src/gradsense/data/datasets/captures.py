"""Labelled captures on disk to one data set: discovery, labels, context and the cap per cell."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from gradsense.data.datasets.iot23 import View, class_order, classed
from gradsense.data.datasets.order import TimeOrder, in_time_order
from gradsense.data.flows import CONTEXT_SCHEMA, FLOW_SCHEMA, ContextWindow
from gradsense.data.sources.lines import Tally
from gradsense.data.sources.stream import is_synthetic, log_names, read_log
from gradsense.errors import InputError

UNLABELLED = "unlabelled"
UNKNOWN_LABEL = "unknown label"


@dataclass(frozen=True)
class Capture:
    """One site's log; ``name`` is unique within a data set, ``unread`` are logs beside it."""

    name: str
    path: Path
    unread: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """Labelled flows of several captures.

    Args:
        flows: ``FLOW_SCHEMA``, ``CONTEXT_SCHEMA``, ``capture`` and ``class``; ordered by capture,
            then time (``order.written_at``).
        classes: those that were named, or else the classes present, in canonical order.
        captures: all captures read, also those without a labelled flow.
        tally: lines read and dropped; flows without a usable label count as dropped.
        synthetic: whether any log is marked as generated.
        capped: ``(capture, class)`` to flows seen and flows kept.
        orders: what the order of each capture's rows says, by its name.
    """

    flows: pl.DataFrame
    classes: tuple[str, ...]
    captures: tuple[Capture, ...]
    tally: Tally
    synthetic: bool
    capped: dict[tuple[str, str], tuple[int, int]]
    orders: dict[str, TimeOrder]


def discover(root: Path) -> list[Capture]:
    """Find the captures at ``root``: a log file, or a folder at any depth above the logs.

    A capture is a folder with a log of any source in it or in its subfolder ``bro``, which is
    the layout of the public IoT-23. Symlinks to folders are followed, each folder being visited
    once. Sorted by name, which is the folder's name, or its path below ``root`` where two
    folders are called the same.

    Raises:
        InputError: ``root`` does not exist or holds no capture.
    """
    if root.is_file():
        folder = _capture_folder(root)
        return [Capture(folder.name if root.parent.name == "bro" else root.name, root)]
    if not root.is_dir():
        raise InputError("no such file or folder", hint="check the path", file=root)
    logs: dict[Path, list[Path]] = {}
    ranks = log_names()
    for place, files in _folders(root):
        for log in (place / name for name in ranks if name in files):
            logs.setdefault(_capture_folder(log), []).append(log)
    if not logs:
        raise InputError(
            "the folder holds no captures",
            hint="lay them out as CAPTURE/bro/conn.log.labeled, or name one log file",
            file=root,
        )
    names = [(folder.resolve() if folder == root else folder).name for folder in logs]
    captures = []
    for name, (folder, found) in zip(names, logs.items(), strict=True):
        unique = name if names.count(name) == 1 else folder.relative_to(root).as_posix()
        first, *unread = sorted(found, key=lambda log: ranks[log.name])
        captures.append(Capture(unique, first, tuple(unread)))
    return sorted(captures, key=lambda capture: capture.name)


def load(
    root: Path,
    *,
    cap: int = 1000,
    seed: int,
    view: View = "classes",
    labels: Sequence[str] = (),
    unknown: Literal["error", "drop"] = "error",
    strict: bool = False,
    on_file: Callable[[str, int, int], None] | None = None,
) -> Dataset:
    """Read all captures at ``root`` in one pass, each in time order.

    Memory is that of the kept flows and of ``order.HELD_ROWS`` others. Context columns see every
    flow of a log, also those that the cap or a missing label removes. The order of a log's rows
    changes neither a flow's context nor which flows the cap keeps.

    Args:
        cap: at most so many flows per ``(capture, class)``, drawn uniformly; 0 keeps all.
        seed: of that draw. The result depends on nothing else, block sizes included.
        view: IoT-23's detailed classes, or Benign against Malicious; without ``labels``.
        labels: the classes in order; none takes those of the view that are found.
        unknown: a label that is none of these is an error, or is dropped and counted.
        strict: a malformed line is an error instead of being counted.
        on_file: called with ``(capture name, index from 0, number of captures)`` before each file.

    Raises:
        InputError: no captures, an unreadable log, an unknown label, no labelled flow left, or
            a log of millions of rows far out of time order.
    """
    captures = discover(root)
    classes = tuple(labels) or class_order(view)
    tally = Tally()
    frames: list[pl.DataFrame] = []
    capped: dict[tuple[str, str], tuple[int, int]] = {}
    orders: dict[str, TimeOrder] = {}
    for index, capture in enumerate(captures):
        if on_file is not None:
            on_file(capture.name, index, len(captures))
        reservoir = Reservoir(cap, f"{seed}/{capture.name}")
        order = orders[capture.name] = TimeOrder()
        for flows in in_context(capture, tally=tally, strict=strict, order=order):
            reservoir.add(_usable(classed(flows, classes), classes, capture.path, tally, unknown))
        frames.append(reservoir.frame().with_columns(capture=pl.lit(capture.name)))
        for name, seen in reservoir.seen.items():
            capped[capture.name, name] = (seen, min(seen, cap) if cap else seen)
    columns = [*FLOW_SCHEMA, *CONTEXT_SCHEMA, "capture", "class"]
    flows = pl.concat(frames).select(columns)
    if not flows.height:
        raise _nothing_left(root, tally)
    present = set(flows["class"].unique())
    return Dataset(
        flows=flows,
        classes=tuple(name for name in classes if labels or name in present),
        captures=tuple(captures),
        tally=tally,
        synthetic=any(is_synthetic(capture.path) for capture in captures),
        capped=capped,
        orders=orders,
    )


def in_context(
    capture: Capture, *, tally: Tally, strict: bool = False, order: TimeOrder | None = None
) -> Iterator[pl.DataFrame]:
    """The flows of a capture in time order with context columns, block by block.

    Args:
        order: counts what the order of the file's own rows says.

    Raises:
        InputError: as ``read_log`` and ``in_time_order``.
    """
    blocks = read_log(capture.path, tally=tally, strict=strict)
    if order is not None:
        blocks = _watched(blocks, order)
    context = ContextWindow()
    return (context.add(flows) for flows in in_time_order(blocks, capture.path))


def _watched(blocks: Iterator[pl.DataFrame], order: TimeOrder) -> Iterator[pl.DataFrame]:
    for flows in blocks:
        order.add(flows)
        yield flows


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder below ``root`` once, and the names of its files; links after the rest."""
    pending, seen = [root], set[str]()
    while pending:
        for place, folders, files in os.walk(pending.pop(0)):
            real = os.path.realpath(place)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            paths = [Path(place) / name for name in folders]
            pending += [path for path in paths if path.is_symlink()]
            yield Path(place), files


def _capture_folder(log: Path) -> Path:
    return log.parent.parent if log.parent.name == "bro" else log.parent


def _usable(
    flows: pl.DataFrame, classes: Sequence[str], path: Path, tally: Tally, unknown: str
) -> pl.DataFrame:
    """The flows of these classes; the others move in the tally from read to dropped."""
    known = pl.col("class").is_in(classes).fill_null(value=False)
    bad = flows.filter(~known)
    if not bad.height:
        return flows
    for reason, rows in (
        (UNLABELLED, bad.filter(pl.col("class").is_null())),
        (UNKNOWN_LABEL, bad.filter(pl.col("class").is_not_null())),
    ):
        if not rows.height:
            continue
        line, label, detail = rows.row(0, named=True)["line"], rows["label"][0], rows["detail"][0]
        text = " ".join(part for part in (label, detail) if part)
        if reason == UNKNOWN_LABEL and unknown == "error":
            raise InputError(
                f"the label '{text}' is not known",
                hint="name the classes with --labels, pass --unknown-labels drop to leave such"
                " flows out, or use the binary view if the flow is marked Malicious",
                file=path,
                line=line,
                field="label",
            )
        tally.read -= rows.height
        tally.add(reason, path, line, "label", text, rows.height)
    return flows.filter(known)


def _nothing_left(root: Path, tally: Tally) -> InputError:
    if not tally.dropped:
        return InputError(
            "the logs hold headers but no flows", hint="give logs with flows", file=root
        )
    reason, drop = max(tally.dropped.items(), key=lambda item: item[1].count)
    return InputError(
        f"no labelled flow is left; {drop.count} lines dropped for '{reason}', here the first",
        hint="give labelled logs; `gradsense data inspect` shows what each file holds",
        file=drop.file,
        line=drop.line,
        field=drop.field,
    )


class Reservoir:
    """A uniform sample of at most ``cap`` flows per class, whatever blocks the flows come in.

    Every flow draws a priority from the key and its place among the flows added; the smallest
    stay. Without a class is a class here.

    Args:
        cap: 0 keeps all.
        key: of the sample: a capture's name, and a seed if there is one.
    """

    def __init__(self, cap: int, key: str) -> None:
        self.cap = cap
        digest = hashlib.sha256(key.encode()).digest()
        self.base = int.from_bytes(digest[:8], "little")
        self.count = 0
        self.seen: dict[str, int] = {}
        self.kept: list[pl.DataFrame] = []

    def add(self, flows: pl.DataFrame) -> None:
        for name, count in flows["class"].value_counts(sort=True).iter_rows():
            self.seen[name] = self.seen.get(name, 0) + count
        # By place in time, not by line: the order of a file's rows must not choose the sample.
        places = np.arange(self.count, self.count + flows.height, dtype=np.uint64)
        self.count += flows.height
        fresh = flows.with_columns(
            pl.Series("place", places), pl.Series("priority", _splitmix64(places, self.base))
        )
        self.kept.append(self._smallest([fresh]))
        self.kept = [self._smallest(self.kept)] if self.cap else self.kept

    def frame(self) -> pl.DataFrame:
        """The kept flows in the order in which they were added."""
        if not self.kept:
            return pl.DataFrame(schema=FLOW_SCHEMA | CONTEXT_SCHEMA | {"class": pl.String})
        return pl.concat(self.kept).sort("place").drop("priority", "place")

    def _smallest(self, frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
        together = pl.concat(frames)
        if not self.cap:
            return together
        return together.filter(pl.col("priority").rank("ordinal").over("class") <= self.cap)


def _splitmix64(
    values: np.ndarray[tuple[int], np.dtype[np.uint64]], base: int
) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Mix ``base + value`` of every row into 64 random-looking bits (Steele et al. 2014)."""
    golden, first, second = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
    x = values * np.uint64(golden) + np.uint64(base)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(first)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(second)
    return x ^ (x >> np.uint64(31))
