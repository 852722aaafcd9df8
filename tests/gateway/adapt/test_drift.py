"""Population stability."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.errors import InputError
from gradsense.gateway.adapt.drift import FLOOR, Drift, DriftSettings, level_of, psi
from gradsense.models.card import Reference
from gradsense.prompts.templates import Template
from gradsense.tasks.fields import Field

TOY = Template(
    "toy",
    1,
    2,
    tuple(
        Field(name, tuple(f"{name}{n}" for n in range(size)), pl.col(name), lambda flow: 0)
        for name, size in (("a", 2), ("b", 4))
    ),
)
#: Confidence always in the top bin; b's phrases equally often.
REFERENCE = Reference(
    flows=1_000_000,
    fields={"a": (0.5, 0.5), "b": (0.25, 0.25, 0.25, 0.25)},
    confidence=(0.0,) * 9 + (1.0,),
)
SMALL = DriftSettings(window=200, least=100, every_s=3600.0)


def flows(count: int, share: float, confidence: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """``share`` of the flows pick a's first phrase; b is spread evenly."""
    phrase_ids = np.zeros((count, 2), np.uint16)
    phrase_ids[round(share * count) :, 0] = 1
    phrase_ids[:, 1] = np.arange(count) % 4
    return phrase_ids, np.full(count, confidence)


def test_psi_by_hand() -> None:
    # (0.8 - 0.5) ln(1.6) + (0.2 - 0.5) ln(0.4) = 0.3 ln 4
    assert psi(np.array([0.8, 0.2]), np.array([0.5, 0.5])) == pytest.approx(0.3 * math.log(4))
    same = np.array([0.3, 0.7])
    assert psi(same, same) == 0.0
    gone = psi(np.array([1.0, 0.0]), np.array([0.5, 0.5]))
    assert gone == pytest.approx(0.5 * math.log(2) + (0.5 - FLOOR) * math.log(0.5 / FLOOR))


@pytest.mark.parametrize(
    ("figure", "level"),
    [(0.0, "stable"), (0.0999, "stable"), (0.1, "moderate"), (0.2499, "moderate"), (0.25, "major")],
)
def test_levels(figure: float, level: str) -> None:
    assert level_of(figure) == level


def test_a_report_by_hand() -> None:
    drift = Drift(TOY, REFERENCE, SMALL)
    drift.add(*flows(100, 0.8))
    report = drift.report()
    assert report is not None
    chance = 1 * (1 / 100 + 1e-6)  # two bins, 100 flows against a million
    assert report.psi["a"] == pytest.approx(0.3 * math.log(4) - chance)
    assert report.psi["b"] == 0.0
    assert report.confidence == 0.0
    assert (report.flows, report.worst, report.level) == (100, ("a",), "major")


def test_unsure_verdicts_are_drift_too() -> None:
    drift = Drift(TOY, REFERENCE, SMALL)
    drift.add(*flows(100, 0.5, confidence=0.35))
    report = drift.report()
    assert report is not None
    assert (report.level, report.worst) == ("major", ())
    assert report.confidence > 5


def test_no_report_on_few_flows() -> None:
    drift = Drift(TOY, REFERENCE, SMALL)
    drift.add(*flows(99, 1.0))
    assert drift.report() is None
    drift.add(*flows(1, 1.0))
    assert drift.report() is not None


def test_chance_alone_is_no_drift() -> None:
    """Draws of the reference itself: corrected, their mean is about 0 and not (k - 1)/n."""
    random = np.random.default_rng(0)
    raw, corrected = [], []
    for _ in range(200):
        drift = Drift(TOY, REFERENCE, DriftSettings(window=100, least=50))
        phrase_ids = np.stack([random.integers(0, 2, 50), random.integers(0, 4, 50)], axis=1)
        drift.add(phrase_ids.astype(np.uint16), np.ones(50))
        shares = np.bincount(phrase_ids[:, 1], minlength=4) / 50
        raw.append(psi(shares, np.full(4, 0.25)))
        report = drift.report()
        assert report is not None
        corrected.append(report.psi["b"])
    assert np.mean(raw) == pytest.approx(3 / 50, rel=0.25)
    assert np.mean(corrected) < 3 / 50 / 2


def test_old_flows_leave_the_window() -> None:
    drift = Drift(TOY, REFERENCE, SMALL)
    drift.add(*flows(100, 1.0))
    for _ in range(2):
        drift.add(*flows(100, 0.5))
    report = drift.report()
    assert report is not None
    assert (report.flows, report.level) == (100, "stable")


def test_without_a_reference_the_first_flows_are_it() -> None:
    drift = Drift(TOY, None, SMALL)
    drift.add(*flows(200, 0.9))
    assert drift.report() is None
    drift.add(*flows(100, 0.9))
    report = drift.report()
    assert report is not None
    assert report.level == "stable"
    drift.add(*flows(100, 0.2))
    drift.add(*flows(100, 0.2))
    report = drift.report()
    assert report is not None
    assert report.level == "major"


def test_a_recommendation_takes_two_half_windows_of_major_drift_and_comes_once() -> None:
    drift = Drift(TOY, REFERENCE, SMALL)
    drift.add(*flows(100, 1.0))
    assert drift.recommend(now=0.0) is None, "one half-window only"
    drift.add(*flows(100, 1.0))
    found = drift.recommend(now=10.0)
    assert found is not None
    assert (found.at, found.report.level) == (10.0, "major")
    drift.add(*flows(500, 1.0))
    assert drift.recommend(now=3609.0) is None, "within the hour"
    assert drift.recommend(now=3610.0) is not None


def test_calm_between_starts_the_count_anew() -> None:
    drift = Drift(TOY, REFERENCE, SMALL)
    for share in (1.0, 0.5, 0.5, 1.0):
        drift.add(*flows(100, share))
    assert drift.recommend(now=0.0) is None


def test_a_reference_of_another_template_is_refused() -> None:
    other = REFERENCE.model_copy(update={"fields": {"a": (0.5, 0.5)}})
    with pytest.raises(InputError, match="another template"):
        Drift(TOY, other, SMALL)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 150), st.floats(0, 1), st.floats(0, 1)), max_size=12),
    st.integers(0, 12),
    st.booleans(),
)
def test_a_restart_and_the_cut_into_batches_change_nothing(
    parts: list[tuple[int, float, float]], cut: int, given_reference: bool
) -> None:
    reference = REFERENCE if given_reference else None
    batches = [flows(*part) for part in parts]
    whole = Drift(TOY, reference, SMALL)
    if batches:
        whole.add(*(np.concatenate(side) for side in zip(*batches, strict=True)))
    first, second = Drift(TOY, reference, SMALL), Drift(TOY, reference, SMALL)
    for batch in batches[:cut]:
        first.add(*batch)
    second.restore(first.state().model_dump_json())
    for batch in batches[cut:]:
        second.add(*batch)
    assert second.state() == whole.state()
    assert second.report() == whole.report()
    assert second.dropped == 0


def test_states_that_do_not_fit_are_counted_and_left() -> None:
    drift = Drift(TOY, REFERENCE, SMALL)
    drift.add(*flows(50, 0.5))
    state, before = drift.state(), drift.state()
    for text in (
        "",
        "{}",
        state.model_copy(update={"fingerprint": "00" * 16}).model_dump_json(),
        state.model_copy(update={"older": (1, 2)}).model_dump_json(),
        state.model_copy(update={"older": (-1,) * len(state.older)}).model_dump_json(),
    ):
        drift.restore(text)
    assert drift.dropped == 5
    assert drift.state() == before


def test_a_state_of_a_larger_window_is_counted_and_left() -> None:
    """Half-windows that are fuller than full would never end."""
    large = Drift(TOY, REFERENCE, SMALL.model_copy(update={"window": 2000}))
    large.add(*flows(500, 0.5))
    small = Drift(TOY, REFERENCE, SMALL)
    small.restore(large.state().model_dump_json())
    small.add(*flows(100, 0.5))
    assert small.dropped == 1
    report = small.report()
    assert report is not None
    assert report.flows == 100


def test_the_state_of_an_earlier_version_is_read() -> None:
    drift = Drift(TOY, REFERENCE, SMALL)
    drift._recommended_at = 5.0
    old = drift.state().model_dump_json().replace("recommended_at", "wished_at")
    fresh = Drift(TOY, REFERENCE, SMALL)
    fresh.restore(old)
    assert (fresh.dropped, fresh.state().recommended_at) == (0, 5.0)
