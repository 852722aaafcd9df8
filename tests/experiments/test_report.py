from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gradsense.data.datasets.leakage import Leakage
from gradsense.errors import InputError
from gradsense.experiments import plots
from gradsense.experiments.findings import findings
from gradsense.experiments.report import class_heat, site_heat, write_report
from gradsense.experiments.results import Row
from tests.support.report_rows import federated, reference, scores

NASTY = '<script>alert("1")</script>'


def comparison() -> list[Row]:
    algorithms = [("fedavg", 0.6, 2_000_000), ("gsfs", 0.7, 500_000)]
    rows = [
        federated(name, seed, f1=f1 + 0.01 * seed, upload=upload)
        for name, f1, upload in algorithms
        for seed in range(2)
    ]
    return [*rows, reference("centralised"), reference("forest", f1=0.95)]


def written(tmp_path: Path, rows: list[Row], **settings: str) -> str:
    path = tmp_path / "report.html"
    write_report(rows, path, title="A comparison", settings=settings)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of ``comparison()``; drawing takes a second, so once is enough."""
    return written(tmp_path_factory.mktemp("report"), comparison(), data="iot23")


class Tags(HTMLParser):
    """Collects ids and checks that tags close in order."""

    VOID = ("meta", "br", "link", "input", "img", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.open: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value is not None]
        self.scripts += tag == "script"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value is not None]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    return tags


def test_the_page_needs_nothing_from_outside(page: str) -> None:
    assert not re.search(r"https?:|//\w|url\((?!#)|@import|<link|<img|<iframe|src=", page)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))


def test_the_page_is_well_formed_and_ids_are_unique(page: str) -> None:
    tags = parsed(page)
    assert len(tags.ids) == len(set(tags.ids))


def test_every_reference_inside_a_figure_has_its_target(page: str) -> None:
    ids = set(parsed(page).ids)
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page))
    assert used
    assert {a or b for a, b in used} <= ids


def test_both_themes_are_there(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    assert '[data-theme="dark"]' in page
    for variable in ("--ink", "--grid", "--muted", *(f"--s{i + 1}" for i in range(plots.COLOURS))):
        assert page.count(f"{variable}:") == 3  # light, dark by system, dark by button
    used = set(re.findall(r"var\((--[\w-]+)\)", page))
    assert used <= set(re.findall(r"(--[\w-]+):", page))
    figures = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}", figures)  # no colour that a theme cannot change


@pytest.mark.slow
def test_names_are_escaped_everywhere(tmp_path: Path) -> None:
    row = federated(NASTY, sites=(NASTY, "$x$", '" id="y'))
    row = row.model_copy(update={"per_class": {NASTY: row.per_class["Benign"]}})
    row = row.model_copy(update={"triggers": {NASTY: 1}, "refused": {NASTY: 1}})
    page = tmp_path / "report.html"
    write_report([row], page, title=NASTY, settings={NASTY: NASTY})
    text = page.read_text(encoding="utf-8")
    assert NASTY not in text
    assert parsed(text).scripts == 2  # our own two
    assert "$x$" in text  # in the figure too: not read as mathematics
    assert ">&lt;script&gt;" in text


def test_a_name_that_looks_like_our_colours_is_left_alone() -> None:
    row = federated(sites=("#010203", "34.123456"))
    figure = plots.upload_timeline([row], name="t")
    assert ">#010203</text>" in figure
    assert ">34.123456</text>" in figure


def test_same_rows_same_bytes(page: str, tmp_path: Path) -> None:
    assert written(tmp_path, comparison(), data="iot23") == page


def test_an_unwritable_path_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_report(comparison(), tmp_path / "no" / "r.html", title="t", settings={})


def test_the_page_shows_table_settings_and_footnotes(page: str) -> None:
    assert "<dt>data</dt><dd>iot23</dd>" in page
    assert "waiting included" in page
    assert "2.50 MB" in page  # gsfs: five uploads of 0.5 MB
    assert "SYNTHETIC" not in page


def test_what_training_saw_is_on_the_page(page: str, tmp_path: Path) -> None:
    said = written(tmp_path, [federated(leakage=Leakage(0.0, 0.925, 1.0, 1.0))])
    assert "the compact text of 92.5 %" in said
    assert "training saw" not in page, "rows of an earlier version do not say"


def test_synthetic_traffic_is_said_loudly(tmp_path: Path) -> None:
    page = written(tmp_path, [federated(synthetic=True)])
    assert "<strong>SYNTHETIC TRAFFIC.</strong>" in page


@pytest.mark.parametrize(
    "rows",
    [
        [reference("forest")],
        [federated(curve=[], uploads_log=[], per_class={}, per_site={})],
        [federated(uploads_log=[]), federated(seed=1)],
    ],
    ids=["references only", "nothing logged", "first seed without uploads"],
)
def test_what_is_missing_is_left_out(tmp_path: Path, rows: list[Row]) -> None:
    parsed(written(tmp_path, rows))


@pytest.mark.slow
def test_a_large_comparison_stays_small(tmp_path: Path) -> None:
    sites = tuple(f"CTU-IoT-Malware-Capture-{i}-1" for i in range(100))
    rows = [federated(f"algorithm-{i}", seed, sites=sites) for i in range(10) for seed in range(3)]
    page = written(tmp_path, rows)
    assert len(page) < 1_500_000
    assert "The 40 sites with the fewest flows are left out." in page
    assert "The first 40 of 100 sites by name." in page


def test_sites_are_in_the_order_of_their_numbers() -> None:
    row = federated(sites=("capture-10-1", "capture-9-1", "b"))
    assert plots.timeline_sites([row]) == ["b", "capture-9-1", "capture-10-1"]


def test_heat_maps_average_seeds() -> None:
    rows = [federated(f1=0.4), federated(seed=1, f1=0.6), reference("forest")]
    heat = class_heat(rows)
    assert heat.algorithms == ["fedavg"]  # the forest has no scores by class here
    assert [(name, flows, cells[0].text) for name, flows, cells in heat.rows] == [
        ("Benign", "90", "0.50"),
        ("Torii", "3", "0.00"),
    ]
    assert [cells[0].heat for _, _, cells in heat.rows] == [0.5, 0.0]
    sites = site_heat(rows)
    assert (sites.low, sites.rows[0][2][0].heat) == (0.5, 0.0)


SEVERAL = re.compile(r"\b(over|every|all|first|lowest) (seeds?)\b|\bseeds\b")


def test_one_seed_is_not_called_several(page: str, tmp_path: Path) -> None:
    """In no sentence that the page shows of one better, and of one worse, than the baseline."""
    ends = [("gsfs", 0.7, 500_000), ("fedopt", 0.5, 9)]
    rows = [federated(upload=2_000_000)]
    rows += [federated(name, f1=f1, upload=upload) for name, f1, upload in ends]
    lone = written(tmp_path, [*rows, reference("centralised"), reference("local-only")])
    assert SEVERAL.search(re.sub(r"(?s)<(style|script).*?</\1>", "", lone)) is None
    assert "75% less, with one seed." in lone
    assert "Not as good as fedavg ends, at any cost: fedopt." in lone
    assert lone.count("one seed") >= 4
    assert "75% less, in the mean over seeds." in page
    worse = [federated(seed=0), federated(seed=1), federated("gsfs", f1=0.5)]
    assert any("Not in every seed as good" in text for text in findings(worse))
    # One of the two seeds is missing of the algorithm that saves: what is compared is one pair.
    mixed = [federated(), federated(seed=1), federated("gsfs", f1=0.7, upload=500_000)]
    assert any("less, with one seed." in text for text in findings(mixed))


def test_best_strategy_and_its_margin() -> None:
    clear = findings(comparison())
    assert "gsfs has the best global model by macro-F1: 0.705" in clear[0]
    assert "within the spread" not in clear[0]
    rows = [federated(seed=0), federated(seed=1, f1=0.8), federated("gsfs"), federated("gsfs", 1)]
    assert "within the spread" in findings(rows)[0]
    assert "chance" in findings([federated(), federated("gsfs", f1=0.7)])[0]


def test_bytes_saved_by_hand() -> None:
    # fedavg ends at 0.6 after 5 x 2 MB. gsfs climbs 0.14 a step: 0.56 at 4, past 0.6 at 5 x 0.5 MB.
    rows = [federated(upload=2_000_000), federated("gsfs", f1=0.7, upload=500_000)]
    (sentence,) = [text for text in findings(rows) if "uplink" in text]
    assert "With 2.50 MB of uplink gsfs" in sentence
    assert "10.0 MB: 75% less" in sentence


def test_savings_are_not_claimed_when_there_are_none() -> None:
    rows = [federated(), federated("gsfs", f1=0.7, upload=3_000_000)]
    assert not any("less" in text for text in findings(rows))
    worse = [federated(), federated("gsfs", f1=0.5, upload=1)]
    (sentence,) = [text for text in findings(worse) if "at any cost" in text]
    assert "less" not in sentence
    assert "gsfs" in sentence


def test_the_loss_stands_by_local_epochs_first(page: str) -> None:
    """The paper's Figure 2, on an axis that costs the same for every algorithm."""
    labels = re.findall(r'aria-label="([^"]*), by algorithm"', page)
    assert labels[:3] == [
        "loss against local epochs worked",
        "macro-F1 against local epochs worked",
        "loss against aggregation",
    ]


def test_time_saved_by_hand() -> None:
    # fedavg is at its 0.6 after 5 x 40 s. gsfs climbs 0.2 a step and is there after 3.
    rows = [federated(), federated("gsfs", f1=1.0)]
    (sentence,) = [text for text in findings(rows) if "virtual time" in text]
    assert "gsfs first reaches fedavg's final macro-F1 after 2.00 min" in sentence
    assert "after 3.33 min: 1.7 times sooner" in sentence
    same = [federated(), federated("gsfs")]
    assert not any("virtual time" in text for text in findings(same))


def test_gap_to_centralised_and_gain_over_training_alone() -> None:
    alone = reference("local-only").model_copy(update={"central": None, "clients": scores(0.3)})
    text = " ".join(findings([federated(), reference("centralised"), alone]))
    assert "fedavg is 0.300 below that" in text
    assert "sites that train alone reach 0.300" in text
    strong = alone.model_copy(update={"clients": scores(0.9)})
    assert "not clearly better" in " ".join(findings([federated(), strong]))


def test_classes_that_nobody_learned_and_refusals_are_named() -> None:
    text = " ".join(findings(comparison()))
    assert "a single flow of Torii" in text
    assert "4 updates were refused" in text


def test_a_run_that_ended_keeps_its_last_model_in_the_curves() -> None:
    long, short = federated(f1=0.6), federated(seed=1, f1=0.8)
    short = short.model_copy(update={"curve": short.curve[:3]})
    points = plots._across_seeds([long, short], plots.AGGREGATION, plots.F1_MACRO)
    assert [point[0] for point in points] == [point.aggregation for point in long.curve]
    assert points[2][1:] == (pytest.approx(0.28), pytest.approx(0.24), pytest.approx(0.32))
    # The short run stays at 0.32 while the long one goes on to 0.6.
    assert points[-1][1:] == (pytest.approx(0.46), pytest.approx(0.32), pytest.approx(0.6))
