"""Captures of many networks: which belong together, and how good their labels are.

Two captures of one laboratory share its sensor, its addresses and its way of labelling, so a
claim about unseen networks leaves out whole groups. A group is the part of a capture's name before
``__``. The captures of IoT-23 are one group: one laboratory recorded them on one network, and
families of malware come back from capture to capture.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from gradsense.data.datasets.captures import Capture, Reservoir, discover, in_context
from gradsense.data.datasets.iot23 import BENIGN, MALICIOUS, classed
from gradsense.data.flows import CONTEXT_SCHEMA, FLOW_SCHEMA
from gradsense.data.sources.lines import Tally
from gradsense.data.sources.stream import is_synthetic
from gradsense.errors import InputError

IOT23 = "iot-23"
SCANS = "scans"
UNGRADED = "-"
#: Beside the captures: ``capture`` and ``grade`` are read, other columns may be there.
TABLE = "TABLE.csv"

_IOT23_PREFIXES = ("CTU-IoT-Malware-Capture-", "CTU-Honeypot-Capture-")
#: Runs of the same scanners with much the same options, collected under several names.
_SCAN_GROUPS = ("scan-whitehat", "slips", "vulnscan-xscan")
_SCAN_PREFIX = "nmap-"


@dataclass(frozen=True)
class Collection:
    """Labelled flows of many networks.

    Attributes:
        flows: ``FLOW_SCHEMA``, ``CONTEXT_SCHEMA``, ``capture``, ``group``, ``grade``, ``kind`` (the
            detailed class) and ``class`` (Benign or Malicious); by capture, then line.
        tally: lines read and dropped; flows without a label count as neither.
        unlabelled: flows without a label, which are left out.
        synthetic: whether any log is marked as generated.
    """

    flows: pl.DataFrame
    tally: Tally
    unlabelled: int
    synthetic: bool


def group_of(capture: str) -> str:
    """The group of a capture, by its name or its path below the data's root.

    >>> group_of("elclab__scan"), group_of("nmap-lab__mikel"), group_of("site-3")
    ('elclab', 'scans', 'site-3')
    """
    name = capture.rpartition("/")[2]
    if name.startswith(_IOT23_PREFIXES):
        return IOT23
    group = name.partition("__")[0]
    return SCANS if group in _SCAN_GROUPS or group.startswith(_SCAN_PREFIX) else group


def grades(captures: Iterable[Capture], root: Path) -> dict[str, str]:
    """The grade of each capture's labels, by its name: that of the nearest ``TABLE.csv`` above it.

    A by the data's authors, S by the scenario, R by a rule, U assumed; ``UNGRADED`` without one.
    IoT-23's authors labelled it.

    Raises:
        InputError: a table without the two columns.
    """
    tables: dict[Path, dict[str, str]] = {}
    found = {}
    for capture in captures:
        name = capture.name.rpartition("/")[2]
        grade = "A" if name.startswith(_IOT23_PREFIXES) else UNGRADED
        for folder in capture.path.parents:
            if folder not in tables:
                tables[folder] = _table(folder / TABLE)
            if name in tables[folder]:
                grade = tables[folder][name]
                break
            if folder == root:
                break
        found[capture.name] = grade
    return found


def load_groups(
    root: Path,
    *,
    cap: int = 2000,
    seed: int,
    strict: bool = False,
    on_file: Callable[[str, int, int], None] | None = None,
) -> Collection:
    """Read all captures at ``root``, at most ``cap`` flows of each capture and kind.

    Args:
        cap: 0 keeps all. Scans and floods are thousands of equal flows.
        seed: of the draw under the cap.
        strict: a malformed line is an error instead of being counted.
        on_file: called with ``(capture name, index from 0, number of captures)`` before each file.

    Raises:
        InputError: no captures, an unreadable log, no labelled flow, or fewer than two groups.
    """
    captures, tally, unlabelled = discover(root), Tally(), 0
    graded, frames = grades(captures, root), []
    for index, capture in enumerate(captures):
        if on_file is not None:
            on_file(capture.name, index, len(captures))
        reservoir = Reservoir(cap, f"{seed}/{capture.name}")
        for flows in in_context(capture, tally=tally, strict=strict):
            labelled = classed(flows).filter(pl.col("class").is_not_null())
            unlabelled += flows.height - labelled.height
            reservoir.add(labelled)
        frames.append(
            reservoir.frame().with_columns(
                capture=pl.lit(capture.name),
                group=pl.lit(group_of(capture.name)),
                grade=pl.lit(graded[capture.name]),
            )
        )
    benign = pl.when(pl.col("kind") == BENIGN).then(pl.lit(BENIGN)).otherwise(pl.lit(MALICIOUS))
    flows = (
        pl.concat(frames).rename({"class": "kind"}).with_columns(benign.alias("class"))
    ).select(*FLOW_SCHEMA, *CONTEXT_SCHEMA, "capture", "group", "grade", "kind", "class")
    if flows["group"].n_unique() < 2:
        raise InputError(
            "labelled flows of two groups of networks or more are needed to leave one out",
            hint="lay them out as GROUP__NAME/bro/conn.log.labeled, a group one laboratory or site",
            file=root,
        )
    return Collection(flows, tally, unlabelled, any(is_synthetic(one.path) for one in captures))


def _table(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as lines:
        try:
            return {row["capture"]: row["grade"] or UNGRADED for row in csv.DictReader(lines)}
        except (KeyError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(
                f"cannot be read as a table of grades ({error})",
                hint="give it the columns capture and grade",
                file=path,
            ) from error
