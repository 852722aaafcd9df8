from __future__ import annotations

import io

import pytest
from rich.console import Console

from gradsense.data.datasets.leakage import Leakage
from gradsense.experiments.results import Row
from gradsense.experiments.table import (
    BYTES,
    COLUMNS,
    PARTS,
    Column,
    Stat,
    by_algorithm,
    footnotes,
    human_bytes,
    human_seconds,
    lines,
    seen_in_training,
    stat,
    table,
    title,
    written,
)
from tests.support.report_rows import federated, reference


def printed(rows: list[Row], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table(rows, width=width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def plain(digits: int | None = None, units: tuple[tuple[float, str], ...] = ((1.0, ""),)) -> Column:
    return Column("cost", "", "", lambda row: None, digits, units)


def test_mean_and_sample_deviation_by_hand() -> None:
    # Mean of 2, 4, 9 is 5; deviations -3, -1, 4; squares sum to 26; 26 / 2 = 13.
    assert stat([2.0, 4.0, 9.0]) == Stat(5.0, pytest.approx(13**0.5))
    assert stat([2.0, None, 4.0]) == Stat(3.0, pytest.approx(2**0.5))
    assert stat([7.0]) == Stat(7.0, None)
    assert stat([None]) is None


def test_a_line_takes_the_seeds_together() -> None:
    (line,) = lines([federated(seed=0, f1=0.6), federated(seed=1, f1=0.7)])
    macro = [column.title for column in COLUMNS].index("macro-F1")
    assert line.seeds == 2
    assert line.stats[macro] == Stat(pytest.approx(0.65), pytest.approx(0.005**0.5))


@pytest.mark.parametrize(
    ("value", "column", "expected"),
    [
        (Stat(0.65, 0.0707), plain(3), ("0.650", "± 0.071")),
        (Stat(0.65, None), plain(3), ("0.650", "")),
        (Stat(48.123, 3.21), plain(), ("48.1", "± 3.2")),
        (Stat(12_340_000, 450_000), plain(units=BYTES), ("12.3 MB", "± 0.5")),
        (Stat(950, 1), plain(units=BYTES), ("950 B", "± 1")),
        (Stat(0.0, 0.0), plain(units=BYTES), ("0 B", "± 0")),
        (Stat(0.9, 0.00001), plain(3), ("0.900", "± <0.001")),
        (None, plain(), ("–", "")),
    ],
)
def test_how_numbers_are_written(
    value: Stat | None, column: Column, expected: tuple[str, str]
) -> None:
    assert written(value, column) == expected


def test_human_units() -> None:
    assert human_bytes(999) == "999 B"
    assert human_bytes(1_500) == "1.50 kB"
    assert human_bytes(2_000_000_000) == "2.00 GB"
    assert human_seconds(59) == "59.0 s"
    assert human_seconds(5400) == "1.50 h"


def test_references_stand_below_the_strategies() -> None:
    rows = [reference("forest"), federated("gsfs"), federated("fedavg")]
    assert list(by_algorithm(rows)) == ["gsfs", "fedavg", "forest"]
    text = printed(rows, 120)
    assert text.index("fedavg") < text.index("forest")


@pytest.mark.parametrize("width", [100, 110, 120, 200])
def test_the_table_fits_the_terminal_uncut(width: int) -> None:
    names = ["fedavg", "fedopt-adagrad", "gsfs-paper", "gsfs"]
    rows = [federated(name, seed, f1=0.5 + 0.1 * seed) for name in names for seed in range(3)]
    rows += [reference(name, seed) for name in ("centralised", "forest") for seed in range(3)]
    text = printed(rows, width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "…" not in text
    for name in [*names, "centralised", "forest"]:
        assert text.count(f" {name} ") == len(PARTS)
    assert "5.00 MB" in text
    assert "± 0.100" in text


def test_a_narrow_terminal_cuts_nothing() -> None:
    text = printed([federated("a-algorithm-with-a-long-name")], 60)
    assert "…" not in text


def test_names_are_not_markup() -> None:
    assert "[bold]x[/bold]" in printed([federated("[bold]x[/bold]")], 120)


def test_synthetic_traffic_is_said_loudly() -> None:
    rows = [federated(synthetic=True)]
    assert title(rows).startswith("SYNTHETIC TRAFFIC")
    assert "SYNTHETIC TRAFFIC" in printed(rows, 100)
    assert "SYNTHETIC" not in title([federated()])


def test_the_title_counts_seeds() -> None:
    assert "one seed" in title([federated()])
    assert "over 2 seeds" in title([federated(seed=0), federated(seed=1)])


def test_the_footnotes_say_what_latency_spans() -> None:
    text = footnotes()
    assert "from one global model to the next" in text
    assert "waiting included" in text
    assert "60,000 / ms" in text
    assert "paper does not say" in text


def test_latency_is_the_papers_and_time_to_quality_stands_beside_it() -> None:
    """0.9 of accuracy is reached at 1.0 * 5 / 5, after 200 s."""
    (line,) = lines([federated(f1=1.0)])
    titles = [(column.group, column.title) for column in COLUMNS]
    found = dict(zip(titles, line.stats, strict=True))
    assert found["one inference", "ms"] == Stat(2.5, None)
    assert found["time to", "0.9 accuracy"] == Stat(200.0, None)
    assert found["whole run", "epochs"] == Stat(5.0, None)


def test_time_to_quality_is_left_out_where_a_seed_never_had_it() -> None:
    place = [column.group for column in COLUMNS].index("time to")
    for second, known in ((1.0, True), (0.8, False)):
        (line,) = lines([federated(seed=0, f1=1.0), federated(seed=1, f1=second)])
        assert (line.stats[place] is not None) is known


def test_alarms_are_in_percent_and_the_footnotes_say_of_what() -> None:
    (line,) = lines([federated()])
    titles = [(column.group, column.title) for column in COLUMNS]
    assert line.stats[titles.index(("alarms, %", "false"))] == Stat(pytest.approx(0.25), None)
    assert line.stats[titles.index(("alarms, %", "found"))] == Stat(pytest.approx(87.5), None)
    assert "0.25" in printed([federated()], 120)
    assert "share of benign and of attack test flows" in footnotes()
    (without,) = lines([reference("forest")])
    assert without.stats[titles.index(("alarms, %", "found"))] is None


def test_what_training_saw_is_the_mean_over_seeds() -> None:
    rows = [
        federated(name, seed, leakage=Leakage(0.0, share, 1.0, 1.0))
        for seed, share in enumerate((0.5, 0.75))
        for name in ("fedavg", "gsfs")
    ]
    said = seen_in_training(rows)
    assert said is not None
    assert "the text of 0.0 %, the compact text of 62.5 %, the host of 100.0 %" in said
    assert seen_in_training([federated()]) is None
