"""The detector over a real bundle: one answer however flows come, and reasons for it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from gradsense.data.flows import ContextWindow
from gradsense.data.sources.lines import Tally
from gradsense.data.sources.stream import read_log
from gradsense.detection import bundle
from gradsense.detection.detector import Detector, Reason, Verdict
from gradsense.errors import InputError


@pytest.fixture(scope="module")
def flows(edge_log: Path) -> pl.DataFrame:
    return ContextWindow().add(pl.concat(read_log(edge_log, tally=Tally())))


@pytest.fixture
def detector(edge_bundle: Path) -> Detector:
    return Detector.load(edge_bundle, threads=1)


def same(one: list[Verdict], other: list[Verdict]) -> bool:
    """Equal but for the last digits: a matrix product rounds by the size of its batch."""
    return len(one) == len(other) and all(
        (a.label, a.alarm, a.novel) == (b.label, b.alarm, b.novel)
        and a.probability == pytest.approx(b.probability, abs=1e-5)
        and a.suspicion == pytest.approx(b.suspicion, abs=1e-5)
        and a.novelty == pytest.approx(b.novelty, abs=1e-3)
        for a, b in zip(one, other, strict=True)
    )


def test_flows_may_come_in_a_frame_or_one_by_one(detector: Detector, flows: pl.DataFrame) -> None:
    together = detector.predict(flows)
    assert len(together) == flows.height
    assert same(together, detector.predict(flows.to_dicts()))
    single = Detector(detector._opened, cache=0)
    few = flows[:20]
    assert same(together[:20], [single.predict([row])[0] for row in few.to_dicts()])
    assert same(together[:20], single.predict(few))


def test_without_context_the_flows_are_a_log_of_their_own(
    detector: Detector, flows: pl.DataFrame
) -> None:
    plain = flows.drop([name for name in flows.columns if name.startswith("ctx_")])
    assert same(detector.predict(flows), detector.predict(plain))
    assert same(detector.predict(flows[:5]), detector.predict(plain[:5].to_dicts()))
    assert detector.predict([]) == []


def test_the_cache_changes_nothing_but_the_work(edge_bundle: Path, flows: pl.DataFrame) -> None:
    with_it, without = Detector.load(edge_bundle), Detector.load(edge_bundle, cache=0)
    distinct = len({row.tobytes() for row in with_it.phrase_ids(flows)})
    assert distinct < flows.height
    expected = without.predict(flows)
    assert (without.judged, without.inferred) == (flows.height, flows.height)
    for _ in range(2):
        assert same(with_it.predict(flows), expected)
    assert (with_it.judged, with_it.inferred) == (2 * flows.height, distinct)


def test_a_small_cache_is_as_right_as_a_large_one(edge_bundle: Path, flows: pl.DataFrame) -> None:
    small, large = Detector.load(edge_bundle, cache=8), Detector.load(edge_bundle)
    parts = [flows[start : start + 40] for start in range(0, flows.height, 40)]
    for part in parts:
        assert same(small.predict(part), large.predict(part))
    assert len(small.cache) <= 8


def test_it_knows_the_synthetic_world(detector: Detector, flows: pl.DataFrame) -> None:
    verdicts = detector.predict(flows)
    labels = Counter(verdict.label for verdict in verdicts)
    assert labels["Benign"] > 50
    assert sum(verdict.alarm for verdict in verdicts) > 10
    for verdict in verdicts:
        assert 0 <= verdict.probability <= 1
        assert verdict.alarm == (verdict.suspicion > detector.manifest.alarm.value)
        assert not (verdict.alarm and verdict.label == "Benign")
        assert verdict.novelty is not None
        assert np.isfinite(verdict.novelty)


def test_texts_are_judged_as_their_flows_are(detector: Detector, flows: pl.DataFrame) -> None:
    phrase_ids = detector.phrase_ids(flows[:50])
    assert same(
        detector.judge_texts(detector.template.texts(phrase_ids)), detector.judge(phrase_ids)
    )
    with pytest.raises(ValueError, match="19 words"):
        detector.judge_texts(["p:tcp s:http"])


def test_temperature_spreads_and_thresholds_decide(detector: Detector, flows: pl.DataFrame) -> None:
    logits, _ = detector.answers(detector.phrase_ids(flows))
    hot = detector.manifest.model_copy(update={"temperature": 4.0})
    verdicts = Detector(dataclasses.replace(detector._opened, manifest=hot)).predict(flows)
    scaled = np.exp(logits / 4 - (logits / 4).max(axis=1, keepdims=True))
    expected = (scaled / scaled.sum(axis=1, keepdims=True)).max(axis=1)
    quiet = [row for row, verdict in enumerate(verdicts) if not verdict.alarm]
    assert [verdicts[row].probability for row in quiet] == pytest.approx(expected[quiet], abs=1e-5)
    threshold = detector.manifest.alarm.model_copy(update={"value": 1.0})
    deaf = detector.manifest.model_copy(update={"alarm": threshold})
    silent = Detector(dataclasses.replace(detector._opened, manifest=deaf))
    assert not any(verdict.alarm for verdict in silent.predict(flows))


def test_reasons_are_what_the_verdict_loses(detector: Detector, flows: pl.DataFrame) -> None:
    phrase_ids = detector.phrase_ids(flows)
    row = next(n for n, verdict in enumerate(detector.judge(phrase_ids)) if verdict.alarm)
    reasons = detector.explain(phrase_ids[row : row + 1], most=19)
    assert reasons
    assert [one.weight for one in reasons] == sorted((o.weight for o in reasons), reverse=True)
    # By hand for the first: make its field unknown and look what the probability does.
    first = reasons[0]
    fields = list(detector.template.fields)
    place = [field.name for field in fields].index(first.field)
    assert first.phrase == fields[place].phrases[phrase_ids[row, place]]
    hidden = phrase_ids[row : row + 1].copy()
    hidden[0, place] = len(fields[place].phrases) - 1
    logits, _ = detector.answers(np.concatenate([phrase_ids[row : row + 1], hidden]))
    scaled = logits.astype(np.float64) / detector.manifest.temperature
    log_p = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    best = log_p[0].argmax()
    assert first.weight == pytest.approx(log_p[0, best] - log_p[1, best], abs=1e-4)


def test_reasons_read_well() -> None:
    assert Reason("service", "s:irc", 1.0).in_words() == "service: irc"
    assert Reason("cf", "cf:8/8", 1.0).in_words() == "share of recent flows that failed: 8/8"
    assert Reason("d", "d:-", 1.0).in_words() == "duration in seconds: unknown"
    assert Reason("proto", "A tcp connection", 1.0).in_words() == "A tcp connection"


def test_a_verdict_is_small_and_cannot_be_changed(detector: Detector, flows: pl.DataFrame) -> None:
    verdict = detector.predict(flows[:1])[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict.label = "x"  # type: ignore[misc]
    assert not hasattr(verdict, "__dict__")


@pytest.mark.parametrize("name", [bundle.GRAPH_FILE, bundle.TOKENIZER_FILE])
def test_an_altered_file_is_not_opened(edge_bundle: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(edge_bundle, copy)
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(InputError, match="not the one that was exported"):
        Detector.load(copy)
    (copy / name).unlink()
    with pytest.raises(InputError, match="cannot be read"):
        Detector.load(copy)


def test_a_graph_that_is_none_is_a_clear_error(edge_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(edge_bundle, copy)
    (copy / bundle.GRAPH_FILE).write_bytes(b"no graph at all")
    manifest = json.loads((copy / bundle.MANIFEST_FILE).read_text())
    said = bundle.describe(copy / bundle.GRAPH_FILE)
    manifest["files"][bundle.GRAPH_FILE] = said.model_dump()
    (copy / bundle.MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="cannot be opened"):
        Detector.load(copy)
