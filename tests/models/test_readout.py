"""A head over all that the base makes of a prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradsense.errors import InputError
from gradsense.models.build import build
from gradsense.models.card import Kind
from gradsense.models.classifier import TextClassifier
from gradsense.models.heads.readout import Readout, feasible, state_width
from gradsense.prompts.templates import get_template

LABELS = ("Benign", "DDoS", "Scan")
FAMILIES = ("opt", "bert", "gpt2", "gpt_neox", "roberta", "deberta-v2")
TEXTS = ["w0 w1 w2", "w3 w4 w5 w6 w7", "w0 w1 w2", "w8"]


class Counting(nn.Module):
    """A base whose state of token t at place p is (t, 10 p)."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> SimpleNamespace:
        places = 10.0 * torch.arange(input_ids.shape[1]).expand(input_ids.shape)
        return SimpleNamespace(last_hidden_state=torch.stack((input_ids.float(), places), dim=-1))


def model(kind: Kind, length: int = 0) -> Readout:
    return Readout(Counting(), kind=kind, length=length, classes=3, frozen=True)


def nano(**options: Any) -> TextClassifier:
    options = {"template": get_template("context"), "readout": "tokens", "frozen": True, **options}
    return build("nano", labels=LABELS, seed=0, **options)


def prompts(classifier: TextClassifier, count: int = 8) -> list[str]:
    words, length = classifier.template.vocabulary(), classifier.template.length
    assert length is not None
    return [" ".join(words[start : start + length]) for start in range(0, 7 * count, 7)]


# Features -----------------------------------------------------------------------------------


def test_tokens_are_all_states_side_by_side() -> None:
    own = model("tokens", length=3)
    assert own.features_per_prompt == 6
    features = own.features(torch.tensor([[7, 8, 9], [1, 2, 3]]), None)
    assert features.tolist() == [[7, 0, 8, 10, 9, 20], [1, 0, 2, 10, 3, 20]]


def test_tokens_of_the_embedded_model_are_its_flattened_states() -> None:
    classifier = nano()
    own: Any = classifier.model
    assert (own.kind, own.length, own.features_per_prompt) == ("tokens", 19, 19 * 80)
    encoded = classifier.encode(prompts(classifier))
    rows = torch.tensor([2, 0])
    with torch.inference_mode():
        states = own.base(input_ids=encoded.input_ids[rows]).last_hidden_state
        features = classifier.features(encoded, rows)
    assert torch.equal(features, states.reshape(2, -1))
    assert torch.equal(features[:, 80:160], states[:, 1])


@pytest.mark.parametrize(
    ("ids", "mask"),
    [
        ([[4, 6, 8]], None),
        ([[4, 6, 8]], [[1, 1, 1]]),
        ([[4, 6, 8, 0, 0]], [[1, 1, 1, 0, 0]]),
    ],
    ids=["unpadded", "a mask of ones", "right padding"],
)
def test_pooled_is_mean_and_last_over_real_tokens(
    ids: list[list[int]], mask: list[list[int]] | None
) -> None:
    own = model("pooled")
    assert own.features_per_prompt == 4
    features = own.features(torch.tensor(ids), None if mask is None else torch.tensor(mask))
    assert features.tolist() == [[6, 10, 8, 20]]
    alone = model("last")
    assert alone.features_per_prompt == 2
    features = alone.features(torch.tensor(ids), None if mask is None else torch.tensor(mask))
    assert features.tolist() == [[8, 20]]


def test_pooled_looks_past_padding_on_the_left() -> None:
    ids, mask = torch.tensor([[0, 0, 4, 6], [1, 2, 3, 4]]), torch.tensor([[0, 0, 1, 1], [1] * 4])
    features = model("pooled").features(ids, mask)
    assert model("last").features(ids, mask).tolist() == [[6, 30], [4, 30]]
    # Places 2 and 3 are real; the last real token is at the end.
    assert features.tolist() == [[5, 25, 6, 30], [2.5, 15, 4, 30]]


@pytest.mark.parametrize("kind", ["last", "pooled"])
def test_no_real_token_is_finite(kind: Kind) -> None:
    assert model(kind).features(torch.tensor([[0, 0]]), torch.tensor([[0, 0]])).isfinite().all()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_prompt_of_another_length_raises(count: int) -> None:
    with pytest.raises(ValueError, match="a head over 3 tokens"):
        model("tokens", length=3).features(torch.ones((1, count), dtype=torch.int64), None)
    classifier = nano()
    short = " ".join(prompts(classifier)[0].split()[:18])
    with pytest.raises(ValueError, match="a head over 19 tokens"):
        classifier.probabilities([short])


def test_padded_prompt_raises_where_every_token_has_its_place() -> None:
    ids = torch.tensor([[4, 6, 0]])
    with pytest.raises(ValueError, match="needs prompts of that length"):
        model("tokens", length=3).features(ids, torch.tensor([[1, 1, 0]]))


def test_features_need_a_head_of_our_own(template: Any) -> None:
    classifier = build("nano", template=template, labels=LABELS, seed=0)
    with pytest.raises(ValueError, match="features to itself"):
        classifier.features(classifier.encode(["w0"]), torch.tensor([0]))


def test_kind_follows_length_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    base = Counting()
    assert state_width(base) == 2
    assert feasible("tokens", base, 3) == "tokens"
    assert feasible("tokens", base, None) == "pooled"
    monkeypatch.setattr("gradsense.models.heads.readout.MAX_FEATURES", 6)
    assert (feasible("tokens", base, 3), feasible("tokens", base, 4)) == ("tokens", "pooled")
    assert feasible("last", base, 3) == "last"
    assert feasible("pooled", base, 3) == "pooled"
    # 64 words at most, but of no one length.
    plain: Any = nano(template=get_template("plain")).model
    assert plain.kind == "pooled"


# The head -----------------------------------------------------------------------------------


def test_untrained_head_says_all_classes_alike() -> None:
    classifier = nano()
    table = classifier.probabilities(prompts(classifier))
    assert table == pytest.approx(np.full(table.shape, 1 / 3))
    assert not any(tensor.any() for tensor in classifier.tensors().values())


def test_head_is_linear_by_hand() -> None:
    own = model("tokens", length=2)
    with torch.no_grad():
        own.score.weight[1] = torch.tensor([1.0, 2.0, 3.0, 4.0])
        own.score.bias[1] = 0.5
    logits = own(torch.tensor([[5, 6]])).logits
    assert logits.tolist() == [[0, 5 + 0 + 3 * 6 + 4 * 10 + 0.5, 0]]


def test_frozen_base_leaves_only_the_head_to_train() -> None:
    classifier = nano()
    tensors = classifier.tensors()
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "score.weight": (3, 1520),
        "score.bias": (3,),
    }
    assert classifier.lora_rank is None
    before = {n: p.detach().clone() for n, p in classifier.model.named_parameters()}
    texts = prompts(classifier)
    logits = classifier.forward(classifier.encode(texts))
    torch.nn.functional.cross_entropy(logits, torch.arange(len(texts)) % 3).backward()
    grads = {n for n, p in classifier.model.named_parameters() if p.grad is not None}
    assert grads == {"score.weight", "score.bias"}
    torch.optim.AdamW(classifier.model.parameters(), lr=0.1, weight_decay=0.1).step()
    moved = {n for n, p in classifier.model.named_parameters() if not torch.equal(before[n], p)}
    assert moved == grads


def test_open_base_trains_with_the_head() -> None:
    names = set(nano(frozen=False).trainable())
    assert {"score.weight", "score.bias"} < names
    assert any(name.startswith("base.") for name in names)


def test_frozen_base_under_the_last_token_reads_what_the_papers_head_reads() -> None:
    """The same function of the same state; only the bias is new."""
    frozen, paper = nano(readout="last"), nano(readout="last", frozen=False)
    assert list(frozen.trainable()) == ["score.weight", "score.bias"]
    assert len(paper.trainable()) > 20
    weight = paper.tensors()["score.weight"]
    frozen.load({"score.weight": weight, "score.bias": np.zeros(3, np.float32)})
    texts = prompts(frozen)
    np.testing.assert_allclose(frozen.probabilities(texts), paper.probabilities(texts), atol=1e-6)


def test_base_is_the_pretrained_one_whatever_the_seed() -> None:
    template = get_template("context")
    one, two = (
        build("nano", template=template, labels=LABELS, seed=s, readout="tokens", frozen=True)
        for s in (0, 1)
    )
    texts = prompts(one)
    rows = torch.arange(len(texts))
    with torch.inference_mode():
        first, second = (c.features(c.encode(texts), rows) for c in (one, two))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "options",
    [{"readout": "tokens"}, {"readout": "pooled"}, {"frozen": True}],
    ids=["tokens", "pooled", "frozen"],
)
def test_adapters_are_refused(options: dict[str, Any], template: Any) -> None:
    with pytest.raises(InputError, match=r"--lora-rank out.*gsfs-tune"):
        build("nano", template=template, labels=LABELS, seed=0, lora_rank=4, **options)


# Hugging Face bases -------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_pooled_and_padding_does_not_change_an_answer(
    family: str, hf_folder: Callable[[str], Path], template: Any
) -> None:
    classifier = build(
        str(hf_folder(family)),
        template=template,
        labels=LABELS,
        seed=0,
        readout="tokens",
        frozen=True,
    )
    own: Any = classifier.model
    assert own.kind == "pooled"
    assert list(classifier.trainable()) == ["score.weight", "score.bias"]
    rng = np.random.default_rng(0)
    head = {n: rng.normal(size=t.shape) for n, t in classifier.tensors().items()}
    classifier.load({name: value.astype(np.float32) for name, value in head.items()})
    together = classifier.probabilities(TEXTS)
    alone = np.concatenate([classifier.probabilities([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert np.ptp(together, axis=0).max() > 0.01, "the texts do read differently"
    classifier.model.eval()
    with torch.inference_mode():
        padded = torch.softmax(classifier.forward(classifier.encode(TEXTS)), dim=-1).numpy()
        encoded = classifier.encode(TEXTS)
        one = classifier.features(encoded, torch.tensor([3]))
        many = classifier.features(encoded, torch.arange(4))[3:]
    np.testing.assert_allclose(padded, alone, atol=1e-6)
    np.testing.assert_allclose(one.numpy(), many.numpy(), atol=1e-5)


@pytest.mark.parametrize("options", [{"readout": "tokens"}, {"frozen": True}], ids=str)
def test_an_encoder_decoder_is_refused(
    options: dict[str, Any], hf_folder: Callable[[str], Path], template: Any
) -> None:
    with pytest.raises(InputError, match="an encoder-decoder") as refused:
        build(str(hf_folder("t5")), template=template, labels=LABELS, seed=0, **options)
    assert "gsfs-tune" in refused.value.hint
