"""Thresholds from a network's own benign flows: the numbers, and what is left out."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gradsense.data.sources.lines import Tally
from gradsense.data.sources.stream import read_log
from gradsense.detection import bundle
from gradsense.detection.bundle import BundleThreshold, Manifest, TemplateName, Tokens
from gradsense.detection.calibrate import MARGIN, Traffic, calibrate, log_odds, read
from gradsense.detection.detector import Detector
from gradsense.errors import InputError
from gradsense.prompts.templates import get_template

TEMPLATE = get_template("context")


class Graph:
    """Answers what the test wants: its flows are numbered by their first phrase."""

    def __init__(self, odds: list[float], novelty: list[float] | None = None, **changed: Any):
        self.template = TEMPLATE
        self.manifest = Manifest(
            labels=("Benign", "A", "B"),
            template=TemplateName(name="context", version=1),
            tokens=Tokens(kind="words", max_tokens=19),
            alarm=BundleThreshold(value=0.5, share=0.001, flows=9, source="training"),
            novelty=BundleThreshold(value=-1.0, share=0.005, flows=9, source="training"),
            provenance={"base": "nano"},
            files={},
        ).model_copy(update=changed)
        # Two attack classes alike: log-odds are x - 0 + ln 2 with logits (0, x, x).
        self.logits = np.array([[0.0, x - np.log(2), x - np.log(2)] for x in odds], np.float32)
        self.novelty = None if novelty is None else np.array(novelty, np.float32)

    def answers(self, phrase_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        rows = phrase_ids[:, 3]  # the responder's port has enough phrases to number flows
        return self.logits[rows], None if self.novelty is None else self.novelty[rows]


def traffic(numbers: list[int], **more: Any) -> Traffic:
    phrase_ids = np.zeros((len(numbers), len(TEMPLATE.fields)), np.uint16)
    phrase_ids[:, 3] = numbers
    return Traffic(phrase_ids, ("conn.log",), **more)


def run(graph: Graph, numbers: list[int], share: float, **options: Any) -> Any:
    return calibrate(graph, traffic(numbers), share, **options)  # type: ignore[arg-type]


def probability(odds: float) -> float:
    return 1 / (1 + float(np.exp(-odds)))


def test_log_odds_by_hand() -> None:
    # p = (1, 2, 1) / 4: odds against the first are 3 to 1.
    assert log_odds(np.log([[1.0, 2.0, 1.0]]), 0) == pytest.approx([np.log(3)])


def test_the_share_of_flows_that_may_ring() -> None:
    graph = Graph([1.0, 2.0, 3.0, 4.0])
    # Ten flows, a fifth may ring: the two at 4 and 3. The threshold is just above 2.
    found = run(graph, [0] * 5 + [1] * 3 + [2, 3], 0.2)
    alarm = found.manifest.alarm
    assert alarm.value == pytest.approx(probability(2 + MARGIN), abs=1e-6)
    assert (alarm.share, alarm.flows, alarm.source) == (0.2, 10, "conn.log")


def test_equal_flows_ring_together_or_not_at_all() -> None:
    # One of four may ring, but the two highest are alike.
    assert run(Graph([1.0, 3.0]), [0, 0, 1, 1], 0.25).manifest.alarm.share == 0.0


def test_never_below_even_odds() -> None:
    assert run(Graph([-5.0, -3.0]), [0, 1], 0.0).manifest.alarm.value == 0.5


def test_temperature_divides_the_logits() -> None:
    # Logits (0, x, x) with x = 4 - ln 2, halved: odds 2 e^(x/2).
    found = run(Graph([4.0], temperature=2.0), [0], 0.0)
    assert found.manifest.alarm.value == pytest.approx(
        probability(np.log(2) + (4 - np.log(2)) / 2 + MARGIN), abs=1e-7
    )
    assert found.manifest.temperature == 2.0


def test_few_flows_take_the_highest_and_say_so() -> None:
    found = run(Graph([1.0, 2.0]), [0] * 98 + [1], 0.01)
    assert found.manifest.alarm.share == 0.0
    assert any("takes 100 flows and these are 99" in text for text in found.warnings)
    assert any("1 in 100 flows" in text for text in found.warnings)
    enough = run(Graph([-1.0, -2.0]), [0] * 99 + [1], 0.01)
    assert enough.warnings == ()


def test_a_strange_network_is_said() -> None:
    found = run(Graph([-1.0, 2.0]), [0] * 9 + [1], 0.2)
    assert any("takes 10% of these benign flows for attacks" in text for text in found.warnings)


def test_a_saturated_threshold_is_said() -> None:
    assert any("hardly be exceeded" in text for text in run(Graph([40.0]), [0], 0.0).warnings)


def test_high_suspicions_keep_their_order() -> None:
    """Suspicions of 1 - 1e-11 and 1 - 2e-11 are one number in float32."""
    found = run(Graph([24.6, 25.3]), [0, 0, 0, 1], 0.25)
    assert 1 - probability(25.3) < 1 - found.manifest.alarm.value < 1 - probability(24.6)


def test_novelty_moves_only_when_asked() -> None:
    graph = Graph([0.0, 0.0, 0.0], novelty=[1.0, 2.0, 3.0])
    assert run(graph, [0, 1, 2, 2], 0.5).manifest.novelty == graph.manifest.novelty
    moved = run(graph, [0, 1, 2, 2], 0.5, novelty=True).manifest.novelty
    assert moved.value == pytest.approx(2 + MARGIN)
    assert moved.share == 0.5
    assert run(Graph([0.0]), [0], 0.5, novelty=True).manifest.novelty == graph.manifest.novelty


def test_the_reference_is_of_these_flows() -> None:
    # p = (1, 1, 1) / 3 for flow 0, and 1 / (1 + e^9) for the other's benign class.
    reference = run(Graph([float(np.log(2)), -9.0]), [0, 0, 0, 1], 0.0).manifest.reference
    assert reference.flows == 4
    assert reference.fields["dp"][:3] == (0.75, 0.25, 0.0)
    assert reference.fields["proto"][0] == 1.0
    assert reference.confidence == (0, 0, 0, 0.75, 0, 0, 0, 0, 0, 0.25)


def test_provenance_keeps_what_the_export_said() -> None:
    graph = Graph([1.0])
    once = run(graph, [0], 0.0).manifest
    site = once.provenance["site"]
    assert once.provenance["base"] == "nano"
    assert site["exported"]["alarm"] == graph.manifest.alarm.model_dump()
    assert (site["logs"], site["flows"], site["share"]) == (["conn.log"], 1, 0.0)
    again = run(Graph([2.0], provenance=once.provenance, alarm=once.alarm), [0], 0.0).manifest
    assert again.provenance["site"]["exported"] == site["exported"]
    assert again.id != once.id != graph.manifest.id


def test_nothing_to_be_suspicious_against() -> None:
    with pytest.raises(InputError, match="no class 'Benign'"):
        run(Graph([1.0], labels=("A", "B", "C")), [0], 0.0)
    with pytest.raises(InputError, match="share of 1"):
        run(Graph([1.0]), [0], 1.0)


@hypothesis_settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-30, 30), min_size=1, max_size=40),
    st.floats(0, 0.99),
)
def test_no_more_ring_than_may(odds: list[float], share: float) -> None:
    alarm = run(Graph(odds), list(range(len(odds))), share).manifest.alarm
    suspicion = 1 / (1 + np.exp(-np.float32(odds).astype(np.float64)))
    assert (suspicion > alarm.value).mean() <= share + 1e-12
    assert alarm.share <= share + 1e-12


# Reading logs ---------------------------------------------------------------------------------


def test_a_label_that_is_not_benign_is_left_out(captures: Path) -> None:
    log = next(captures.rglob("conn.log.labeled"))
    tally = Tally()
    labels = [
        label for block in read_log(log, tally=tally) for label in block["label"].str.to_lowercase()
    ]
    benign = labels.count("benign")
    assert 0 < benign < len(labels)
    found = read([log], TEMPLATE)
    assert (len(found.phrase_ids), found.left_out) == (benign, len(labels) - benign)
    assert found.names == ("conn.log.labeled",)
    assert found.tally.read == len(labels)


def test_only_the_newest_flows_are_kept(captures: Path) -> None:
    log = next(captures.rglob("conn.log.labeled"))
    whole = read([log, log], TEMPLATE)
    some = read([log, log], TEMPLATE, most=50)
    assert (len(some.phrase_ids), some.older) == (50, len(whole.phrase_ids) - 50)
    np.testing.assert_array_equal(some.phrase_ids, whole.phrase_ids[-50:])


def test_gzip_reads_the_same(captures: Path, tmp_path: Path) -> None:
    log = next(captures.rglob("conn.log.labeled"))
    packed = tmp_path / "conn.log.gz"
    packed.write_bytes(gzip.compress(log.read_bytes()))
    np.testing.assert_array_equal(
        read([packed], TEMPLATE).phrase_ids, read([log], TEMPLATE).phrase_ids
    )


def test_no_flow_is_an_error(tmp_path: Path) -> None:
    log = tmp_path / "conn.log"
    log.write_text("neither\nnor\n")
    with pytest.raises(InputError, match=r"no flow to calibrate on.*2 lines"):
        read([log], TEMPLATE)
    with pytest.raises(InputError, match="no such file"):
        read([tmp_path / "absent.log"], TEMPLATE)


def test_the_gateway_rings_as_calibrated(edge_bundle: Path, captures: Path, tmp_path: Path) -> None:
    """One by one or many at once, no more of the flows ring than were said to."""
    log = next(captures.rglob("conn.log.labeled"))
    detector = Detector.load(edge_bundle, threads=1, cache=0)
    found = calibrate(detector, read([log], TEMPLATE), 0.05).manifest
    out = tmp_path / "edge"
    bundle.write(out, found, {name: edge_bundle / name for name in found.files})
    here, phrase_ids = Detector.load(out, threads=1, cache=0), read([log], TEMPLATE).phrase_ids
    said = [verdict.alarm for verdict in here.judge(phrase_ids)]
    assert np.mean(said) == found.alarm.share <= 0.05
    assert [here.judge(phrase_ids[row : row + 1])[0].alarm for row in range(50)] == said[:50]
