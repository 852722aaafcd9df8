"""From suspicion to alarms, with numbers done by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.learning.alarms import LEAST_THRESHOLD, flagged, threshold_for

CLASSES = ("Benign", "Scan", "Torii")


def test_threshold_lets_the_allowed_share_ring() -> None:
    suspicion = np.linspace(0.6, 0.9, 10)
    # A fifth of ten is two: the third largest is the last that must not ring.
    assert threshold_for(suspicion, share=0.2) == pytest.approx(suspicion[-3])
    assert (suspicion > threshold_for(suspicion, share=0.2)).sum() == 2
    assert threshold_for(suspicion, share=0.09) == pytest.approx(0.9), "not one whole flow"


def test_likelier_benign_than_not_never_rings() -> None:
    assert threshold_for(np.full(1000, 0.01)) == LEAST_THRESHOLD
    assert threshold_for(np.array([])) == LEAST_THRESHOLD


@settings(max_examples=100, deadline=None)
@given(
    suspicion=st.lists(st.floats(0, 1), max_size=60),
    share=st.floats(0, 0.99),
)
def test_no_more_than_the_share_rings_and_no_lower_threshold_would_do(
    suspicion: list[float], share: float
) -> None:
    flows = np.array(suspicion)
    threshold = threshold_for(flows, share)
    assert (flows > threshold).sum() <= share * len(flows)
    if threshold > LEAST_THRESHOLD:
        lower = np.nextafter(threshold, 0)
        assert (flows > lower).sum() > int(share * len(flows))


def test_flagged_by_class_by_hand() -> None:
    suspicion = np.array([0.1, 0.8, 0.7, 0.7, 0.71])
    truth = np.array([0, 0, 1, 1, 1])
    # The threshold itself is quiet; nobody is of Torii.
    assert flagged(suspicion, truth, CLASSES, 0.7) == {
        "Benign": 0.5,
        "Scan": pytest.approx(1 / 3),
    }
