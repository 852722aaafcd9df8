"""Nothing that names a capture, or that says where a row stands, can reach a feature.

Rows are permuted, files and folders renamed, label columns shuffled, addresses exchanged; whatever
a model of the project can read of a flow stays the same. What a flow reads of others, it reads of
the time before it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from gradsense.config import settings
from gradsense.data.datasets.captures import load
from gradsense.data.flows import CONTEXT_SCHEMA
from gradsense.data.synthetic.traffic import write_fleet
from gradsense.experiments import forest
from gradsense.experiments.corpus import load_corpus
from gradsense.prompts.templates import Template, templates

Rows = list[list[str]]
Change = Callable[[Path, np.random.Generator], None]

TEMPLATES = {name: one for name, one in templates().items() if one.task.name == "flows"}


@pytest.fixture
def captures(tmp_path: Path) -> Path:
    write_fleet(tmp_path / "captures", sites=3, flows=300, seed=0)
    return tmp_path / "captures"


def rewrite(log: Path, change: Callable[[list[str], Rows], Rows]) -> None:
    """Change the rows of a log, given the names of its columns."""
    lines = log.read_text().splitlines()
    head = [line for line in lines if line.startswith("#")]
    names = next(line for line in head if line.startswith("#fields")).split("\t")[1:]
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    changed = ["\t".join(row) for row in change(names, rows)]
    log.write_text("\n".join([*head, *changed]) + "\n")


def logs(root: Path) -> list[Path]:
    return sorted(root.rglob("conn.log.labeled"))


def rows_permuted(root: Path, rng: np.random.Generator) -> None:
    for log in logs(root):
        rewrite(log, lambda _, rows: [rows[i] for i in rng.permutation(len(rows))])


def rows_in_blocks_by_class(root: Path, rng: np.random.Generator) -> None:
    for log in logs(root):
        rewrite(log, lambda _, rows: sorted(rows, key=lambda row: row[-1]))


def labels_permuted(root: Path, rng: np.random.Generator) -> None:
    def change(_: list[str], rows: Rows) -> Rows:
        dealt = rng.permutation(len(rows))
        return [[*row[:-1], rows[i][-1]] for row, i in zip(rows, dealt, strict=True)]

    for log in logs(root):
        rewrite(log, change)


def folders_renamed(root: Path, rng: np.random.Generator) -> None:
    for number, log in enumerate(reversed(logs(root))):
        log.parents[1].rename(root / f"capture-{number}")


def file_renamed(root: Path, rng: np.random.Generator) -> None:
    for log in logs(root):
        log.rename(log.with_name("conn.log"))


def captures_apart(root: Path, rng: np.random.Generator) -> None:
    """Each capture a year after the other."""

    def change(names: list[str], rows: Rows) -> Rows:
        at = names.index("ts")
        return [[*row[:at], f"{float(row[at]) + later:.6f}", *row[at + 1 :]] for row in rows]

    for number, log in enumerate(logs(root)):
        later = 31_536_000 * number
        rewrite(log, change)


def addresses_exchanged(root: Path, rng: np.random.Generator) -> None:
    """Each host gets another address of its own kind: same network, other host number."""

    def other(address: str) -> str:
        ip = ipaddress.ip_address(address)
        if ip.version == 6 or ip.is_multicast or ip.is_unspecified or address.endswith(".255"):
            return address
        number = int(ip)
        # 251 is prime: no two hosts of a network get one address, and none gets 255.
        return str(ipaddress.ip_address((number & ~0xFF) | ((number & 0xFF) * 5 % 251)))

    def change(names: list[str], rows: Rows) -> Rows:
        ends = {names.index("id.orig_h"), names.index("id.resp_h")}
        return [[other(cell) if i in ends else cell for i, cell in enumerate(row)] for row in rows]

    for log in logs(root):
        rewrite(log, change)


CHANGES: tuple[Change, ...] = (
    *(rows_permuted, rows_in_blocks_by_class, labels_permuted),
    *(folders_renamed, file_renamed, captures_apart, addresses_exchanged),
)
every_change = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


def by_uid(root: Path) -> pl.DataFrame:
    return load(root, cap=0, seed=0).flows.sort("uid")


@every_change
def test_no_change_of_names_order_or_labels_reaches_a_feature(
    captures: Path, change: Change
) -> None:
    before, files = by_uid(captures), {log: log.read_text() for log in captures.rglob("*.log*")}
    change(captures, np.random.default_rng(0))
    after = by_uid(captures)
    assert files != {log: log.read_text() for log in captures.rglob("*.log*")}
    assert before["uid"].to_list() == after["uid"].to_list()
    assert before["uid"].n_unique() == before.height > 700
    assert before.select(*CONTEXT_SCHEMA).equals(after.select(*CONTEXT_SCHEMA))
    for name, template in TEMPLATES.items():
        assert template.render(before).equals(template.render(after)), name
    np.testing.assert_array_equal(raw(before), raw(after))


def raw(flows: pl.DataFrame) -> np.ndarray:
    """The features of the random forest, with context."""
    return forest.features(flows, forest.codes(flows), context=True)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_reads_no_column_that_names_or_labels(template: Template) -> None:
    # ``orig_h`` and ``resp_h`` are read for their kind; the test above exchanges them.
    told = {name for field in template.fields for name in field.index.meta.root_names()}
    assert not told & {"ts", "uid", "label", "detail", "line", "capture", "class", "client"}


def test_the_forest_reads_no_column_that_names_or_labels() -> None:
    told = {*forest.NUMBERS, *forest.CATEGORIES}
    assert not told & {"ts", "uid", "orig_h", "resp_h", "label", "detail", "line", "capture"}


@pytest.mark.parametrize("change", [rows_permuted, rows_in_blocks_by_class, file_renamed])
def test_a_run_gets_the_same_flows_in_the_same_parts(captures: Path, change: Change) -> None:
    """Neither order nor file name chooses the sample, the split or the order of training."""
    for split in ("time", "grouped", "random"):
        run = settings(data=captures, cap=40, split=split)
        before = load_corpus(run).parts
        change(captures, np.random.default_rng(0))
        after = load_corpus(run).parts
        columns = ["uid", "text", "compact", "class", "client"]
        for name, frame in vars(before).items():
            assert frame.select(columns).equals(vars(after)[name].select(columns)), (split, name)


def test_context_comes_from_the_time_before(captures: Path) -> None:
    """Whatever happens later changes nothing: a log that ends earlier reads the same till then."""
    log = logs(captures)[0]
    whole = load(log, cap=0, seed=0).flows
    half = whole.head(whole.height // 2)
    kept = set(half["uid"])
    rewrite(log, lambda names, rows: [row for row in rows if row[names.index("uid")] in kept])
    assert (
        load(log, cap=0, seed=0).flows.drop("line", "capture").equals(half.drop("line", "capture"))
    )
