"""The shipped base, and making one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gradsense.data.datasets.captures import load
from gradsense.data.synthetic.traffic import write_fleet
from gradsense.errors import InputError
from gradsense.experiments.pretrain import make_base, pretrain, pretraining_texts, varied
from gradsense.models import embedded
from gradsense.models.build import build
from gradsense.prompts.templates import get_template

LABELS = ("Benign", "DDoS")


def test_the_default_model_starts_from_the_base() -> None:
    template = get_template("context")
    assert embedded.has_base("nano", template)
    assert embedded.base_path("nano", template).stat().st_size < 3_000_000
    warm = build("nano", template=template, labels=LABELS, seed=0).tensors()
    other = build("nano", template=template, labels=LABELS, seed=1).tensors()
    cold = build("nano", template=template, labels=LABELS, seed=0, pretrained=False).tensors()
    for name in warm:
        same = np.array_equal(warm[name], other[name])
        assert same == (not name.startswith("score")), "only the head follows the seed"
    assert np.array_equal(warm["score.weight"], cold["score.weight"])
    assert not np.array_equal(
        warm["model.decoder.embed_tokens.weight"], cold["model.decoder.embed_tokens.weight"]
    )


def test_sizes_without_a_base_start_at_random() -> None:
    template = get_template("plain")
    assert not embedded.has_base("nano", template)
    build("nano", template=template, labels=LABELS, seed=0)


def test_a_base_survives_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = get_template("compact")
    monkeypatch.setattr(embedded, "_FOLDER", tmp_path)
    one = build("nano", template=template, labels=LABELS, seed=3, pretrained=False)
    embedded.save_base(one.model.model.decoder, template, embedded.base_path("nano", template))
    two = build("nano", template=template, labels=LABELS, seed=4)
    for name, value in one.tensors().items():
        if not name.startswith("score"):
            assert np.allclose(two.tensors()[name], value, atol=1e-3)  # half precision


def test_a_base_of_another_vocabulary_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = get_template("compact")
    monkeypatch.setattr(embedded, "_FOLDER", tmp_path)
    one = build("nano", template=template, labels=LABELS, seed=3, pretrained=False)
    embedded.save_base(one.model.model.decoder, template, embedded.base_path("nano", template))
    monkeypatch.setattr(embedded, "fingerprint", lambda words: "other")
    with pytest.raises(ValueError, match="gradsense pretrain --model nano --template compact"):
        build("nano", template=template, labels=LABELS, seed=4)


def test_next_token_training_learns() -> None:
    torch.set_num_threads(1)
    template = get_template("compact")
    classifier = build("nano", template=template, labels=LABELS, seed=0, pretrained=False)
    head = classifier.tensors()["score.weight"]
    words = template.vocabulary()
    texts = [" ".join(words[i : i + 5]) for i in range(0, 100, 5)]
    losses: list[float] = []
    pretrain(
        classifier, texts, epochs=30, seed=0, on_step=lambda step, steps, loss: losses.append(loss)
    )
    assert losses[-1] < 0.5 * losses[0]
    assert np.array_equal(classifier.tensors()["score.weight"], head)


def test_varied_flows_stay_valid(tmp_path: Path) -> None:
    write_fleet(tmp_path, sites=2, flows=100, seed=0)
    flows = load(tmp_path, cap=0, seed=0).flows
    wild = varied(flows, np.random.default_rng(0))
    assert wild.schema == flows.schema
    assert wild["orig_bytes"].drop_nulls().min() >= 0
    assert sorted(wild["conn_state"]) == sorted(flows["conn_state"])
    texts = get_template("context").render(wild)
    assert set(" ".join(texts).split()) <= set(get_template("context").vocabulary())


@pytest.mark.slow
def test_pretraining_texts_are_reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradsense.experiments import pretrain as module  # noqa: PLC0415

    monkeypatch.setattr(module, "_SITES", 2)
    monkeypatch.setattr(module, "_FLOWS", 60)
    template = get_template("compact")
    texts = pretraining_texts(template, seed=0)
    assert texts == pretraining_texts(template, seed=0) != pretraining_texts(template, seed=1)


def test_only_embedded_sizes_have_bases(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not embedded; choose from nano, micro, mini"):
        make_base("facebook/opt-350m", "context", tmp_path / "x")
