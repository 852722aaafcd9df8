"""From a model folder to a bundle: what is written, what is calibrated, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradsense
from gradsense.data.synthetic.traffic import write_sample
from gradsense.detection import bundle
from gradsense.detection import verify as verifying
from gradsense.detection.detector import Detector
from gradsense.detection.export import export
from gradsense.detection.verify import draw, graph_answers, require, synthetic_sample
from gradsense.errors import GradsenseError, InputError
from gradsense.experiments import results
from gradsense.learning.answers import answers
from gradsense.models import folder
from gradsense.models.build import build
from gradsense.prompts.templates import get_template

LABELS = ("Benign", "DDoS", "Scan")


def without_calibration(model_dir: Path, path: Path) -> Path:
    """The folder as a version wrote it that knew nothing of calibration."""
    shutil.copytree(model_dir, path)
    (path / folder.NOVELTY_FILE).unlink()
    card = json.loads((path / folder.CARD_FILE).read_text())
    for name in ("calibration", "novelty", "reference"):
        del card[name]
    (path / folder.CARD_FILE).write_text(json.dumps(card))
    return path


# What training writes -----------------------------------------------------------------------


def test_training_calibrates_on_validation_flows(run_folder: Path) -> None:
    card = folder.read_card(run_folder / "model")
    assert card.calibration is not None
    assert card.novelty is not None
    assert card.reference is not None
    assert card.calibration.flows == card.novelty.flows == card.reference.flows > 20
    # The temperature lessens the NLL, not this error, which is small here before and after.
    assert max(card.calibration.ece_before, card.calibration.ece_after) < 0.05
    assert card.novelty.share <= 0.005
    assert card.calibration.alarm is not None
    assert card.calibration.alarm.flows < card.calibration.flows, "on the benign ones"
    for shares in (*card.reference.fields.values(), card.reference.confidence):
        assert sum(shares) == pytest.approx(1)
    (row,) = results.load(run_folder / "results.json")
    assert row.central is not None
    assert row.alarms is not None
    assert card.extra["accuracy"] == row.central.accuracy
    assert card.extra["alarm_threshold"] == row.alarms.threshold
    settings = json.loads((run_folder / "settings.json").read_text())
    assert card.extra["data_sha256"] == settings["data_sha256"]


def test_the_score_beside_the_model_is_read_again(model_dir: Path) -> None:
    score = folder.load_score(model_dir, folder.load(model_dir))
    assert score is not None
    assert (score.projection.weight.shape, score.sharpness.item()) == ((128, 1520), 10.0)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"projection.weight": (128, 1519)}, "not projection.bias"),
        ({"sharpness": (1,)}, "sharpness"),
        (None, "the novelty score cannot be read"),
    ],
)
def test_a_score_that_is_not_the_models_is_refused(
    tensors: dict[str, tuple[int, ...]] | None, said: str, model_dir: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(model_dir, tmp_path / "model")
    if tensors is None:
        (path / folder.NOVELTY_FILE).write_bytes(b"no tensors")
    else:
        good = folder.load_score(model_dir, folder.load(model_dir))
        assert good is not None
        fresh = good.state_dict() | {name: torch.zeros(shape) for name, shape in tensors.items()}
        folder.save_file(fresh, path / folder.NOVELTY_FILE)
    with pytest.raises(InputError, match=said):
        folder.load_score(path, folder.load(path))


# What export writes -------------------------------------------------------------------------


def test_a_bundle_says_what_the_card_says(model_dir: Path, edge_bundle: Path) -> None:
    manifest, template = bundle.read(edge_bundle)
    card = folder.read_card(model_dir)
    assert card.calibration is not None
    assert card.calibration.alarm is not None
    assert card.novelty is not None
    assert manifest.labels == card.labels
    assert (manifest.tokens.kind, manifest.tokens.max_tokens) == ("words", 19)
    assert template.name == "context"
    assert manifest.temperature == card.calibration.temperature
    assert manifest.alarm.value == card.calibration.alarm.threshold
    assert manifest.alarm.source == "validation flows of training"
    assert manifest.novelty is not None
    assert manifest.novelty.value == card.novelty.threshold
    assert manifest.reference is not None
    assert manifest.reference.model_dump() == card.reference.model_dump()  # type: ignore[union-attr]
    assert (manifest.precision, manifest.verified) == ("float32", None)
    assert sorted(path.name for path in edge_bundle.iterdir()) == [
        *("manifest.json", "model.onnx", "tokenizer.json"),
    ]


def test_provenance_names_the_run_and_no_place(model_dir: Path, edge_bundle: Path) -> None:
    told = bundle.read(edge_bundle)[0].provenance
    assert told["gradsense"] == told["trained_with"] == gradsense.__version__
    assert (told["algorithm"], told["seed"], told["synthetic"]) == ("gsfs", 0, True)
    assert told["base"] == "nano"
    assert len(told["model_sha256"]) == len(told["data_sha256"]) == 64
    assert told["torch"].startswith(torch.__version__.partition("+")[0])
    assert {"onnx", "onnxruntime", "opset", "accuracy", "f1_macro"} <= told.keys()
    for text in (str(model_dir), str(Path.home())):
        for file in edge_bundle.iterdir():
            assert text.encode() not in file.read_bytes()


@pytest.mark.slow
def test_the_same_model_gives_the_same_bundle(
    model_dir: Path, edge_bundle: Path, tmp_path: Path
) -> None:
    again = export(model_dir, tmp_path / "again")
    assert again.manifest.id == bundle.read(edge_bundle)[0].id


def test_float32_answers_as_torch_does(model_dir: Path, edge_bundle: Path, captures: Path) -> None:
    classifier = folder.load(model_dir)
    score = folder.load_score(model_dir, classifier)
    detector = Detector.load(edge_bundle, threads=1)
    sample = draw(captures, classifier.labels)
    found = verifying.verify(classifier, score, detector, sample)
    assert found["flows"] == found["labelled"] > 500
    assert found["agreement"] == 1
    assert found["logits"] < 1e-3
    assert found["novelty"] < 1e-3
    assert found["f1_macro"] == found["f1_macro_torch"] > 0.5
    assert found["truth"] == "labels"


@pytest.mark.slow
def test_data_with_labels_calibrates_afresh(
    model_dir: Path, captures: Path, tmp_path: Path
) -> None:
    exported = export(model_dir, tmp_path / "edge", data=captures, verify=True)
    manifest = exported.manifest
    assert exported.warnings == ()
    assert manifest.alarm.source == captures.name
    assert manifest.novelty is not None
    assert manifest.novelty.flows == manifest.verified["flows"]  # type: ignore[index]
    assert manifest.novelty.share <= 0.005
    assert bundle.read(tmp_path / "edge")[0] == manifest


@pytest.mark.slow
def test_an_old_folder_is_exported_with_defaults_and_a_note(
    model_dir: Path, tmp_path: Path
) -> None:
    old = without_calibration(model_dir, tmp_path / "old")
    exported = export(old, tmp_path / "edge")
    assert (exported.manifest.temperature, exported.manifest.alarm.value) == (1.0, 0.5)
    assert exported.manifest.novelty is None
    (said,) = exported.warnings
    assert "no calibration" in said
    assert "--data" in said
    _, novelty = Detector.load(tmp_path / "edge").answers(np.zeros((1, 19), np.uint16))
    assert novelty is None


@pytest.mark.slow
def test_unlabelled_logs_verify_but_do_not_calibrate(model_dir: Path, tmp_path: Path) -> None:
    log = tmp_path / "conn.log"
    write_sample(log, flows=80, seed=0)
    exported = export(model_dir, tmp_path / "edge", data=log, verify=True)
    assert exported.manifest.alarm.source == "validation flows of training"
    (said,) = exported.warnings
    assert "no flow of conn.log has a label" in said
    verified = exported.manifest.verified
    assert verified is not None
    assert (verified["labelled"], verified["truth"]) == (0, "the torch model's verdicts")
    assert verified["f1_macro_torch"] == 1


@pytest.mark.slow
def test_a_subword_model_brings_its_tokenizer(tmp_path: Path) -> None:
    classifier = build("nano", template=get_template("plain"), labels=LABELS, seed=0)
    for parameter in classifier.trainable().values():
        parameter.data.mul_(3)  # freshly drawn ones hardly tell prompts apart
    folder.save(classifier, tmp_path / "model")
    exported = export(tmp_path / "model", tmp_path / "edge", verify=True)
    tokens = exported.manifest.tokens
    assert (tokens.kind, tokens.max_tokens, tokens.pad_id) == ("subwords", 64, 0)
    assert exported.manifest.verified is not None
    assert exported.manifest.verified["agreement"] == 1
    detector = Detector.load(tmp_path / "edge", threads=1)
    template = get_template("plain")
    phrase_ids = template.indices(synthetic_sample(labelled=False).flows.head(40))
    texts = template.texts(phrase_ids)
    assert len({len(text.split()) for text in texts}) > 1, "prompts are padded"
    said = answers(classifier, texts).logits
    assert graph_answers(detector, phrase_ids).logits == pytest.approx(said, abs=1e-4)


# What is refused ----------------------------------------------------------------------------


def test_something_else_at_out_is_left_alone(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="no edge bundle"):
        export(model_dir, tmp_path / "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "letter.txt"]


@pytest.mark.slow
def test_int8_is_smaller_and_always_verified(
    model_dir: Path, edge_bundle: Path, captures: Path, tmp_path: Path
) -> None:
    exported = export(model_dir, tmp_path / "edge", int8=True, data=captures, force=True)
    assert exported.manifest.precision == "int8"
    assert exported.manifest.verified is not None
    assert exported.manifest.verified["agreement"] > 0.95
    sizes = [
        path.stat().st_size
        for path in (tmp_path / "edge" / "model.onnx", edge_bundle / "model.onnx")
    ]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.mark.slow
def test_int8_that_loses_too_much_leaves_nothing(
    model_dir: Path, captures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "MAY_LOSE", -1.0)
    with pytest.raises(GradsenseError, match="points of macro-F1") as caught:
        export(model_dir, tmp_path / "edge", int8=True, data=captures)
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("found", "precision", "said"),
    [
        ({"agreement": 0.99}, "float32", "disagrees with torch on 10 of 1,000 flows"),
        ({"f1_macro_lost": 0.0051}, "int8", "int8 loses 0.51 points"),
        ({"f1_macro_lost": 0.0051, "labelled": 0}, "int8", "give labelled logs with --data"),
        ({"f1_macro_lost": 0.005, "agreement": 0.9}, "int8", None),
        ({"f1_macro_lost": 0.1}, "float32", None),
    ],
)
def test_what_is_good_enough(found: dict[str, Any], precision: str, said: str | None) -> None:
    found = {
        **{"agreement": 1.0, "f1_macro_lost": 0.0, "flows": 1000, "labelled": 1000},
        **{"logits": 0.5, "source": "conn.log", "truth": "labels"},
        **found,
    }
    if said is None:
        require(found, precision)
    else:
        with pytest.raises(GradsenseError, match=said):
            require(found, precision)


def test_verifying_notices_another_models_graph(
    model_dir: Path, edge_bundle: Path, captures: Path
) -> None:
    classifier = folder.load(model_dir)
    model: Any = classifier.model
    nn.init.zeros_(model.score.weight)
    found = verifying.verify(
        classifier, None, Detector.load(edge_bundle, threads=1), draw(captures, classifier.labels)
    )
    assert found["agreement"] < 1
    assert found["logits"] > 1
    assert found["novelty"] is None
    with pytest.raises(GradsenseError, match="disagrees with torch"):
        require(found, "float32")


@pytest.mark.slow
def test_only_a_model_of_such_traffic_is_held_against_built_in_labels(
    model_dir: Path, tmp_path: Path
) -> None:
    found = []
    for synthetic in (True, False):
        path = shutil.copytree(model_dir, tmp_path / f"model-{synthetic}")
        card = json.loads((path / folder.CARD_FILE).read_text())
        card["extra"]["synthetic"] = synthetic
        (path / folder.CARD_FILE).write_text(json.dumps(card))
        found.append(export(path, tmp_path / "edge", verify=True).manifest.verified)
    assert [one["truth"] for one in found if one] == ["labels", "the torch model's verdicts"]
    assert [one["synthetic"] for one in found if one] == [True, True]


# The sample ---------------------------------------------------------------------------------


def test_a_sample_is_bounded_per_class_and_the_same_each_time(captures: Path) -> None:
    labels = ("Benign", "DDoS")
    some = draw(captures, labels, most=7)
    counts = some.flows.group_by("class").len()["len"]
    assert counts.max() <= 4 * 7
    assert counts.min() >= 1
    assert some.flows.equals(draw(captures, labels, most=7).flows)
    assert set(some.known(labels)["class"]) == set(labels) & set(some.flows["class"])
    assert (some.synthetic, some.dropped, some.source) == (True, 0, captures.name)


def test_a_log_with_no_flows_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "conn.log"
    write_sample(log, flows=50, seed=0)
    head = [line for line in log.read_text().splitlines() if line.startswith("#")]
    log.write_text("\n".join(head) + "\n")
    with pytest.raises(InputError, match="hold no flows"):
        draw(log, ())


def test_a_binary_model_reads_labels_as_two(captures: Path) -> None:
    assert set(draw(captures, ("Benign", "Malicious")).flows["class"]) == {"Benign", "Malicious"}
