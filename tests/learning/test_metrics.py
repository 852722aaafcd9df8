from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.learning.metrics import score

CLASSES = ("Benign", "DDoS", "Scan", "Torii")
# Benign: 4 flows, 3 right, 1 called Scan. DDoS: 2 flows, 1 right, 1 called Benign.
# Scan: 2 flows, both right. Torii: none.
TRUTH = np.array([0, 0, 0, 0, 1, 1, 2, 2])
PREDICTED = np.array([0, 0, 0, 2, 1, 0, 2, 2])


def test_by_hand() -> None:
    scores = score(TRUTH, PREDICTED, CLASSES)
    assert scores.confusion == ((3, 0, 1, 0), (1, 1, 0, 0), (0, 0, 2, 0), (0, 0, 0, 0))
    assert scores.accuracy == 6 / 8
    # Benign P 3/4 R 3/4 F 3/4; DDoS P 1 R 1/2 F 2/3; Scan P 2/3 R 1 F 4/5; Torii all 0.
    benign, ddos, scan, torii = (scores.per_class[name] for name in CLASSES)
    assert (benign.precision, benign.recall, benign.f1, benign.support) == (0.75, 0.75, 0.75, 4)
    assert (ddos.precision, ddos.recall, ddos.support) == (1, 0.5, 2)
    assert ddos.f1 == pytest.approx(2 / 3)
    assert (scan.precision, scan.recall) == (pytest.approx(2 / 3), 1)
    assert scan.f1 == pytest.approx(4 / 5)
    assert (torii.f1, torii.support) == (0, 0)
    assert scores.precision == pytest.approx((4 * 3 / 4 + 2 * 1 + 2 * 2 / 3) / 8)
    assert scores.recall == pytest.approx((4 * 3 / 4 + 2 * 1 / 2 + 2 * 1) / 8)
    assert scores.f1_weighted == pytest.approx((4 * 3 / 4 + 2 * 2 / 3 + 2 * 4 / 5) / 8)
    # Torii is not in the truth, so three classes make the mean.
    assert scores.f1_macro == pytest.approx((3 / 4 + 2 / 3 + 4 / 5) / 3)
    assert scores.false_alarm_rate == 1 / 4
    assert scores.detection_rate == 3 / 4


def test_counts_stand_for_repeated_rows() -> None:
    truth, predicted = np.array([0, 0, 1, 1, 2]), np.array([0, 2, 1, 0, 2])
    counted = score(truth, predicted, CLASSES, counts=np.array([3, 1, 1, 1, 2]))
    assert counted == score(TRUTH, PREDICTED, CLASSES)


def test_an_attack_taken_for_another_is_still_detected() -> None:
    scores = score(np.array([1, 2]), np.array([2, 1]), CLASSES)
    assert (scores.accuracy, scores.detection_rate, scores.false_alarm_rate) == (0, 1, None)


def test_only_benign_flows_have_no_detection_rate() -> None:
    scores = score(np.array([0, 0]), np.array([0, 1]), CLASSES)
    assert (scores.false_alarm_rate, scores.detection_rate) == (0.5, None)


def test_json_has_the_names_of_the_contract() -> None:
    text = json.dumps(asdict(score(TRUTH, PREDICTED, CLASSES)), allow_nan=False)
    keys = {"accuracy", "precision", "recall", "f1_weighted", "f1_macro"}
    assert keys <= json.loads(text).keys()


@pytest.mark.parametrize(("truth", "predicted"), [([], []), ([0], [0, 1]), ([4], [0]), ([0], [-1])])
def test_rows_that_cannot_be_scored(truth: list[int], predicted: list[int]) -> None:
    with pytest.raises(ValueError, match=r"class number|compare"):
        score(np.array(truth, dtype=np.int64), np.array(predicted, dtype=np.int64), CLASSES)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_rates_are_rates_and_weighted_recall_is_accuracy(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = np.array(pairs).T
    scores = score(truth, predicted, CLASSES)
    assert scores.recall == pytest.approx(scores.accuracy)
    assert sum(map(sum, scores.confusion)) == len(pairs)
    for rate in (scores.precision, scores.f1_weighted, scores.f1_macro):
        assert 0 <= rate <= 1
    perfect = score(truth, truth, CLASSES)
    assert (perfect.accuracy, perfect.f1_macro) == (1, 1)
    assert perfect.false_alarm_rate in {0, None}
