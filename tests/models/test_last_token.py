from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gradsense.models.build import build
from gradsense.models.heads.last_token import applies_to, last_token_logits

LABELS = ("Benign", "DDoS", "Scan")


@pytest.mark.parametrize("texts", [["w0 w1 w2", "w3 w4 w5"], ["w0", "w1 w2 w3 w4 w5 w6", "w7 w8"]])
def test_logits_and_gradients_are_those_of_the_library(texts: list[str], template: Any) -> None:
    classifier = build("nano", template=template, labels=LABELS, seed=0)
    encoded = classifier.encode(texts)
    mask = encoded.attention_mask
    lengths = None if mask is None else mask.sum(dim=1)
    truth = torch.arange(len(texts))
    results = []
    for logits in (
        last_token_logits(classifier.model, encoded.input_ids, lengths),
        classifier.model(input_ids=encoded.input_ids, attention_mask=mask).logits,
    ):
        classifier.model.zero_grad()
        torch.nn.functional.cross_entropy(logits, truth).backward()
        gradients = {name: p.grad.clone() for name, p in classifier.trainable().items()}
        results.append((logits.detach(), gradients))
    (ours, our_gradients), (theirs, their_gradients) = results
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], atol=1e-6, rtol=1e-4)


def test_other_models_keep_their_own_forward_pass(
    hf_folder: Callable[[str], Path], template: Any
) -> None:
    def model(name: str, **options: Any) -> torch.nn.Module:
        return build(name, template=template, labels=LABELS, seed=0, **options).model

    assert applies_to(model("nano"))
    assert not applies_to(model("nano", lora_rank=2))
    assert not applies_to(model(str(hf_folder("gpt2")), lora_rank=0))
    # This folder's config has dropout, which the short way leaves out.
    assert not applies_to(model(str(hf_folder("opt")), lora_rank=0))
