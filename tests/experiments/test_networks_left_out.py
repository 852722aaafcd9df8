"""Networks left out: nothing of a group trains, calibrates or counts where it must not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from gradsense.config import RunSettings, settings
from gradsense.errors import InputError
from gradsense.experiments.corpus import Corpus
from gradsense.experiments.forest import Fields
from gradsense.experiments.network_results import (
    CaptureCounts,
    GroupRow,
    figures,
    load_groups_of,
    save_groups,
    summaries,
)
from gradsense.experiments.network_table import markdown, sheets
from gradsense.experiments.networks_left_out import (
    left_out,
    network_corpus,
    pairs_won,
    plan_networks,
)
from gradsense.experiments.references import references
from gradsense.experiments.references.reference import Tabular
from gradsense.experiments.references.table_of_flows import FlowTable
from tests.data.test_groups import BENIGN, FLOOD, SCAN, write_capture

METHODS = ["gsfs", *(name for name, one in references().items() if isinstance(one, Tabular))]


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("networks")
    for name in ("x__1", "x__2", "y__1"):
        write_capture(root, name, [BENIGN, SCAN, BENIGN, FLOOD] * 30)
    write_capture(root, "z__1", [BENIGN] * 40)
    grades = "".join(f"{name},{grade}\n" for name, grade in (("x__1", "S"), ("x__2", "R")))
    (root / "TABLE.csv").write_text(f"capture,grade\n{grades}y__1,A\n")
    return root


def run_of(root: Path, **values: object) -> RunSettings:
    return settings(data=root, split="network", **values)


@pytest.fixture(scope="module")
def corpus(networks: Path) -> Corpus:
    return network_corpus(run_of(networks))


def counts(capture: str, malicious: int, benign: int, found: int, false: int) -> CaptureCounts:
    return CaptureCounts(
        capture=capture,
        malicious=malicious,
        benign=benign,
        judged=benign,
        found=found,
        false=false,
        found_calibrated=found,
        false_calibrated=0,
    )


def row(method: str, group: str, wins: list[list[float]], *captures: CaptureCounts) -> GroupRow:
    return GroupRow(
        method=method,
        kind="reference",
        seed=0,
        group=group,
        grades="A",
        captures=list(captures),
        wins=wins,
        threshold=0.5,
        calibrated=None,
        texts_seen=0.25,
        compact_seen=0.5,
        hosts_seen=1.0,
        uplink_bytes=None,
        seconds=0.1,
    )


def test_every_method_sees_the_attacks_of_a_group_that_it_never_saw(
    networks: Path, corpus: Corpus
) -> None:
    for method in METHODS:
        rows = left_out(corpus, run_of(networks, algorithm=method))
        assert [one.group for one in rows] == ["x", "y", "z"]
        assert [one.grades for one in rows] == ["RS", "A", "-"]
        x, y, z = rows
        assert (sum(c.malicious for c in x.captures), sum(c.benign for c in x.captures)) == (
            120,
            120,
        )
        for one in (x, y):
            found = figures(one, np.ones((1, len(one.captures))))
            assert found["auroc"][0] > 0.99, method
        assert sum(c.malicious for c in z.captures) == 0
        assert z.captures[0].judged == 20, "the first half calibrates"
        assert all(one.compact_seen <= 1 and one.hosts_seen == 1 for one in rows)
        sends = method in {"gsfs", "random-base", "onehot-federated"}
        assert (x.uplink_bytes is not None) == sends


@pytest.mark.parametrize("name", [m for m in METHODS if m != "gsfs"])
def test_nothing_of_a_site_left_out_reaches_what_is_fitted(
    name: str, networks: Path, corpus: Corpus
) -> None:
    """Turning every label of a group round changes nothing about its own flows' scores."""
    run = run_of(networks, algorithm=name)
    turned = (
        pl.when(pl.col("class") == "Benign").then(pl.lit("Malicious")).otherwise(pl.lit("Benign"))
    )
    table = FlowTable.of(corpus, run)
    here = (table.flows["group"] == "x").to_numpy()
    other = FlowTable(
        run,
        table.flows.with_columns(
            pl.when(pl.col("group") == "x").then(turned).otherwise("class").alias("class")
        ),
        table.classes,
        table.sites,
    )
    reference = references()[name]
    assert isinstance(reference, Tabular)
    sites = np.array([not site.startswith("x") for site in table.sites])
    first = reference.prepare(table)(sites).probabilities(here)
    again = reference.prepare(other)(sites).probabilities(here)
    assert np.array_equal(first, again)


def test_a_group_is_a_subtraction_that_leaves_nothing_behind(
    networks: Path, corpus: Corpus
) -> None:
    table = FlowTable.of(corpus, run_of(networks))
    everything = np.ones(len(table.flows), bool)
    for name in ("onehot-ridge", "onehot-federated"):
        reference = references()[name]
        assert isinstance(reference, Tabular)
        sites = np.array([site != "x__1" for site in table.sites])
        less = reference.prepare(table)(sites)
        alone = FlowTable(
            table.settings,
            table.flows.with_columns(
                part=pl.when(pl.col("client") == "x__1").then(pl.lit("out")).otherwise("part")
            ),
            table.classes,
            tuple(site for site in table.sites if site != "x__1"),
        )
        fresh = reference.prepare(alone)(np.ones(len(alone.sites), bool))
        assert np.array_equal(less.probabilities(everything), fresh.probabilities(everything))
        assert less.uplink_bytes == fresh.uplink_bytes


def test_pooled_ridge_is_least_squares_on_the_flows(networks: Path, corpus: Corpus) -> None:
    """Against scikit-learn's on every flow by itself, constant unpenalised."""
    from sklearn.linear_model import Ridge  # noqa: PLC0415

    from gradsense.experiments.references.one_hot import one_hot  # noqa: PLC0415
    from gradsense.learning.calibration import softmax  # noqa: PLC0415

    table = FlowTable.of(corpus, run_of(networks))
    rows = table.part("train")
    x = one_hot(table)[table.prompt].astype(float)
    penalty = 1e-4 * float(np.square(x[rows]).sum()) / x.shape[1]
    ridge = Ridge(alpha=penalty, solver="cholesky").fit(x[rows], np.eye(2)[table.labels[rows]])
    reference = references()["onehot-ridge"]
    assert isinstance(reference, Tabular)
    found = reference.prepare(table)(np.ones(len(table.sites), bool))
    expected = softmax(10 * ridge.predict(x))
    assert np.allclose(found.probabilities(np.ones(len(x), bool)), expected, atol=1e-6)


def test_pairs() -> None:
    assert pairs_won(np.array([0.9, 0.4]), np.array([0.5, 0.4, 0.1])) == 3 + 1.5
    assert pairs_won(np.array([]), np.array([0.5])) == 0


def test_figures_add_up_over_captures() -> None:
    one = row(
        "m", "g", [[30.0, 10.0], [0.0, 100.0]], counts("a", 10, 5, 4, 1), counts("b", 5, 25, 5, 2)
    )
    found = figures(one, np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]))
    assert found["auroc"] == pytest.approx([140 / (15 * 30), 30 / 50, 100 / 125])
    assert found["recall"] == pytest.approx([9 / 15, 0.4, 1.0])
    assert found["false_alarms"] == pytest.approx([0.1, 0.2, 0.08])
    assert np.isnan(found["recall_calibrated"]).all(), "it had nothing to calibrate on"


def test_few_flows_are_no_share() -> None:
    found = figures(row("m", "g", [[9.0]], counts("a", 9, 50, 9, 0)), np.ones((1, 1)))
    assert np.isnan(found["auroc"][0])
    assert np.isnan(found["recall"][0])
    assert found["false_alarms"][0] == 0


def test_means_are_over_groups_and_differences_are_paired() -> None:
    rows = [
        row(method, group, [[won]], counts("a", 10, 10, 5, 1))
        for method, by in (("ours", (50.0, 90.0)), ("theirs", (60.0, 100.0)))
        for group, won in zip(("g", "h"), by, strict=True)
    ]
    found = summaries(rows)
    ours, theirs = found["ours"].figures["auroc"], found["theirs"].ahead["auroc"]
    assert (ours.mean, ours.groups) == (pytest.approx(0.7), 2)
    assert (ours.low, ours.high) == (pytest.approx(0.5), pytest.approx(0.9))
    assert (theirs.mean, theirs.low, theirs.high) == pytest.approx((0.1, 0.1, 0.1))
    assert found["ours"].ahead == {}
    assert summaries(rows) == found, "the draws are seeded"


def test_rows_survive_a_file_and_every_group_is_in_the_tables(
    networks: Path, corpus: Corpus, tmp_path: Path
) -> None:
    rows = left_out(corpus, run_of(networks, algorithm="onehot-ridge"))
    save_groups(rows, tmp_path / "results.json")
    assert load_groups_of(tmp_path / "results.json") == rows
    titles = [sheet.title.split(":")[0] for sheet in sheets(rows)]
    assert titles[:3] == ["grades A and S", "grades R and U", "ungraded"]
    text = markdown(rows)
    assert all(f"| {group} |" in text for group in "xyz")
    (tmp_path / "other.json").write_text("[{}]")
    with pytest.raises(InputError):
        load_groups_of(tmp_path / "other.json")


def test_what_cannot_take_part_is_refused(networks: Path, tmp_path: Path) -> None:
    def planned(run: RunSettings, *names: str) -> list[str]:
        jobs = plan_networks(run, names, 1, tmp_path, with_references=False)
        return [job.settings.algorithm for job in jobs]

    assert planned(run_of(networks), "gsfs", "gsfs:cap=0.5") == ["gsfs", "gsfs:cap=0.5"]
    with pytest.raises(InputError, match="train once for every group"):
        planned(run_of(networks), "fedavg")
    with pytest.raises(InputError, match="no networks"):
        planned(settings(split="network"), "gsfs")
    with pytest.raises(InputError, match="a client a capture"):
        planned(run_of(networks, partition="iid", clients=2), "gsfs")
    with pytest.raises(InputError, match="nothing to compare"):
        planned(run_of(networks))


def test_neither_labels_nor_names_nor_places_are_features(networks: Path, corpus: Corpus) -> None:
    """What names a capture, a row or a class may change at will: every reference reads the same."""
    table = FlowTable.of(corpus, run_of(networks))
    renamed = table.flows.with_columns(
        pl.lit("other").alias("capture"),
        pl.lit("Malicious").alias("label"),
        pl.lit("DDoS").alias("detail"),
        pl.lit("Benign").alias("class"),
        pl.lit("DDoS").alias("kind"),
        pl.lit("U").alias("grade"),
        pl.lit("site").alias("client"),
        pl.col("line").reverse(),
        pl.col("uid").reverse(),
        pl.col("ts") + 86_400.0,
    )
    assert np.array_equal(table.template.indices(table.flows), table.template.indices(renamed))
    fields = Fields(table.flows, context=True)
    assert np.array_equal(fields(table.flows), Fields(renamed, context=True)(renamed))
    assert np.array_equal(fields(table.flows.reverse()), fields(table.flows)[::-1])
