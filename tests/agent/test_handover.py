"""From a global model to the detector's bundle: whose head, whose thresholds, what is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gradsense.agent.handover import (
    ENOUGH,
    fitted_temperature,
    hand_over,
    hand_over_weights,
    handed_over,
)
from gradsense.agent.reader import Rows
from gradsense.data.datasets.iot23 import BENIGN
from gradsense.detection import bundle
from gradsense.detection.calibrate import exceeded_by
from gradsense.detection.detector import Detector
from gradsense.errors import GradsenseError
from gradsense.federation.update import GlobalModel
from gradsense.learning.calibration import reference, temperature_for
from gradsense.models import folder
from gradsense.transport.payloads import model_hash
from tests.support.heads import some_head


def site(bundle_path: Path, *, benign: int, others: int, seed: int = 0) -> list[Rows]:
    """Two batches of 40 rows each, with so many flows in all."""
    manifest, template = bundle.read(bundle_path)
    rng = np.random.default_rng(seed)
    quiet, found = manifest.labels.index(BENIGN), []
    for part in range(2):
        phrase_ids = np.stack(
            [rng.integers(0, len(f.phrases), 40) for f in template.fields], axis=1
        )
        labels = np.where(np.arange(40) < 20, quiet, (quiet + 1 + part) % len(manifest.labels))
        weights = np.zeros(40, np.int64)
        for rows, flows in ((slice(0, 20), benign // 2), (slice(20, 40), others // 2)):
            weights[rows] = np.bincount(rng.integers(0, 20, flows), minlength=20)
        kept = weights > 0
        found.append((phrase_ids[kept].astype(np.uint16), labels[kept], weights[kept]))
    return found


def test_enough_flows_of_the_site_set_its_thresholds(edge_bundle: Path, tmp_path: Path) -> None:
    batches = site(edge_bundle, benign=1000, others=800)
    model, out = GlobalModel(7, some_head(edge_bundle)), tmp_path / "edge"
    before = bundle.read(edge_bundle)[0]
    manifest = hand_over(edge_bundle, out, model, batches=batches, run="street")
    detector = Detector.load(out, threads=1)
    assert detector.manifest == manifest
    assert manifest.provenance["fleet"] == {
        "run": "street",
        "version": 7,
        "model_sha256": model_hash(model.tensors),
        "thresholds": "labelled flows of this site",
    }
    assert manifest.provenance["start"] == before.provenance
    assert manifest.alarm.source == "labelled flows of this site"
    assert manifest.alarm.flows == 1000
    assert manifest.temperature != before.temperature
    assert manifest.novelty == before.novelty
    # By hand: every flow for itself.
    phrase_ids, labels, weights = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    flows = np.repeat(np.arange(len(phrase_ids)), weights)
    logits, _ = detector.answers(phrase_ids)
    assert manifest.temperature == pytest.approx(
        temperature_for(logits[flows], labels[flows]), rel=1e-4
    )
    verdicts = detector.judge(phrase_ids)
    benign = [verdicts[f].alarm for f in flows if labels[f] == manifest.labels.index(BENIGN)]
    assert len(benign) == 1000
    assert sum(benign) / 1000 == manifest.alarm.share <= 0.0025
    sure = np.array([verdict.probability for verdict in verdicts])
    expected = reference(phrase_ids[flows], detector.template, sure[flows])
    assert manifest.reference is not None
    assert manifest.reference.flows == 1800
    for name, shares in expected.fields.items():
        assert manifest.reference.fields[name] == pytest.approx(shares)


def test_what_is_left_to_do_is_found_after_a_kill(edge_bundle: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "edge", GlobalModel(7, some_head(edge_bundle))
    assert not handed_over(out, model, run="street")
    assert not handed_over(edge_bundle, model, run="street")
    hand_over(edge_bundle, out, model, batches=[], run="street")
    assert handed_over(out, model, run="street")
    assert not handed_over(out, model, run="road")
    assert not handed_over(out, GlobalModel(8, model.tensors), run="street")
    other = GlobalModel(7, some_head(edge_bundle, scale=0.5))
    assert not handed_over(out, other, run="street")
    (out / "head.safetensors").write_bytes(b"")
    assert not handed_over(out, model, run="street")


@pytest.mark.parametrize(
    ("flows", "anew"),
    [
        ((ENOUGH - 2, 2000), set()),
        ((ENOUGH, ENOUGH - 2), {"alarm", "reference"}),
        ((ENOUGH, ENOUGH), {"alarm", "reference", "temperature"}),
        (None, set()),
    ],
)
def test_what_too_few_flows_cannot_say_stays_as_it_was(
    flows: tuple[int, int] | None, anew: set[str], edge_bundle: Path, tmp_path: Path
) -> None:
    batches = [] if flows is None else site(edge_bundle, benign=flows[0], others=flows[1])
    before = bundle.read(edge_bundle)[0]
    model = GlobalModel(1, some_head(edge_bundle))
    manifest = hand_over(edge_bundle, tmp_path / "edge", model, batches=batches, run="r")
    measured = ("alarm", "reference", "temperature", "novelty")
    assert {one for one in measured if getattr(manifest, one) != getattr(before, one)} == anew
    where = "labelled flows of this site" if anew else "the run's start"
    assert manifest.provenance["fleet"]["thresholds"] == where


def test_one_model_follows_the_other(edge_bundle: Path, tmp_path: Path) -> None:
    ids = set()
    for version in (1, 2):
        model = GlobalModel(version, some_head(edge_bundle, scale=0.01 * version))
        hand_over(edge_bundle, tmp_path / "edge", model, batches=[], run="r")
        ids.add(Detector.load(tmp_path / "edge", threads=1).manifest.id)
    assert len(ids) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["edge"]


def test_only_the_newest_flows_are_looked_at(
    edge_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradsense.agent.handover._MOST_ROWS", 40)
    old, new = site(edge_bundle, benign=2000, others=0)
    model = GlobalModel(1, some_head(edge_bundle))
    manifest = hand_over(edge_bundle, tmp_path / "edge", model, batches=[old, new], run="r")
    assert manifest.alarm.flows == new[2].sum() + old[2].sum()
    monkeypatch.setattr("gradsense.agent.handover._MOST_ROWS", 20)
    manifest = hand_over(edge_bundle, tmp_path / "edge", model, batches=[old, new], run="r")
    assert manifest.alarm.flows == new[2].sum()


def test_a_model_that_is_no_head_is_refused_and_nothing_written(
    edge_bundle: Path, tmp_path: Path
) -> None:
    for tensors in ({}, {"score.weight": np.zeros((6, 3), np.float32)}):
        full = dict(some_head(edge_bundle)) | tensors if tensors else {}
        with pytest.raises(GradsenseError):
            hand_over(edge_bundle, tmp_path / "edge", GlobalModel(1, full), batches=[], run="r")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_trained_weights_become_a_graph(edge_bundle: Path, tmp_path: Path) -> None:
    model_dir = edge_bundle.parent / "run" / "model"
    tensors = folder.load(model_dir).tensors()
    tensors["score.bias"] = tensors["score.bias"] + np.float32(1.5)
    batches = site(edge_bundle, benign=1000, others=0)
    out, model = tmp_path / "edge", GlobalModel(3, tensors)
    manifest = hand_over_weights(model_dir, out, model, batches=batches, run="r")
    card = folder.read_card(model_dir)
    assert card.calibration is not None
    assert (manifest.temperature, manifest.novelty) == (card.calibration.temperature, None)
    assert manifest.provenance["fleet"]["version"] == 3
    assert manifest.alarm.flows == 1000
    before, after = Detector.load(edge_bundle, threads=1), Detector.load(out, threads=1)
    phrase_ids = batches[0][0]
    assert after.answers(phrase_ids)[0] == pytest.approx(
        before.answers(phrase_ids)[0] + 1.5, abs=1e-3
    )
    del tensors["score.bias"]
    with pytest.raises(GradsenseError, match="not of this run"):
        hand_over_weights(model_dir, out, model, batches=batches, run="r")
    assert bundle.read(out)[0] == manifest


def test_a_weighted_order_statistic_is_that_of_the_flows() -> None:
    rng = np.random.default_rng(0)
    scores, weights = rng.normal(size=50).round(1), rng.integers(1, 40, 50)
    flows = np.repeat(scores, weights)
    for share in (0.0, 0.0025, 0.1, 0.5):
        found = exceeded_by(scores, weights, share)
        assert found == np.sort(flows)[::-1][int(share * len(flows))]
        assert (flows > found).mean() <= share


@pytest.mark.parametrize("sharp", [0.3, 1.0, 6.0])
def test_the_temperature_is_that_of_scipys_search(sharp: float) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(300, 4))
    truth = np.array([rng.choice(4, p=np.exp(z) / np.exp(z).sum()) for z in logits])
    weights = rng.integers(1, 4, 300)
    flows = np.repeat(np.arange(300), weights)
    found = fitted_temperature(sharp * logits, truth, weights)
    assert found == pytest.approx(temperature_for(sharp * logits[flows], truth[flows]), rel=1e-4)
    assert found == pytest.approx(sharp, rel=0.25)
