"""Temperatures, calibration errors and thresholds against numbers done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.learning.calibration import (
    COLDEST,
    HOTTEST,
    calibrate,
    expected_calibration_error,
    novelty_threshold,
    reference,
    softmax,
    suspicion,
    temperature_for,
)
from gradsense.prompts.templates import get_template


def logits_of(odds: float, flows: int) -> np.ndarray:
    """Two classes, the first ``odds`` times as likely as the second."""
    return np.tile([math.log(odds), 0.0], (flows, 1)).astype(np.float32)


def nll(logits: np.ndarray, truth: np.ndarray, temperature: float) -> float:
    return float(-np.log(softmax(logits, temperature)[np.arange(len(truth)), truth]).mean())


def test_softmax_by_hand_and_without_overflow() -> None:
    assert softmax(np.array([[math.log(3), 0.0]])) == pytest.approx(np.array([[0.75, 0.25]]))
    assert softmax(np.array([[math.log(9), 0.0]]), 2.0) == pytest.approx(np.array([[0.75, 0.25]]))
    assert softmax(np.array([[1e4, 0.0]], dtype=np.float32)).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(("odds", "temperature"), [(9.0, 2.0), (81.0, 4.0), (math.sqrt(3), 0.5)])
def test_the_temperature_makes_confidence_the_accuracy(odds: float, temperature: float) -> None:
    # Three of four flows are of the first class: its probability is best 3/4, odds of 3.
    truth = np.array([0, 0, 0, 1] * 5)
    found = temperature_for(logits_of(odds, 20), truth)
    assert found == pytest.approx(temperature, rel=1e-4)


def test_flows_all_told_apart_do_not_freeze_the_model() -> None:
    logits, truth = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1])
    assert temperature_for(logits, truth) == pytest.approx(COLDEST, rel=0.01)
    assert temperature_for(logits, 1 - truth) == pytest.approx(HOTTEST, rel=0.01)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 5.0))
def test_no_other_temperature_is_likelier(seed: int, other: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3, size=(40, 3)).astype(np.float32)
    truth = rng.integers(3, size=40)
    found = temperature_for(logits, truth)
    assert nll(logits, truth, found) <= nll(logits, truth, other) + 1e-6


def test_calibration_error_by_hand() -> None:
    # Four flows at 0.9 of which three are right, two at 0.6 of which both are.
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 2)
    truth = np.array([0, 0, 0, 1, 1, 1])
    expected = 4 / 6 * abs(0.75 - 0.9) + 2 / 6 * abs(1.0 - 0.6)
    assert expected_calibration_error(probabilities, truth) == pytest.approx(expected)
    # In one bin the two gaps cancel: accuracy 5/6, confidence 0.8.
    assert expected_calibration_error(probabilities, truth, bins=1) == pytest.approx(5 / 6 - 0.8)


def test_full_confidence_is_in_the_last_bin() -> None:
    assert expected_calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0
    assert expected_calibration_error(np.array([[1.0, 0.0]]), np.array([1])) == 1


def test_suspicion_keeps_its_digits_near_certainty() -> None:
    small = 1e-20
    assert suspicion(np.array([[1.0, small, small]]), 0) == pytest.approx([2 * small])


def test_the_alarm_threshold_is_about_suspicion_after_temperature() -> None:
    # Benign flows at odds of 9 for an attack, one of four an attack: temperature 2, so odds of 3.
    logits = logits_of(9.0, 8)
    found = calibrate(logits, np.array([0, 0, 0, 1] * 2), ("DDoS", "Benign"), "Benign")
    assert found.temperature == pytest.approx(2.0, rel=1e-4)
    assert found.alarm is not None
    assert found.alarm.threshold == pytest.approx(0.75, rel=1e-4)
    assert (found.alarm.share, found.alarm.flows, found.flows) == (0.0, 2, 8)
    assert found.ece_before == pytest.approx(0.15, abs=1e-6)
    assert found.ece_after == pytest.approx(0.0, abs=1e-4)


def test_without_a_benign_class_there_is_no_alarm() -> None:
    assert calibrate(logits_of(9.0, 2), np.array([0, 1]), ("DDoS", "Okiru"), "Benign").alarm is None


def test_a_class_of_no_benign_flow_still_gives_a_threshold() -> None:
    found = calibrate(logits_of(9.0, 2), np.array([0, 0]), ("DDoS", "Benign"), "Benign")
    assert found.alarm is not None
    assert (found.alarm.threshold, found.alarm.flows) == (0.5, 0)


@pytest.mark.parametrize(("flows", "above"), [(1000, 5), (199, 0), (200, 1), (1, 0)])
def test_at_most_half_a_percent_is_novel(flows: int, above: int) -> None:
    scores = np.random.default_rng(0).permutation(flows).astype(np.float32)
    found = novelty_threshold(scores)
    assert found.threshold == flows - 1 - above
    assert (found.share, found.flows) == (above / flows, flows)


def test_ties_at_the_threshold_do_not_ring() -> None:
    assert novelty_threshold(np.ones(1000, dtype=np.float32)).share == 0


def test_the_reference_counts_phrases_and_confidence() -> None:
    template = get_template("context")
    phrase_ids = np.zeros((4, len(template.fields)), dtype=np.uint16)
    phrase_ids[3, 0] = 2
    found = reference(phrase_ids, template, np.array([1.0, 0.95, 0.9, 0.05]))
    assert found.flows == 4
    assert found.fields["proto"] == (0.75, 0.0, 0.25, 0.0, 0.0)
    assert {name: len(shares) for name, shares in found.fields.items()} == {
        field.name: len(field.phrases) for field in template.fields
    }
    assert found.confidence == (0.25, 0, 0, 0, 0, 0, 0, 0, 0, 0.75)
